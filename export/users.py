"""Raw users into a store: from a Parquet table with one user per row, columns named by feature, in
the form of the training data; or from JSON lines with users as clients send them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from cascade import pbtxt, values
from cascade.artifact import ArtifactError
from cascade.columns import convert
from cascade.columns.checked import Fault, checked
from cascade.columns.convert import Wanted
from cascade.encoding import InvalidInput
from cascade.layout import Categorical, Dense, RequestLayout
from cascade.spec import ENSEMBLE
from cascade.store import UserStore
from cascade.store.users import key
from export.context import Source
from export.releases.repository import Repository

CHUNK = 10_000  # users of one transaction

Chunk = tuple[list[Any], Dense, Categorical]
"""B users: their ids, dense [B, F_dense] and categorical [B, F_cat] as clients send them."""


class Table:
    """A Parquet file of users, whose ids are in `id_column`; None numbers the rows from 0 on.
    Raises InvalidInput: not Parquet, or it lacks the id column, or every feature."""

    def __init__(self, path: Path, layout: RequestLayout, id_column: str | None) -> None:
        try:
            self._file = pq.ParquetFile(path)
        except FileNotFoundError as error:
            raise InvalidInput(f"there is no file {path}") from error
        except pa.ArrowInvalid as error:
            raise InvalidInput(f"{path} is not a Parquet file: {error}") from error
        names = self._file.schema_arrow.names
        if id_column is not None and id_column not in names:
            raise InvalidInput(
                f"{path}: {values.unknown_name('column', id_column, names)}; --id-column names the "
                "one with the ids, --row-ids numbers the rows"
            )
        self._path, self._layout, self._id_column = path, layout, id_column
        self._present, self.absent = layout.of_columns(names, str(path))
        self.rows: int = self._file.metadata.num_rows

    def chunks(self) -> Iterator[Chunk]:
        """In the order of the file. Raises InvalidInput: a column of a wrong type, a bad value."""
        columns = [*self._present, *([self._id_column] if self._id_column else [])]
        first = 0
        for batch in self._batches(list(dict.fromkeys(columns))):
            dense, categorical = self._layout.empty(len(batch))
            for name in self._present:
                place, feature = self._layout.columns[name], self._layout.id_features.get(name)
                wanted = convert.number(name) if feature is None else convert.feature(feature)
                values = self._checked(batch[name], wanted, first)
                if feature is None:
                    dense[:, place] = values.to_numpy()
                else:
                    categorical[:, place] = [feature.to_wire(text) for text in values.to_pylist()]
            rows = range(first, first + len(batch))
            ids = batch[self._id_column].to_pylist() if self._id_column else [*rows]
            yield ids, dense, categorical
            first = rows.stop

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._file.iter_batches(CHUNK, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise InvalidInput(f"{self._path} cannot be read: {error}") from error

    def _checked(self, column: pa.Array, wanted: Wanted, first: int) -> pa.ChunkedArray:
        def error(fault: Fault) -> InvalidInput:
            if fault.row is None:
                came = f"a column of {fault.came} came; expected {fault.expected}"
                return InvalidInput(f"{self._path}: feature {wanted.name}: {came}")
            row = f"{self._path}, row {first + fault.row}: feature {wanted.name}"
            return InvalidInput(f"{row}: {fault.came} is not {fault.expected}")

        return checked(pa.chunked_array([column]), wanted, error)


class Lines:
    """A file of JSON lines: one object of raw feature values by name each, the id among them."""

    absent: tuple[str, ...] = ()

    def __init__(self, path: Path, layout: RequestLayout, id_column: str | None) -> None:
        self._path, self._layout, self._id_column = path, layout, id_column
        with path.open("rb") as file:
            self.rows = sum(1 for line in file if line.strip())

    def chunks(self) -> Iterator[Chunk]:
        """In the order of the file. Raises InvalidInput: names the line and the value."""
        with self._path.open("rb") as file:
            lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
            first = 0
            while some := [*islice(lines, CHUNK)]:
                yield self._chunk(some, first)
                first += len(some)

    def _chunk(self, lines: list[tuple[int, bytes]], first: int) -> Chunk:
        dense, categorical = self._layout.empty(len(lines))
        ids: list[Any] = []
        for row, (number, line) in enumerate(lines):
            try:
                user = values.of_json(line)
                if not isinstance(user, dict):
                    raise ValueError("a user is a JSON object of feature values by name")
                if self._id_column is not None and self._id_column not in user:
                    raise ValueError(f"there is no {self._id_column!r}, which holds the id")
                own = self._id_column is not None
                ids.append(key(user.pop(self._id_column) if own else first + row))
                self._layout.fill(user, dense[row], categorical[row])
            except ValueError as error:
                raise InvalidInput(f"{self._path}, line {number}: {error}") from error
        return ids, dense, categorical


def write(table: Table | Lines, store: UserStore, replace: bool = False) -> tuple[int, int]:
    """Write all users of a table; returns how many, and how many others were removed.

    The store replaces a user as a whole. Of a chunk of rows LMDB shows either none or all, and
    readers go on meanwhile; after an interrupted run, run it again. `replace` removes the users
    that the table lacks: that keeps all ids in memory, about 100 bytes each.
    """
    seen: set[bytes] = set()
    with tqdm(total=table.rows, unit=" users", unit_scale=True) as bar:
        for ids, dense, categorical in table.chunks():
            store.put(ids, dense, categorical)
            if replace:
                seen.update(map(key, ids))
            bar.update(len(ids))
    return table.rows, store.keep_only(seen) if replace else 0


def layout_of(repository: Path) -> RequestLayout:
    """The users' features in a repository. Raises ArtifactError: no exported cascade."""
    parameters = Repository(repository).config(ENSEMBLE).parameters
    if "features" not in parameters:
        raise ArtifactError(
            f"{repository} holds no exported cascade: run python -m export build --checkpoints DIR "
            f"--repository {repository}"
        )
    return RequestLayout.from_json(
        parameters["features"].string_value, parameters["layout_hash"].string_value
    )


def store_of(repository: Path) -> str:
    """The store that a repository reads users from. Raises ArtifactError: there is none."""
    for settings in pbtxt.process_settings(repository).values():
        if settings.product.store:
            return settings.product.store
    raise ArtifactError(f"{repository} was exported without --store; say which one to write")


def raw_users(source: Source, count: int) -> tuple[Dense, Categorical]:
    """The first users as clients send them: dense [B, F_dense], categorical [B, F_cat]."""
    layout = RequestLayout.of(source.schema)
    _, dense, categorical = next(Table(source.folder / "users.parquet", layout, None).chunks())
    return dense[:count], categorical[:count]
