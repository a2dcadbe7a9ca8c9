"""Users out of a Parquet file and recommendations into another, a few rows at a time.

The only part of the clients that needs pyarrow; it is imported when a file is opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cascade.client import Recommendation
from cascade.errors import need
from cascade.layout import RequestLayout
from cascade.values import unknown_name
from clients.options import UsageError

GROUP_ROWS = 16_384
"""Rows of the output that are held in memory before they are written as one row group."""

RESULT_COLUMNS = ("item_ids", "scores", "error")


def arrow() -> tuple[Any, ...]:
    """The modules pyarrow and pyarrow.parquet.

    Raises:
        MissingPackage: the extra `batch` is not installed.
    """
    return tuple(need(name, "clients.batch", "batch") for name in ("pyarrow", "pyarrow.parquet"))


class UserFile:
    """A Parquet file with one user per row, columns named by feature.

    Args:
        keep: columns to hand through to the output, for instance the user's id.

    Raises:
        InvalidInput: no feature among its columns.
        UsageError: not a Parquet file, or no such column to keep.
    """

    def __init__(self, path: Path, layout: RequestLayout, keep: Sequence[str]) -> None:
        pyarrow, parquet = arrow()
        try:
            self._file = parquet.ParquetFile(path)
        except pyarrow.ArrowInvalid as error:
            raise UsageError(f"{path} is not a Parquet file: {error}") from error
        schema = self._file.schema_arrow
        self.features, self.absent = layout.of_columns(schema.names, str(path))
        for name in keep:
            if name not in schema.names:
                raise UsageError(f"{path}: --keep: {unknown_name('column', name, schema.names)}")
            if name in RESULT_COLUMNS:
                raise UsageError(f"--keep {name}: the output has a column of this name; rename it")
        self.kept = [schema.field(name) for name in dict.fromkeys(keep)]
        self.rows: int = self._file.metadata.num_rows

    def batches(self, size: int) -> Iterator[tuple[list[dict[str, Any]], Any]]:
        """Up to `size` users at a time, and their kept columns as a table."""
        kept = [field.name for field in self.kept]
        columns = list(dict.fromkeys([*self.features, *kept]))
        for batch in self._file.iter_batches(batch_size=size, columns=columns):
            yield batch.select(self.features).to_pylist(), batch.select(kept)


class AnswerFile:
    """The output: kept columns, `item_ids` list<int64>, `scores` list<float32> and `error`, which
    is null where there is an answer.

    It is written under a temporary name beside the target and renamed when the `with` block ends
    without an exception, so that a reader never sees half a file. A target that exists is replaced.
    """

    def __init__(self, path: Path, kept: Sequence[Any]) -> None:
        self._arrow, self._parquet = arrow()
        self._path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._types = {
            "item_ids": self._arrow.list_(self._arrow.int64()),
            "scores": self._arrow.list_(self._arrow.float32()),
            "error": self._arrow.string(),
        }
        self._schema = self._arrow.schema([*kept, *self._types.items()])
        self._waiting: list[Any] = []
        self._waiting_rows = 0

    def write(self, kept: Any, answers: Sequence[Recommendation | str]) -> None:
        """Append rows: the kept columns, and an answer or the text of an error for each."""
        found = [answer if isinstance(answer, Recommendation) else None for answer in answers]
        values = {
            "item_ids": [answer and answer.item_ids for answer in found],
            "scores": [answer and answer.scores for answer in found],
            "error": [answer if isinstance(answer, str) else None for answer in answers],
        }
        columns = [self._arrow.array(values[name], kind) for name, kind in self._types.items()]
        self._waiting.append(
            self._arrow.RecordBatch.from_arrays([*kept.columns, *columns], schema=self._schema)
        )
        self._waiting_rows += len(answers)
        if self._waiting_rows >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        table = self._arrow.Table.from_batches(self._waiting, self._schema).combine_chunks()
        self._writer.write_table(table)
        self._waiting, self._waiting_rows = [], 0

    def __enter__(self) -> AnswerFile:
        self._writer = self._parquet.ParquetWriter(self._partial, self._schema)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self._waiting:
                self._flush()
            self._writer.close()
            if kind is None:
                self._partial.replace(self._path)
        finally:
            self._partial.unlink(missing_ok=True)
