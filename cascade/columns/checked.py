"""Whole columns of which every value has to be usable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cascade.columns.convert import Wanted, WrongType

SHOWN = 40


@dataclass(frozen=True)
class Fault:
    """Why a column cannot be used: its type `came`, or the value of a `row`, counted from 1."""

    came: str
    expected: str
    row: int | None = None

    def of(self, name: str) -> str:
        """The same as words about a column of that name."""
        if self.row is None:
            return f"the column {name} is {self.came}; expected {self.expected}"
        return f"row {self.row}: {name} is {self.came}; expected {self.expected}"


def checked(
    column: pa.ChunkedArray,
    wanted: Wanted,
    error: Callable[[Fault], Exception],
    of_text: bool = False,
) -> pa.ChunkedArray:
    """A column, converted. Raises what `error` makes of its first fault.

    Args:
        of_text: it is of a file in which all values are text, such as CSV.
    """
    found, start = [], 0
    for chunk in column.chunks or [pa.array([], column.type)]:
        try:
            values, wrong = wanted.convert(chunk, of_text)
        except WrongType as fault:
            raise error(Fault(f"{column.type}", f"{fault}")) from fault
        if wrong is not None and wrong.any():
            row = int(np.argmax(wrong))
            raise error(Fault(shown(chunk[row]), wanted.expected, start + row + 1))
        found.append(values)
        start += len(chunk)
    return pa.chunked_array(found)


def shown(value: Any) -> str:
    """A value as an error shows it."""
    if not value.is_valid:
        return "missing"
    text = repr(plain(value))
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def plain(value: Any) -> Any:
    """A value of Arrow as Python has it; a moment beyond Python's years as its number."""
    try:
        return value.as_py()
    except (OverflowError, ValueError):
        return value.value
