"""Criteo's click logs: Kaggle's train.txt and the days of the 1TB set.

Tab separated, without a header: label, 13 integers, 26 categories as hex; empty = missing.
https://www.kaggle.com/c/criteo-display-ad-challenge and
https://ailab.criteo.com/download-criteo-1tb-click-logs-dataset/

The rows are in the order of time. As in the DLRM paper, the last of Kaggle's seven days and the
last day of the 1TB set are held out, one half to validate and the other to test. Kaggle's file
does not mark its days; a seventh of the rows stands for one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cascade.data.rows import RowFormat, is_integer, line_count, read_rows, shown
from cascade.data.source import BadRows, DataError, Log, Source, Split, file_identity, found_in
from cascade.schema import Feature, Schema

NUMBERS = tuple(f"I{i}" for i in range(1, 14))
CATEGORIES = tuple(f"C{i}" for i in range(1, 27))

# A value that was seen once can only be learnt by heart. The paper keeps all of them; here they
# share the out-of-vocabulary row, which makes the tables of the full set smaller and leaves a
# sample of ten thousand rows with a vocabulary.
MIN_COUNT = 2

# The data set does not say what its columns mean. That the numbers and the first six categories
# are the user's, the others the item's, is a choice of this program.
SCHEMA = Schema(
    "criteo",
    (
        *(Feature(name, "user", "dense", "log1p") for name in NUMBERS),
        *(
            Feature(name, "user" if i < 6 else "item", "categorical", "vocabulary", 1, MIN_COUNT)
            for i, name in enumerate(CATEGORIES)
        ),
    ),
)

_DAY = re.compile(r"day_(\d+)(\.gz)?")


class Criteo(Source):
    """One file, a folder with train.txt, or a folder of days; each file plain or gzip."""

    schema = SCHEMA
    log: Log = "impressions"

    def __init__(self, path: Path, bad: BadRows) -> None:
        self._files, self._bad = _files(path), bad
        for file in self._files:
            if not file.stat().st_size:
                raise DataError(f"{file} is empty")

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"source": "criteo", "files": [*map(file_identity, self._files)]}

    @property
    def total_rows(self) -> int | None:
        """Known for one file, which is counted to be split; days are only read."""
        return self._lines_of_last if len(self._files) == 1 else None

    @cached_property
    def _lines_of_last(self) -> int:
        return line_count(self._files[-1])

    def catalogue(self) -> None:
        """None: the log has no list of items."""

    def chunks(self, split: Split) -> Iterator[pa.Table]:
        """Rows in file order."""
        *days, last = self._files
        lines = self._lines_of_last
        held_out = lines if days else lines // 7
        train, test = lines - held_out, lines - held_out // 2
        bounds = {"train": (0, train), "validation": (train, test), "test": (test, lines)}
        for day in days if split == "train" else []:
            yield from read_rows(day, _FORMAT, self._bad)
        yield from read_rows(last, _FORMAT, self._bad, *bounds[split])


def _files(path: Path) -> list[Path]:
    """The files to read, the days in their order."""
    if path.is_file():
        return [path]
    if not path.exists():
        raise DataError(f"{path} does not exist")
    days: dict[int, Path] = {}
    for file in sorted(path.iterdir()):
        match = _DAY.fullmatch(file.name)
        if match and int(match[1]) in days:
            raise DataError(f"{path} has day {match[1]} twice, as {days[int(match[1])]} and {file}")
        if match:
            days[int(match[1])] = file
    if days:
        return [days[day] for day in sorted(days)]
    kaggle = [path / name for name in ("train.txt", "train.txt.gz") if (path / name).is_file()]
    if len(kaggle) == 1:
        return kaggle
    raise DataError(
        f"{path} holds no Criteo data: expected train.txt or day_0, day_1, … (each may be .gz), "
        f"found {found_in(path)}"
    )


def _well_formed(table: pa.Table) -> bool:
    labels = pc.min_max(table["label"])
    none_missing = table["label"].null_count == 0
    return bool(none_missing and labels["min"].as_py() >= 0 and labels["max"].as_py() <= 1)


def _fault(fields: list[bytes]) -> str | None:
    if fields[0] not in (b"0", b"1"):
        return f"the label is {shown(fields[0])}, not 0 or 1"
    for name, field in zip(NUMBERS, fields[1:], strict=False):
        if field and not is_integer(field):
            return f"{name} is {shown(field)}, not an integer"
    return None


_FORMAT = RowFormat(
    columns={
        **dict.fromkeys(("label", *NUMBERS), pa.int64()),
        **dict.fromkeys(CATEGORIES, pa.string()),
    },
    delimiter=b"\t",
    well_formed=_well_formed,
    fault=_fault,
)
