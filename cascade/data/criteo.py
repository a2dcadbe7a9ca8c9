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

from cascade.data.lines import line_count
from cascade.data.rows import RowFormat, is_integer, read_rows, shown
from cascade.data.source import BadRows, DataError, Source, Split, file_identity
from cascade.schema import Feature, Schema, Side

NUMBERS = tuple(f"I{i}" for i in range(1, 14))
CATEGORIES = tuple(f"C{i}" for i in range(1, 27))

# A value that was seen once can only be learnt by heart. The paper keeps all of them; here they
# share the out-of-vocabulary row, which makes the tables of the full set smaller and leaves a
# sample of ten thousand rows with a vocabulary.
MIN_COUNT = 2

# The data set does not say what its columns mean. That the numbers and the first six categories
# are the user's, the others the item's, is a choice of this program.
_SIDES: dict[Side, tuple[str, ...]] = {"user": CATEGORIES[:6], "item": CATEGORIES[6:]}
SCHEMA = Schema(
    "criteo",
    (
        *(Feature(name, "user", "dense", "log1p") for name in NUMBERS),
        *(
            Feature(name, side, "categorical", "vocabulary", min_count=MIN_COUNT)
            for side, names in _SIDES.items()
            for name in names
        ),
    ),
)

_DAY = re.compile(r"day_(\d+)(\.gz)?")


class Criteo(Source):
    """One file, a folder with train.txt, or a folder of days; each file plain or gzip.

    Args:
        path: the file or the folder.
        bad: takes the malformed rows.

    Raises:
        DataError: nothing of that kind is there.
    """

    def __init__(self, path: Path, bad: BadRows) -> None:
        self._bad = bad
        self._files = _files(path)
        empty = next((file for file in self._files if not file.stat().st_size), None)
        if empty is not None:
            raise DataError(f"{empty} is empty")

    @property
    def schema(self) -> Schema:
        return SCHEMA

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"source": "criteo", "files": [file_identity(file) for file in self._files]}

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
        """Rows in file order.

        Raises:
            DataError: a malformed row, by file and line, unless such rows are skipped.
        """
        *days, last = self._files
        lines = self._lines_of_last
        held_out = lines if days else lines // 7
        train, half = lines - held_out, held_out // 2
        start, stop = {
            "train": (0, train),
            "validation": (train, lines - half),
            "test": (lines - half, lines),
        }[split]
        for day in days if split == "train" else []:
            yield from self._rows(day)
        yield from self._rows(last, start, stop)

    def _rows(self, path: Path, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        for table in read_rows(path, _FORMAT, self._bad, start, stop):
            for position, name in enumerate(("label", *NUMBERS)):
                table = table.set_column(position, name, pc.cast(table[name], pa.float32()))
            yield table


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
    found = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
    raise DataError(
        f"{path} holds no Criteo data: expected train.txt or day_0, day_1, … (each may be .gz), "
        f"found {found}"
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
