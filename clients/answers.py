"""Files of answers, one row per user, in the format of their suffix (`clients.tables`): the kept
columns, `item_ids`, `scores` and `error`, and `task_NAME` for each task of a ranker of several."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from cascade.client import Recommendation
from cascade.errors import writing
from cascade.values import SEPARATOR
from clients.tables import CSV, RESULT_COLUMNS, arrow, is_parquet, task_column

GROUP_ROWS = 16_384  # of Parquet, in memory before they are written as one row group

Outcome = Recommendation | str
"""What the server recommends for a row, or why it was rejected."""

Write = Callable[[Any, Sequence[Outcome]], None]
"""Appends rows: the kept columns, and an answer or the text of an error for each."""


@contextmanager
def answer_file(
    path: Path, kept: Mapping[str, Any], string_ids: bool = False, tasks: Sequence[str] = ()
) -> Iterator[Write]:
    """The output: kept columns, of types as `UserTable.kept`; `item_ids`, 64-bit integers or, as
    the layout says, strings; `scores`, float32; `error`, missing where there is an answer; of each
    task, as the layout names them, a column like `scores`. In CSV lists are joined by `|`.
    When the `with` block ends without an exception, the file replaces its target, so that a reader
    never sees half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with writing(path):
            if is_parquet(path):
                with _parquet(partial, kept, string_ids, tasks) as write:
                    yield write
            else:
                with partial.open("w", encoding="utf-8", newline="") as file:
                    write_rows = _csv if path.suffix.lower() in CSV else _json_lines
                    yield write_rows(file, kept, tasks)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _parquet(
    path: Path, kept: Mapping[str, Any], string_ids: bool, tasks: Sequence[str]
) -> Iterator[Write]:
    pyarrow, parquet = arrow()
    ids = pyarrow.string() if string_ids else pyarrow.int64()
    kinds = pyarrow.list_(ids), pyarrow.list_(pyarrow.float32()), pyarrow.string()
    results = dict(zip(RESULT_COLUMNS, kinds, strict=True))
    results |= {task_column(name): kinds[1] for name in tasks}
    known = {
        name: pyarrow.type_for_alias(kind) if isinstance(kind, str) else kind
        for name, kind in kept.items()
    }
    schema = pyarrow.schema({**known, **results})
    waiting: list[Any] = []

    def write(kept: Any, answers: Sequence[Outcome]) -> None:
        found = [answer if isinstance(answer, Recommendation) else None for answer in answers]
        values = {
            "item_ids": [answer and answer.item_ids for answer in found],
            "scores": [answer and answer.scores for answer in found],
            "error": [answer if isinstance(answer, str) else None for answer in answers],
        }
        values |= {
            task_column(name): [answer and (answer.task_scores or {}).get(name) for answer in found]
            for name in tasks
        }
        columns = [pyarrow.array(values[name], kind) for name, kind in results.items()]
        waiting.append(pyarrow.RecordBatch.from_arrays([*passed(kept), *columns], schema=schema))
        if sum(map(len, waiting)) >= GROUP_ROWS:
            flush()

    def passed(kept: Any) -> list[Any]:
        if not isinstance(kept, list):
            return list(kept.columns)
        texts = {name for name, kind in known.items() if kind == pyarrow.string()}
        return [
            pyarrow.array([_text(row[name]) if name in texts else row[name] for row in kept], kind)
            for name, kind in known.items()
        ]

    def flush() -> None:
        file.write_table(pyarrow.Table.from_batches(waiting, schema).combine_chunks())
        waiting.clear()

    with parquet.ParquetWriter(path, schema) as file:
        yield write
        if waiting:
            flush()


def _csv(file: TextIO, kept: Mapping[str, Any], tasks: Sequence[str]) -> Write:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*kept, *RESULT_COLUMNS, *map(task_column, tasks)])

    def write(kept: Any, answers: Sequence[Outcome]) -> None:
        for row in _rows(kept, answers, tasks):
            writer.writerow([_cell(value) for value in row.values()])

    return write


def _json_lines(file: TextIO, kept: Mapping[str, Any], tasks: Sequence[str]) -> Write:
    def write(kept: Any, answers: Sequence[Outcome]) -> None:
        for row in _rows(kept, answers, tasks):
            # NaN is the only value that differs from itself, and JSON has no word for it.
            plain = {name: None if value != value else value for name, value in row.items()}
            file.write(json.dumps(plain, ensure_ascii=False, default=_plain) + "\n")

    return write


def _rows(kept: Any, answers: Sequence[Outcome], tasks: Sequence[str]) -> Iterator[dict[str, Any]]:
    rows = kept if isinstance(kept, list) else kept.to_pylist() or [{} for _ in answers]
    for row, answer in zip(rows, answers, strict=True):
        results: dict[str, Any] = dict.fromkeys((*RESULT_COLUMNS, *map(task_column, tasks)))
        if isinstance(answer, str):
            results["error"] = answer
        else:
            results["item_ids"] = answer.item_ids.tolist()
            results["scores"] = _decimals(answer.scores)
            for name in tasks:
                if (given := (answer.task_scores or {}).get(name)) is not None:
                    results[task_column(name)] = _decimals(given)
        yield {**row, **results}


def _decimals(values: Any) -> list[float]:
    """The shortest decimals of float32; those of a double are twice as long."""
    return [float(str(value)) for value in values]


def _cell(value: Any) -> str:
    if isinstance(value, list):
        members = [_text(member) or "" for member in value]
        if not any(SEPARATOR in member for member in members):
            return SEPARATOR.join(members)
    return _text(value) or ""


def _text(value: Any) -> Any:
    """A value as text; None where it is missing."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=_plain).strip('"')


def _plain(value: Any) -> str:
    """A value that JSON has no form for, such as a date."""
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
