"""The definition of the past of items, read plainly, and a shop whose items have one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade.data import Dataset, prepare
from cascade.data.past import ITEM, PRIOR_EVENTS
from tests.own_tables import SCHEMA, write_shop

NAMES = [feature.name for feature in ITEM]
UNLABELLED = SCHEMA.replace("label: clicked\n", "")
Tables = dict[str, dict[str, list[Any]]]
Floats = npt.NDArray[np.float32]


def by_days(tables: Tables) -> None:
    """Many clicks at one time."""
    tables["clicks"]["at"] = [at[:10] for at in tables["clicks"]["at"]]


def shop(folder: Path, schema: str = SCHEMA, change: Callable[..., None] = by_days) -> Dataset:
    folder.mkdir(parents=True, exist_ok=True)
    return prepare("table", folder / "out", schema_file=write_shop(folder, schema, change))


def slow(log: list[tuple[int, float, float]], item: int, now: float, day: float) -> list[float]:
    """The definition, of a log of (item, label, time)."""
    own = [event for event in log if event[0] == item and event[2] < now]
    if not own:
        return [np.nan] * 3
    earlier = [label for _, label, time in log if time < now]
    likes = sum(label for _, label, _ in own) + PRIOR_EVENTS * sum(earlier) / len(earlier)
    return [len(own), likes / (len(own) + PRIOR_EVENTS), (now - own[0][2]) / day]


def log_of(dataset: Dataset) -> list[tuple[int, float, float]]:
    rows = dataset.read("train")
    return [*zip(rows.item.tolist(), rows.label.tolist(), rows.time.tolist(), strict=True)]  # type: ignore[union-attr]
