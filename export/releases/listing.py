"""`python -m export releases --repository DIR`: the releases of a repository, and which is live."""

from __future__ import annotations

import argparse
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cascade.errors import run
from cascade.release import read_release
from cascade.spec import RANK
from export.releases.repository import Repository

HEADER = ("release", "state", "age", "items", "AUC", "NE", "parity", "MB")


def table(repository: Repository) -> list[tuple[str, ...]]:
    """A row for each release, the oldest first, below `HEADER`."""
    rows: list[tuple[str, ...]] = [HEADER]
    for number in repository.releases():
        release = read_release(repository.root, number)
        metrics = release["stages"][RANK].get("metrics", {})
        sizes = (f["bytes"] for files in release.get("files", {}).values() for f in files.values())
        rows.append(
            (
                str(number),
                _state(repository, number),
                _age(release),
                f"{release['items']:,}",
                *(_number(metrics.get(name)) for name in ("auc", "normalized_entropy")),
                f"{release['parity_max_abs']:.1e}",
                f"{sum(sizes) / 1e6:,.0f}",
            )
        )
    return rows


def _state(repository: Repository, number: int) -> str:
    if number == repository.live:
        return "live"
    if number == repository.challenger:
        return f"{repository.split:.0%} of users"
    if number in repository.loaded():
        return "loaded"
    return "unfinished" if repository.pending(number) else "kept"


def _age(release: dict[str, Any]) -> str:
    if "made" not in release:
        return "unknown"
    age = datetime.now(timezone.utc) - datetime.fromisoformat(release["made"])
    return str(timedelta(seconds=round(age.total_seconds())))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m export releases", description=__doc__)
    parser.add_argument("--repository", type=Path, required=True)
    rows = table(Repository(parser.parse_args().repository))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    run(main)
