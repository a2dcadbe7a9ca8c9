"""The steps from one release to the next, while requests keep flowing.

Every step leaves the repository and the server with a whole release, so a publisher may be killed
in any of them. The next one begins by undoing what was not finished, or by finishing it where the
switch had already been written down.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascade.artifact import ArtifactError
from cascade.client.split import CHALLENGER
from cascade.config import of_release
from cascade.errors import CascadeError
from cascade.files import sync
from cascade.release import read_release
from cascade.schema import Schema
from cascade.spec import ENSEMBLE, RECOMMEND_USER, RETRIEVE, stage_path
from export.releases import trial
from export.releases.canary import Canary
from export.releases.control import Control, ControlError
from export.releases.manifest import verify
from export.releases.repository import Repository
from export.releases.trial import TrialError

STEPS = ("recover", "make", "check", "install", "load", "canary", "switch", "confirm", "prune")
Make = Callable[[Path, int], None]
"""Writes a release of that number into that folder, as a repository of its own."""


class PublishError(CascadeError):
    """Something that cannot be done with the releases that there are."""


@dataclass(frozen=True)
class Published:
    """What became of it.

    Args:
        number: the release that is live now.
        before: the one that was.
        switch_ms: how long the server took to switch; None where there is no server.
    """

    number: int
    before: int | None
    switch_ms: float | None


class Publisher:
    """Changes which release a repository, and the server on it, answer with.

    Args:
        control: the server; None to change the repository alone.
        keep: how many releases stay on disk, the live one and the one before among them.
        say: is told every step as it begins.
    """

    def __init__(
        self,
        repository: Repository,
        control: Control | None = None,
        keep: int = 3,
        say: Callable[[str], None] = print,
    ) -> None:
        self.repository, self.control, self.keep, self._say = repository, control, keep, say

    def publish(self, make: Make, share: float | None = None) -> Published:
        """Make a release, and let the server answer with it.

        Args:
            share: of the users who get it, while the others stay with the live one; None: all.

        Raises:
            ArtifactError: what was made is not whole, or does not fit the repository.
            BusyError: another publisher is at work.
            ControlError: the server does not answer or cannot load it.
            TrialError: the server answers otherwise than it should.
        """
        with self.repository.locked():
            self.recover()
            number = (self.repository.newest or 0) + 1
            staged = self.repository.staging(number)
            try:
                self._step("make", f"release {number}")
                make(staged, number)
                self._step("check", "every file against its manifest")
                self._check(verify(staged, number), number)
                self._step("install")
                sync(staged)
                self.repository.install(number)
                published = self._go_live(number) if share is None else self.split(number, share)
            except Exception:
                self._undo(number)
                raise
            self._step("prune", f"keep {self.keep}")
            self._prune()
            return published

    def roll_back(self, number: int | None = None) -> Published:
        """Let the server answer with an earlier release, by default the one before.

        Raises:
            PublishError: there is no such release; otherwise as `publish`.
        """
        with self.repository.locked():
            self.recover()
            live, kept = self.repository.live, self.repository.releases()
            if number is None:
                loaded = self.repository.loaded() if len(self.repository.loaded()) > 1 else kept
                number = max((n for n in loaded if live is not None and n != live), default=None)
            if number is None or number not in kept or number == live:
                raise PublishError(
                    f"cannot go back to {number or 'an earlier release'}: {live} is live, and "
                    f"kept are {kept}"
                )
            self._step("check", "every file against its manifest")
            verify(self.repository.root, number)
            return self._go_live(number)

    def recover(self) -> None:
        """Undo what a killed publisher did not finish, or finish what it had written down."""
        self._step("recover")
        repository = self.repository
        live = repository.live
        if live is not None:
            repository.settle(live)
        pending = [number for number in repository.releases() if repository.pending(number)]
        if live is None:
            self._clean(pending)
            return
        loaded = repository.loaded()
        kept = [n for n in loaded if repository.complete(n) and n not in pending]
        if kept != loaded:
            # Before the files go: the server may still be loading them, and server 2.51 waits for
            # ever for a process that does not find its model.
            repository.configure(live, kept)
            self._load_members()
        self._clean(pending)
        if self.control and self.control.release() != live:
            self._say(f"release {live} is written down as live: the server follows")
            self._load_members()
            self._load_fronts()

    def _clean(self, numbers: list[int]) -> None:
        """Remove releases that were never live, and what is left of others."""
        for number in numbers:
            self._say(f"release {number} was never live: removed")
            self.repository.remove(number)
        for folder in [*self.repository.leftovers()]:
            shutil.rmtree(folder)

    def _check(self, release: dict[str, Any], number: int) -> None:
        """Does it fit beside what is here?"""
        live = self.repository.live
        if live is None:
            return
        now = read_release(self.repository.root, live)
        if now["topology"] != release["topology"]:
            raise ArtifactError(
                f"the release is wired as {release['topology']}, and {self.repository.root} as "
                f"{now['topology']}: export it with --topology {now['topology']}"
            )
        if RECOMMEND_USER in self.repository.fronts() and not of_release(release)[1].store:
            raise ArtifactError(
                "clients ask for users by id here, and the release has no store: export it with "
                "--store"
            )
        staged = self.repository.staging(number)
        came, here = (
            Schema.load(root / stage_path(now["topology"], RETRIEVE, n) / "schema.json").layout_hash
            for root, n in ((staged, number), (self.repository.root, live))
        )
        if came != here:
            raise ArtifactError(
                f"the release takes requests of layout {came}, and clients send {here}: publish it "
                "into a repository of its own"
            )

    def _load_beside(self, number: int) -> Canary:
        """Load a release beside the live one, and ask it what its export recorded."""
        live, loaded = self.repository.live, self.repository.loaded()
        canary = Canary.from_dict(read_release(self.repository.root, number)["canary"])
        if number not in loaded or self.control is None:
            self._step("load", f"release {number} beside {live}")
            both = {number} if live is None else {live, number}
            self.repository.configure(number, [*both])
            self._load_members()
        self._step("canary", f"{len(canary.dense)} requests")
        if self.control:
            trial.before_switch(self.repository, self.control, number, canary)
        return canary

    def _go_live(self, number: int) -> Published:
        """Load beside the live release, try, switch, and look whether it worked."""
        before = self.repository.live
        canary = self._load_beside(number)
        self._step("switch", f"{before} -> {number}")
        self.repository.pin(number)
        switch_ms = self._load_fronts()
        self.repository.settle(number)
        self._step("confirm")
        try:
            if self.control:
                trial.after_switch(self.control, number, canary)
        except (ControlError, TrialError):
            if before is not None:
                self._say(f"back to release {before}")
                self.repository.pin(before)
                self._load_fronts()
            raise
        self._end_split()
        return Published(number, before, switch_ms)

    def split(self, number: int, share: float) -> Published:
        """Let a share of the users have a release, while the others stay with the live one. Whose
        turn it is the clients tell by a hash of the user, for a router in the server would cost
        every request a hop. Belongs inside `locked`.

        Raises:
            PublishError: the share is none, or the release is live already.
        """
        live = self.repository.live
        if not 0 < share < 1 or live is None or number == live:
            raise PublishError(
                f"cannot give release {number} to {share:g} of the users while {live} is live: a "
                "share lies between 0 and 1, and the two are different releases"
            )
        self._load_beside(number)
        self._step("switch", f"{live} and, for {share:.0%}, {number}")
        for name in self.repository.alias(CHALLENGER, number):
            if self.control:
                self.control.load(name)
        self.repository.pin(live, share)
        switch_ms = self._load_fronts()
        self.repository.settle(number)
        return Published(live, live, switch_ms)

    def end_split(self) -> None:
        """Let all users have the live release."""
        with self.repository.locked():
            self.recover()
            live = self.repository.live
            if live is None or not self.repository.split:
                raise PublishError("no release has a share of the users: there is nothing to end")
            self.repository.pin(live)
            self._load_fronts()
            self._end_split()

    def _end_split(self) -> None:
        """Nobody is sent to the challenger any more."""
        for name in self.repository.aliases(CHALLENGER):
            if self.control:
                self.control.unload(name)
            shutil.rmtree(self.repository.root / name)

    def _load_fronts(self) -> float | None:
        """Let the server answer as `pin` has written -> ms that the longest took."""
        control = self.control
        if control is None:
            return None
        return max(control.load(name) for name in self.repository.fronts()) * 1e3

    def _load_members(self) -> None:
        """One after the other: requests keep what processor there is."""
        for member in self.repository.members():
            if self.control and member != ENSEMBLE:
                self.control.load(member)

    def _undo(self, number: int) -> None:
        """Leave nothing of a release that did not go live."""
        repository = self.repository
        shutil.rmtree(repository.staging(number), ignore_errors=True)
        live = repository.live
        if number == live or not repository.complete(number):
            return
        loaded = [n for n in repository.loaded() if n != number]
        repository.remove(number)
        if live is not None:
            repository.configure(live, loaded or [live])

    def _prune(self) -> None:
        spared = {self.repository.live, *self.repository.loaded()}
        others = [n for n in self.repository.releases() if n not in spared]
        surplus = len(others) + len(spared) - self.keep
        for number in others[: max(0, surplus)]:
            self.repository.remove(number)

    def _step(self, name: str, what: str = "") -> None:
        self._say(f"[{STEPS.index(name) + 1}/{len(STEPS)}] {name} {what}".rstrip())
