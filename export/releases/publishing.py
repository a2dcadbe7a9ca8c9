"""The steps from one release to the next, while requests keep flowing. Every step leaves the
repository and the server with a whole release, so a publisher may be killed in any of them. The
next one first undoes what was not finished, or finishes it where the switch is already in
config.pbtxt."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascade.artifact import ArtifactError
from cascade.client.split import CHALLENGER
from cascade.config import of_release
from cascade.errors import CascadeError, writing
from cascade.files import sync
from cascade.release import read_release
from cascade.schema import Schema
from cascade.spec import RECOMMEND_USER, RETRIEVE, stage_path
from cascade.telling import say
from export.releases.canary import Canary, CanaryError, ask_after_switch, ask_before_switch
from export.releases.control import Control, ControlError
from export.releases.manifest import verify
from export.releases.repository import Repository
from export.releases.signing import Signer

STEPS = ("recover", "make", "check", "install", "load", "canary", "switch", "confirm", "prune")
Make = Callable[[Path, int], None]
"""Writes a release of that number into that folder, as a repository of its own."""


class PublishError(CascadeError):
    """The releases of the repository do not allow this."""


@dataclass(frozen=True)
class Published:
    """The result of a change: the release that is live now, and the one that was."""

    number: int
    before: int | None
    switch_ms: float | None  # None without a server


@dataclass
class Publisher:
    """Changes which release a repository, and the server on it, answer with."""

    repository: Repository
    control: Control | None = None  # None to change the repository alone
    keep: int = 3  # releases on disk, the live one and the one before among them
    say: Callable[[str], None] = say  # every step as it begins
    signer: Signer | None = None  # of what is published

    def publish(self, make: Make, share: float | None = None) -> Published:
        """Make a release, and let the server answer with it; with `share`, for that share of the
        users, while the others keep the live one.

        Raises ArtifactError: the release is damaged, or does not fit the repository; BusyError:
        another publisher is at work. ControlError, CanaryError: the server cannot load it, or does
        not answer as it should.
        """
        self.repository.check_wiring()
        with self.repository.locked(), writing(self.repository.root):
            self.recover()
            number = (self.repository.newest or 0) + 1
            staged = self.repository.staging(number)
            try:
                self._step("make", f"release {number}")
                make(staged, number)
                self._step("check", "every file against its manifest")
                self._check(verify(staged, number), number)
                if self.signer:
                    self.signer.sign(staged, number)
                self._step("install")
                sync(staged)
                self.repository.install(number)
                published = self._go_live(number) if share is None else self._split(number, share)
            except Exception:
                self._undo(number)
                raise
            self._step("prune", f"keep {self.keep}")
            self._prune()
            return published

    def roll_back(self, number: int | None = None) -> Published:
        """Let the server answer with an earlier release, by default the one before. Raises
        PublishError: there is no such release; otherwise as `publish`."""
        with self._changing():
            live, kept = self.repository.live, self.repository.releases()
            if number is None:
                loaded = self.repository.loaded()
                number = max({*(loaded if len(loaded) > 1 else kept)} - {live}, default=None)
            if number is None or number not in kept or number == live:
                raise PublishError(
                    f"cannot go back to {number or 'an earlier release'}: {live} is live, and "
                    f"kept are {kept}"
                )
            self._step("check", "every file against its manifest")
            verify(self.repository.root, number)
            return self._go_live(number)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """While no other publisher changes a repository that holds a release."""
        self.repository.check_published()
        self.repository.check_wiring()
        with self.repository.locked():
            self.recover()
            yield

    def recover(self) -> None:
        """Undo what a killed publisher did not finish, or finish what it had written down."""
        self._step("recover")
        repository, live = self.repository, self.repository.live
        if live is not None:
            repository.settle(live)
        pending = [number for number in repository.releases() if repository.pending(number)]
        if live is None:
            self._clean(pending)
            return
        loaded = repository.loaded()
        kept = [n for n in loaded if n in repository.releases() and n not in pending]
        if kept != loaded:
            # Before the files are deleted: the server may still be loading them, and server 2.51
            # waits for ever for a process that does not find its model.
            repository.configure(live, kept)
            self._load_members()
        if not repository.agreed:
            repository.pin(live, repository.split or None)
        self._clean(pending)
        if self.control and self.control.release() != live:
            self.say(f"config.pbtxt says that release {live} is live: the server follows")
            self._load_members()
            self._load_fronts()

    def _clean(self, numbers: list[int]) -> None:
        """Remove releases that were never live, and left-overs of others."""
        for number in numbers:
            self.say(f"release {number} was never live: removed")
            self.repository.remove(number)
        for folder in [*self.repository.leftovers()]:
            shutil.rmtree(folder)

    def _check(self, release: dict[str, Any], number: int) -> None:
        """Raises ArtifactError where the new release does not fit beside the live one."""
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
        """Load a release beside the live one, and ask it the canary requests of its export."""
        live, loaded = self.repository.live, self.repository.loaded()
        canary = Canary.from_dict(read_release(self.repository.root, number)["canary"])
        if number not in loaded or self.control is None:
            self._step("load", f"release {number} beside {live}")
            both = {number} if live is None else {live, number}
            self.repository.configure(number, [*both])
            self._load_members()
        self._step("canary", f"{len(canary.dense)} requests")
        if self.control:
            ask_before_switch(self.repository, self.control, number, canary)
        return canary

    def _go_live(self, number: int) -> Published:
        """Load beside the live release, ask, switch, and ask again; on an error switch back."""
        before = self.repository.live
        canary = self._load_beside(number)
        self._step("switch", f"{before} -> {number}")
        self.repository.pin(number)
        switch_ms = self._load_fronts()
        self.repository.settle(number)
        self._step("confirm")
        try:
            if self.control:
                ask_after_switch(self.control, number, canary)
        except (ControlError, CanaryError):
            if before is not None:
                self.say(f"back to release {before}")
                self.repository.pin(before)
                self._load_fronts()
            raise
        self._end_split()
        return Published(number, before, switch_ms)

    def split(self, number: int, share: float) -> Published:
        """Give a share of the users a release that is kept. Clients choose by a hash of the user's
        key, because a router in the server would cost every request a hop. Raises PublishError: the
        share is not between 0 and 1, or the release is live already."""
        with self._changing():
            return self._split(number, share)

    def _split(self, number: int, share: float) -> Published:
        live = self.repository.live
        if not 0 < share < 1 or live is None or number == live:
            raise PublishError(
                f"cannot give release {number} to {share:g} of the users while {live} is live: a "
                "share lies between 0 and 1, and the two are different releases"
            )
        self._load_beside(number)
        self._step("switch", f"{live} and, for {share:.0%}, {number}")
        for name in self.repository.alias(CHALLENGER, number):
            self._load(name)
        self.repository.pin(live, share)
        switch_ms = self._load_fronts()
        self.repository.settle(number)
        return Published(live, live, switch_ms)

    def end_split(self) -> None:
        """Give all users the live release."""
        with self._changing():
            live = self.repository.live
            if live is None or not self.repository.split:
                raise PublishError("no release has a share of the users: there is nothing to end")
            self.repository.pin(live)
            self._load_fronts()
            self._end_split()

    def _end_split(self) -> None:
        """Unload and delete the challenger's models."""
        for name in self.repository.aliases(CHALLENGER):
            if self.control:
                self.control.unload(name)
            shutil.rmtree(self.repository.root / name)

    def _load_fronts(self) -> float | None:
        """Let the server answer with the pinned release -> ms that the slowest model took."""
        if self.control is None:
            return None
        return max(self._load(name) for name in self.repository.fronts()) * 1e3

    def _load_members(self) -> None:
        """Load one model after the other, which leaves the processor to requests."""
        for member in self.repository.members():
            self._load(member)

    def _load(self, name: str) -> float:
        """Let the server load a model as it is on disk -> seconds; 0 without a server."""
        if self.control is None:
            return 0.0
        return self.control.load(name, self.repository.config(name), self.repository.signed)

    def _undo(self, number: int) -> None:
        """Remove all of a release that did not go live."""
        repository, live = self.repository, self.repository.live
        shutil.rmtree(repository.staging(number), ignore_errors=True)
        if number == live or number not in repository.releases():
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
        self.say(f"[{STEPS.index(name) + 1}/{len(STEPS)}] {name} {what}".rstrip())
