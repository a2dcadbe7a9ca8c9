"""Checkpoints of some size, and their export."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cascade.release import newest_version, read_release
from perf.harness import payload
from perf.harness.commands import run
from perf.harness.payload import Payload


@dataclass(frozen=True)
class Artifacts:
    """Checkpoints, and the repository that was exported from them.

    Args:
        items: rows of the catalogue.
        fixture_s, export_s: seconds that it took to make them.
    """

    checkpoints: Path
    repository: Path
    items: int
    fixture_s: float = 0.0
    export_s: float = 0.0

    @property
    def users_file(self) -> Path:
        return self.checkpoints / "users.jsonl"

    def users(self) -> Payload:
        """The users that came with the checkpoints."""
        return payload.load(self.users_file, payload.layout_of(self.repository))

    @classmethod
    def of(cls, checkpoints: Path, repository: Path) -> Artifacts:
        """Existing ones."""
        release = read_release(repository, newest_version(repository))
        return cls(checkpoints, repository, int(release["items"]))


@dataclass(frozen=True)
class Wish:
    """What is to be made.

    Args:
        ranker: of `perf.fixture`.
        export: further arguments of `python -m export`.
    """

    items: int
    ranker: str
    device: str = "cpu"
    export: Sequence[object] = ()


def make(wish: Wish, folder: Path) -> Artifacts:
    """Make checkpoints and a fused repository, with the tuned index.

    Raises:
        SystemExit: one of the two commands failed.
    """
    checkpoints, repository = folder / "checkpoints", folder / "repository"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    size = ("--items", wish.items, "--ranker", wish.ranker)
    fixture_s = run("perf.fixture", *size, "--out", checkpoints)
    export_s = export(wish, checkpoints, repository)
    return Artifacts(checkpoints, repository, wish.items, fixture_s, export_s)


def export(wish: Wish, checkpoints: Path, repository: Path) -> float:
    """Export checkpoints in the fused topology -> seconds."""
    where = ("--checkpoints", checkpoints, "--repository", repository, "--device", wish.device)
    index = ("--index", "auto" if wish.device == "cpu" else "exact")
    return run("export", *where, *index, "--topology", "fused", *wish.export)
