"""The labels of the further tasks of a row as float32; a row may not know one."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from cascade.columns import convert
from cascade.columns.convert import Converted, Wanted
from cascade.schema import Task

PREFIX = "@task."


def task_label(task: Task) -> Wanted:
    """How the column of a task is read: 0 or 1, or an amount; null where it is not known."""
    if task.kind == "amount":
        expected, read = "a finite number of 0 or more", _amount
    else:
        expected, read = "0 or 1", _binary
    name = f"{PREFIX}{task.name}"
    return Wanted(name, read, f"{expected}, or nothing where it is not known")


def _binary(column: pa.Array, of_text: bool) -> Converted:
    labels, wrong = convert.label(column, of_text)
    # Text that is no number is missing among the labels, too.
    unsaid = pc.is_null(column if of_text else labels, nan_is_null=True)
    labels = pc.if_else(pc.is_nan(labels), pa.scalar(None, pa.float32()), labels)
    return labels, None if wrong is None else wrong & ~unsaid.to_numpy(zero_copy_only=False)


def _amount(column: pa.Array, of_text: bool) -> Converted:
    amounts, wrong = convert.number("").convert(column, of_text)
    below = pc.fill_null(pc.less(amounts, 0), False).to_numpy(zero_copy_only=False)
    return amounts, below if wrong is None else wrong | below
