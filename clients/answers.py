"""Files of answers, one row per user, in the format of their suffix (`clients.tables`): the kept
columns, `item_ids`, `scores` and `error`."""

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
from clients.tables import CSV, RESULT_COLUMNS, arrow, is_parquet

GROUP_ROWS = 16_384  # of Parquet, in memory before they are written as one row group

Outcome = Recommendation | str
"""What the server recommends for a row, or why it was rejected."""

Write = Callable[[Any, Sequence[Outcome]], None]
"""Appends rows: the kept columns, and an answer or the text of an error for each."""


@contextmanager
def answer_file(path: Path, kept: Mapping[str, Any], string_ids: bool = False) -> Iterator[Write]:
    """The output: kept columns, of types as `UserTable.kept`; `item_ids`, 64-bit integers or, as
    the layout says, strings; `scores`, float32; `error`, missing where there is an answer. In CSV
    lists are joined by `|`.
    When the `with` block ends without an exception, the file replaces its target, so that a reader
    never sees half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with writing(path):
            if is_parquet(path):
                with _parquet(partial, kept, string_ids) as write:
                    yield write
            else:
                with partial.open("w", encoding="utf-8", newline="") as file:
                    yield (_csv if path.suffix.lower() in CSV else _json_lines)(file, kept)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _parquet(path: Path, kept: Mapping[str, Any], string_ids: bool) -> Iterator[Write]:
    pyarrow, parquet = arrow()
    ids = pyarrow.string() if string_ids else pyarrow.int64()
    kinds = pyarrow.list_(ids), pyarrow.list_(pyarrow.float32()), pyarrow.string()
    results = dict(zip(RESULT_COLUMNS, kinds, strict=True))
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


def _csv(file: TextIO, kept: Mapping[str, Any]) -> Write:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*kept, *RESULT_COLUMNS])

    def write(kept: Any, answers: Sequence[Outcome]) -> None:
        for row in _rows(kept, answers):
            writer.writerow([_cell(value) for value in row.values()])

    return write


def _json_lines(file: TextIO, kept: Mapping[str, Any]) -> Write:
    def write(kept: Any, answers: Sequence[Outcome]) -> None:
        for row in _rows(kept, answers):
            # NaN is the only value that differs from itself, and JSON has no word for it.
            plain = {name: None if value != value else value for name, value in row.items()}
            file.write(json.dumps(plain, ensure_ascii=False, default=_plain) + "\n")

    return write


def _rows(kept: Any, answers: Sequence[Outcome]) -> Iterator[dict[str, Any]]:
    rows = kept if isinstance(kept, list) else kept.to_pylist() or [{} for _ in answers]
    for row, answer in zip(rows, answers, strict=True):
        results = dict.fromkeys(RESULT_COLUMNS)
        if isinstance(answer, str):
            results["error"] = answer
        else:
            results["item_ids"] = answer.item_ids.tolist()
            # The shortest decimals of the float32; those of its double are twice as long.
            results["scores"] = [float(str(score)) for score in answer.scores]
        yield {**row, **results}


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
