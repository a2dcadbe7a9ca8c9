"""Checkpoints of some size, and their export."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perf.harness import payload
from perf.harness.commands import run
from perf.harness.payload import Payload


@dataclass(frozen=True)
class Artifacts:
    """Checkpoints, and the repository that was exported from them in `export_s` seconds."""

    checkpoints: Path
    repository: Path
    items: int
    export_s: float = 0.0

    @property
    def users_file(self) -> Path:
        return self.checkpoints / "users.jsonl"

    def users(self) -> Payload:
        """The users that came with the checkpoints."""
        return payload.load(self.users_file, payload.layout_of(self.repository))


def make(
    folder: Path, items: int, ranker: str, device: str = "cpu", options: Sequence[object] = ()
) -> Artifacts:
    """Checkpoints, with a ranker of `perf.fixture`, and their `export`. Raises SystemExit."""
    checkpoints, repository = folder / "checkpoints", folder / "repository"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run("perf.fixture", "--items", items, "--ranker", ranker, "--out", checkpoints)
    export_s = export(checkpoints, repository, device, options)
    return Artifacts(checkpoints, repository, items, export_s)


def export(checkpoints: Path, repository: Path, device: str, options: Sequence[object]) -> float:
    """Export in the fused topology with the tuned index, and further options -> seconds."""
    where = ("--checkpoints", checkpoints, "--repository", repository, "--device", device)
    index = ("--index", "auto" if device == "cpu" else "exact")
    return run("export", *where, *index, "--topology", "fused", *options)
