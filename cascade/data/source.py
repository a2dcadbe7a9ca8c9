"""What a reader of raw data has to offer, whatever its files look like."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa

from cascade.errors import CascadeError
from cascade.schema import Schema

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Policy = Literal["error", "skip"]


class DataError(CascadeError, ValueError):
    """Input that cannot be read as it was named: the message has the file, and the line."""


class Source(Protocol):
    """Raw rows in chunks that fit in memory.

    A source that knows how many rows all its splits have says so in an optional attribute
    `total_rows`, for the progress bar.
    """

    @property
    def schema(self) -> Schema:
        """Declared, not yet fitted."""
        ...

    @property
    def fingerprint(self) -> dict[str, Any]:
        """JSON that changes when the rows would: paths, sizes, times, options."""
        ...

    def chunks(self, split: Split) -> Iterator[pa.Table]:
        """Rows in their order, read once: `label` float32, every feature by its name (float32
        for dense, string for the others, null = missing, members of a bag joined by `|`).
        Optional: `probability` float32, the true chance of a click. With a `catalogue`, `item_id`
        int64 takes the place of the item features.
        """
        ...

    def catalogue(self) -> pa.Table | None:
        """The source's own list of items: `item_id` int64, `title` string where there is one, raw
        item features by name. None: the items are the distinct item sides of all rows.
        """
        ...


@dataclass
class BadRows:
    """What becomes of malformed rows, and how many there were."""

    policy: Policy = "error"
    count: int = 0
    first: str = ""

    def add(self, path: Path, line: int, what: str) -> None:
        """Count a row, or refuse it. Lines are counted from 1.

        Raises:
            DataError: unless the policy is to skip.
        """
        message = f"{path}:{line}: {what}"
        if self.policy == "error":
            raise DataError(f"{message}. Mend the row, or pass --bad-rows skip to leave it out.")
        self.first = self.first or message
        self.count += 1


def file_identity(path: Path) -> dict[str, Any]:
    """A file as part of a fingerprint: reading gigabytes for a checksum would cost a pass."""
    stat = path.stat()
    return {"path": str(path.resolve()), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
