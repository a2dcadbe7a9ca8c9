"""The steps from one release to the next, while requests keep flowing.

Every step leaves the repository and the server with a whole release, so a publisher may be killed
in any of them. The next one begins by undoing what was not finished, or by finishing it where the
switch had already been written down.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from cascade.files import sync
from cascade.schema import Schema
from cascade.serving.pipeline import read_release
from cascade.serving.runtime import Array, ArtifactError
from cascade.spec import ENSEMBLE, RETRIEVE, stage_path
from export.canary import Canary
from export.control import Control, ControlError
from export.live import NEXT, Repository, configs_of
from export.manifest import verify

STEPS = ("recover", "make", "check", "install", "load", "canary", "switch", "confirm", "prune")
Make = Callable[[Path, int], None]
"""Writes a release of that number into that folder, as a repository of its own."""


class PublishError(RuntimeError):
    """A release that was not published; what was live before still is."""


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

    def publish(self, make: Make) -> Published:
        """Make a release, and let the server answer with it.

        Raises:
            ArtifactError: what was made is not whole, or does not fit the repository.
            BusyError: another publisher is at work.
            ControlError: the server does not answer or cannot load it.
            PublishError: the server answers otherwise than it should.
        """
        with self.repository.locked():
            self._recover()
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
                published = self._go_live(number)
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
            self._recover()
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

    def _recover(self) -> None:
        """Undo what a killed publisher did not finish, or finish what it had written down."""
        self._step("recover")
        repository = self.repository
        live = repository.live
        for number in repository.releases():
            if number == live:
                repository.settle(number)
            elif repository.pending(number):
                self._say(f"release {number} was never live: removed")
                repository.remove(number)
        for folder in [*repository.leftovers()]:
            shutil.rmtree(folder)
        if live is None:
            return
        loaded = repository.loaded()
        kept = [number for number in loaded if repository.complete(number)]
        if loaded and kept != loaded:
            repository.configure(live, kept)
            self._load_members()
        if self.control and self.control.release() != live:
            self._say(f"release {live} is written down as live: the server follows")
            self._load_members()
            self.control.load(ENSEMBLE)

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

    def _go_live(self, number: int) -> Published:
        """Load beside the live release, try, switch, and look whether it worked."""
        before, loaded = self.repository.live, self.repository.loaded()
        canary = Canary.from_dict(read_release(self.repository.root, number)["canary"])
        if number not in loaded or self.control is None:
            self._step("load", f"release {number} beside {before}")
            both = {number} if before is None or before == number else {before, number}
            self.repository.configure(number, [*both])
            self._load_members()
        self._step("canary", f"{len(canary.dense)} requests")
        if self.control:
            _compare(canary, self._try(number, canary), f"release {number}")
        self._step("switch", f"{before} -> {number}")
        self.repository.pin(number)
        switch_ms = self.control.load(ENSEMBLE) * 1e3 if self.control else None
        self.repository.settle(number)
        self._step("confirm")
        try:
            self._confirm(number, canary)
        except (ControlError, PublishError):
            if before is not None:
                self._say(f"back to release {before}")
                self.repository.pin(before)
                assert self.control
                self.control.load(ENSEMBLE)
            raise
        return Published(number, before, switch_ms)

    def _load_members(self) -> None:
        """One after the other: requests keep what processor there is."""
        for member in self.repository.members():
            if self.control and member != ENSEMBLE:
                self.control.load(member)

    def _try(self, number: int, canary: Canary) -> dict[str, Array]:
        """Ask the members of a release that is not live, as the ensemble would."""
        assert self.control
        known = {"dense": canary.dense, "categorical": canary.categorical}
        configs = configs_of(self.repository.root, number)
        if self.repository.members() == [ENSEMBLE]:
            return self._try_alone(number, known)
        for member in self.repository.members():
            inputs = {t.name: known[t.name] for t in configs[member].input if t.name in known}
            known |= self.control.ask(member, number, inputs)
        return known

    def _try_alone(self, number: int, inputs: dict[str, Array]) -> dict[str, Array]:
        """One process is the whole cascade, and loading it is the switch: try it under another
        name first."""
        assert self.control
        folder = self.repository.root / NEXT
        found = configs_of(self.repository.root, number)[ENSEMBLE]
        found.name = NEXT
        del found.instance_group[1:]
        found.version_policy.specific.versions[:] = [number]
        folder.mkdir()
        (folder / str(number)).symlink_to(self.repository.folder(number).resolve())
        (folder / "config.pbtxt").write_text(text_format.MessageToString(found))
        try:
            self.control.load(NEXT)
            answer = self.control.ask(NEXT, number, inputs)
            self.control.unload(NEXT)
        finally:
            shutil.rmtree(folder)
        return answer

    def _confirm(self, number: int, canary: Canary) -> None:
        if self.control is None:
            return
        users = {"dense": canary.dense, "categorical": canary.categorical}
        answer = self.control.ask(ENSEMBLE, None, users)
        if (found := {*answer["release"][:, 0].tolist()}) != {number}:
            raise PublishError(f"release {number} was switched to, and {sorted(found)} answers")
        _compare(canary, answer, f"release {number}, live")

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


def _compare(canary: Canary, answer: dict[str, Array], who: str) -> None:
    wrong: Sequence[str] = [*canary.differences(answer["item_ids"], answer["scores"])]
    if wrong:
        raise PublishError(f"{who} answers the canary requests wrongly: {'; '.join(wrong)}")
