"""What a reader of raw data has to offer, whatever its files look like."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import pyarrow as pa
import pyarrow.compute as pc

from cascade.columns import convert
from cascade.columns.checked import Fault, checked
from cascade.columns.convert import Converted, Wanted, WrongType
from cascade.columns.labels import PREFIX, task_label
from cascade.errors import CascadeError
from cascade.schema import Feature, Schema

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Policy = Literal["error", "skip"]
# How the items of the rows were chosen: the system showed them, or the user took them.
Log = Literal["impressions", "choices"]
LOGS: tuple[Log, ...] = get_args(Log)
# Units that a time may be counted in, and numbers of them that lie between 1973 and 2100.
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
PLAUSIBLE = (10**8, 41 * 10**8)
TASK, TRUTH = PREFIX, "@truth."  # before the name of a task: its label, and its true chance or mean


class DataError(CascadeError, ValueError):
    """Input that cannot be read as it was named: the message has the file, and the line."""


class Source(Protocol):
    """Raw rows in chunks that fit in memory. Optional attributes: `total_rows`, of all splits, for
    the progress bar; `log`, how the items of the rows were chosen (`Log`); `notes`, sentences that
    the preparation prints; `item_past`, features of the items that the preparation computes from
    the training rows (`cascade.data.past.OfItems`): these need `@time`, and no table here has their
    columns. The smallest source, and what is made of it:

    >>> city = Feature("city", "user", "categorical", "vocabulary")
    >>> price = Feature("price", "item", "dense", "log1p")
    >>> class Visits:
    ...     schema = Schema("visits", (city, price))
    ...     fingerprint = {"source": "visits", "version": 1}
    ...     def catalogue(self):
    ...         return None  # two impressions of one price show the same item
    ...     def chunks(self, split):
    ...         yield pa.table({"label": [1, 0], "city": ["Oslo", None], "price": [9.5, 20]})
    >>> from cascade.data.prepare import write
    >>> write(Visits(), Visits.schema, folder)  # an empty folder; `prepare` adds source.json
    {'rows': {'train': 2, 'validation': 2, 'test': 2}, 'positives': {'train': 1, 'validation': 1, \
'test': 1}, 'items': 2, 'users': 0, 'times': False, 'probability': False}
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
        """Rows in their order, read once: `label` 0 or 1, or a boolean, every feature by its name
        (a number for dense, a string for the others, null = missing, several members joined by
        `|`). Of a schema with several tasks, `label` is that of the first, and `@task.NAME` that of
        each further one: 0 or 1, or an amount from 0 on; null = not known of this row. Optional:
        `probability`, the true chance of label 1, a number, and `@truth.NAME`, the true chance of a
        further task, or its mean; `@user`, who it was, any type that can be compared, null = not
        said; `@time`, when it was, a number, a timestamp or a date, null = not said. No number
        comes from text. With a `catalogue`, `item_id` takes the place of the item features: int64,
        or string where the schema has `string_ids`.
        """
        ...

    def catalogue(self) -> pa.Table | None:
        """The source's own list of items: `item_id` as in the rows, `title` string where there is
        one, raw item features by name. None: the items are the distinct item sides of all rows.
        """
        ...


@dataclass
class BadRows:
    """What becomes of malformed rows, and how many there were."""

    policy: Policy = "error"
    count: int = 0
    first: str = ""

    def add(self, path: Path, line: int | str, what: str) -> None:
        """Count a row, or refuse it by a `DataError`. Lines are counted from 1; a table without
        lines gives `row N`."""
        place = f"{path}:{line}" if isinstance(line, int) else f"{path}, {line}"
        message = f"{place}: {what}"
        if self.policy == "error":
            raise DataError(f"{message}. Mend the row, or pass --bad-rows skip to leave it out.")
        self.first = self.first or message
        self.count += 1


def _read(chunk: pa.Table, wanted: Wanted, split: Split, start: int) -> pa.ChunkedArray:
    """A column of a chunk, converted; `start` rows of the split came before it. A `DataError` for
    a type or a value that cannot be used."""

    def error(fault: Fault) -> DataError:
        if fault.row is None:
            came = f"the source gives {wanted.name} as {fault.came}"
        else:
            came = f"row {start + fault.row} of the {split} split: {wanted.name} is {fault.came}"
        return DataError(f"{came}; expected {fault.expected}")

    return checked(chunk[wanted.name], wanted, error)


def label_column(chunk: pa.Table) -> pa.ChunkedArray:
    """The labels of a chunk as float32, whatever their values. A `DataError` where there are none,
    or where they are neither numbers nor booleans."""
    if "label" not in chunk.column_names:
        raise DataError(f"the source gives no column label; it gives {chunk.column_names}")
    # Which of them are no labels is the caller's question.
    wanted = Wanted("label", lambda column, text: (convert.label(column, text)[0], None), "")
    return _read(chunk, wanted, "train", 0)


def is_label(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    """Where labels are 0 or 1."""
    return pc.fill_null(pc.is_in(labels, value_set=pa.array([0, 1], labels.type)), False)


def labels(chunk: pa.Table, split: Split, start: int) -> pa.ChunkedArray:
    """The labels of a chunk as float32; `start` rows of the split came before it. One that is
    neither 0 nor 1 is a `DataError`."""
    found = label_column(chunk)
    place = pc.index(is_label(found), False).as_py()
    if place >= 0:
        raise DataError(
            f"row {start + place + 1} of the {split} split has the label {chunk['label'][place]}; "
            "a label is 0 or 1: leave the row out, or say what it means"
        )
    return found


def task_columns(
    schema: Schema, chunk: pa.Table, split: Split, start: int
) -> dict[str, pa.ChunkedArray]:
    """The columns of the further tasks of a chunk as float32, `@task.NAME`, null where a row does
    not know one, and `@truth.NAME` where there is one. Raises as `labels`."""
    found = {}
    for task in schema.tasks[1:]:
        wanted = task_label(task)
        if wanted.name not in chunk.column_names:
            raise DataError(
                f"the schema has the task {task.name}, and the source gives no column "
                f"{wanted.name}; it gives {chunk.column_names}"
            )
        found[wanted.name] = _read(chunk, wanted, split, start)
        truth = f"{TRUTH}{task.name}"
        if truth in chunk.column_names:
            found[truth] = _read(chunk, convert.number(truth), split, start)
    return found


def knows_truth(schema: Schema, names: Iterable[str]) -> bool:
    """Whether columns of these names tell the truth of every task, where there are several."""
    truths = {"probability", *(f"{TRUTH}{task.name}" for task in schema.tasks[1:])}
    return len(schema.tasks) > 1 and truths <= {*names}


def check_tasks(schema: Schema) -> None:
    """Whether `label` can be that of the first task. A `DataError` says what is wrong."""
    first = schema.tasks[0]
    if first.kind != "binary":
        raise DataError(
            f"schema {schema.name}: the first task, {first.name}, is an {first.kind}; expected a "
            "binary one, because its label says which rows are positives: put such a task first"
        )


def time_column(chunk: pa.Table, split: Split, start: int) -> pa.ChunkedArray:
    """`@time` of a chunk as int64 or float64: numbers as they are, timestamps and dates as
    microseconds since 1970 in UTC; null where it is missing. Raises as `labels`."""
    return _read(
        chunk, Wanted("@time", _moments, "a time, a finite number of 64 bits"), split, start
    )


def times(chunk: pa.Table, split: Split, start: int) -> pa.ChunkedArray:
    """The same as float64; what is missing is NaN."""
    # Nanoseconds since 1970 are rounded to 256 of them.
    moments = time_column(chunk, split, start).cast(pa.float64(), safe=False)
    return pc.fill_null(moments, float("nan"))


def _moments(column: pa.Array, of_text: bool) -> Converted:
    column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    kind = column.type
    if pa.types.is_null(kind) or pa.types.is_decimal(kind):
        column = pc.cast(column, pa.float64())
    elif not any(is_kind(kind) for is_kind in _TIMES):  # tables alone have times as text
        raise WrongType("numbers or timestamps")
    moments, wrong = convert.time(column, of_text)
    missing = pc.is_null(column, nan_is_null=True)
    moments = pc.if_else(missing, pa.scalar(None, moments.type), moments)
    return moments, wrong & ~missing.to_numpy(zero_copy_only=False)


def probabilities(chunk: pa.Table, split: Split, start: int) -> pa.ChunkedArray:
    """`probability` of a chunk as float32, null where it is missing. Raises as `labels`."""
    return _read(chunk, convert.number("probability"), split, start)


def titles(items: pa.Table) -> pa.ChunkedArray:
    """`title` of items as strings. Raises as `labels`."""
    return _read(items, Wanted("title", convert.title, "a string"), "train", 0)


def user_column(chunk: pa.Table) -> pa.ChunkedArray:
    """`@user` of a chunk, as it is. A `DataError` where users cannot be compared."""
    if pa.types.is_nested(kind := chunk["@user"].type):
        raise DataError(f"the source gives @user as {kind}; expected strings or integers")
    return chunk["@user"]


def unit(time: float) -> str | None:
    """The unit in which a time counts from 1970; None where it seems to count something else."""
    for name, each in UNITS.items():
        if PLAUSIBLE[0] * each <= time < PLAUSIBLE[1] * each:
            return name
    return None


_TIMES = (pa.types.is_integer, pa.types.is_floating, pa.types.is_timestamp, pa.types.is_date)
_EITHER = (pa.types.is_integer, pa.types.is_null)
_NUMBERS = (*_EITHER, pa.types.is_floating, pa.types.is_decimal)
_TEXTS = (
    *(*_EITHER, pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_date),
)


def typed(features: Iterable[Feature], table: pa.Table) -> pa.Table:
    """The raw columns of some features: float32 for dense, to which large integers are rounded,
    string for the others. A `DataError` for a number that is given as text or as a boolean, and for
    another value that is given as a number with a fraction."""
    types = {f.name: pa.float32() if f.kind == "dense" else pa.string() for f in features}
    missing = [name for name in types if name not in table.column_names]
    if missing:
        raise DataError(
            f"the source gives no column for the features {missing}; it gives {table.column_names}"
        )
    columns = {}
    for name, type_ in types.items():
        kind = table[name].type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(is_kind(kind) for is_kind in (_NUMBERS if type_ == pa.float32() else _TEXTS)):
            raise DataError(f"feature {name}: {kind} came, and {type_} was expected")
        try:
            rounded = type_ == pa.float32() and pa.types.is_integer(kind)
            columns[name] = table[name].cast(type_, safe=not rounded)
        except pa.ArrowException as error:
            came = f"feature {name}: {table[name].type} came, and {type_} was expected"
            raise DataError(f"{came}: {error}") from error
    return pa.table(columns)


def file_identity(path: Path) -> dict[str, Any]:
    """A file as part of a fingerprint: reading gigabytes for a checksum would cost a pass."""
    stat = path.stat()
    return {"path": str(path.resolve()), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def found_in(folder: Path) -> str:
    """The first files of a folder, for an error that expected others."""
    return ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
