"""The table of a repository's releases."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from cascade.release import read_release
from cascade.spec import RANK
from export.releases.repository import Repository

HEADER = ("release", "state", "age", "items", "AUC", "NE", "parity", "MB")


def table(repository: Repository) -> list[tuple[str, ...]]:
    """A row for each release, the oldest first, in the columns of `HEADER`."""
    rows: list[tuple[str, ...]] = []
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
