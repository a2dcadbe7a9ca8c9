"""Untrained checkpoints of some size and their export, for measurements that need several."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cascade.release import newest_version, read_release
from cascade.spec import ENSEMBLE
from perf import payload
from perf.bound import configs
from perf.commands import heading
from perf.memory import run_watched
from perf.payload import Features, Payload


@dataclass(frozen=True)
class Artifacts:
    """Checkpoints, and the repository that was exported from them.

    Args:
        items: of the catalogue. ranker: the preset of the last stage, where it is known.
        fixture_s, export_s: how long it took to make them.
        fixture_peak_mb, export_peak_mb: the most memory that was held meanwhile.
    """

    checkpoints: Path
    repository: Path
    items: int
    ranker: str = ""
    fixture_s: float = 0.0
    fixture_peak_mb: float = 0.0
    export_s: float = 0.0
    export_peak_mb: float = 0.0

    @property
    def users_file(self) -> Path:
        return self.checkpoints / "users.jsonl"

    def users(self) -> Payload:
        """The users that came with the checkpoints."""
        return payload.load(self.users_file, features_of(self.repository))

    @classmethod
    def of(cls, checkpoints: Path, repository: Path) -> Artifacts:
        """What was made already."""
        release = read_release(repository, newest_version(repository))
        return cls(checkpoints, repository, int(release["items"]))


@dataclass(frozen=True)
class Wish:
    """What is to be made.

    Args:
        rows: Criteo rows whose users are sent; without them users are drawn.
        export: further arguments of `python -m export`.
    """

    items: int
    ranker: str
    device: str = "cpu"
    rows: Path | None = None
    export: Sequence[str] = ()


def make(wish: Wish, folder: Path) -> Artifacts:
    """Make checkpoints and a fused repository, with the tuned index.

    Raises:
        SystemExit: one of the two commands failed.
    """
    checkpoints, repository = folder / "checkpoints", folder / "repository"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    heading(f"{wish.items:,} items, ranker {wish.ranker}: {folder}")
    rows = ("--rows", wish.rows) if wish.rows else ()
    fixture_s, fixture_peak_mb = run_watched(
        "perf.fixture",
        *("--items", wish.items, "--ranker", wish.ranker, "--out", checkpoints, *rows),
    )
    export_s, export_peak_mb = run_watched(
        "export",
        *("--checkpoints", checkpoints, "--repository", repository),
        *("--index", "auto" if wish.device == "cpu" else "exact", "--device", wish.device),
        *("--topology", "fused", *wish.export),
    )
    return Artifacts(
        checkpoints,
        repository,
        wish.items,
        wish.ranker,
        fixture_s,
        fixture_peak_mb,
        export_s,
        export_peak_mb,
    )


def features_of(repository: Path) -> Features:
    """What the requests of an exported repository look like."""
    return Features.of(configs(repository, ENSEMBLE)[0])
