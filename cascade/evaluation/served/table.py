"""A held-out table: raw users, the items that they were shown or took, and labels where there are
any. Parquet, CSV (an empty cell is a missing value, lists are joined by `|`) or JSON lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv, json

from cascade.columns import convert
from cascade.columns.checked import Fault, checked
from cascade.columns.convert import Wanted
from cascade.errors import CascadeError
from cascade.item_keys import as_keys
from cascade.layout import RequestLayout
from cascade.schema import Schema
from cascade.values import unknown_name

Ids = npt.NDArray[np.int64]

SUFFIXES = (".parquet", ".csv", ".jsonl", ".ndjson")
ITEM, LABEL = "item_id", "label"


class HeldOutError(CascadeError, ValueError):
    """A table that a repository cannot be judged on."""


@dataclass(frozen=True)
class HeldOut:
    """n rows of U users. Rows with the same features are of one user.

    Attributes:
        dense, categorical: the users as sent, float32 [U, F_dense] and object [U, F_cat].
        user: int64 [n], which of them.
        item: int64 [n], the item's id or, where ids are strings, its key (`cascade.item_keys`).
        positive: bool [n].
        labelled: whether the table has labels; without, every row is a positive.
        absent: the features that the table lacks; they are missing in every row.
    """

    path: Path
    dense: npt.NDArray[np.float32]
    categorical: npt.NDArray[Any]
    user: Ids
    item: Ids
    positive: npt.NDArray[np.bool_]
    labelled: bool
    absent: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.item)


def read(path: Path, schema: Schema, item: str | None = None, label: str | None = None) -> HeldOut:
    """Read a table with a column for every feature of the user, or for some.

    Args:
        item: the column of item ids; `item_id` where None.
        label: the column of labels, 0 or 1; where None, `label` if there is one.

    Raises HeldOutError: names the file, and the row or column that is wrong.
    """
    table = _Table(path)
    layout = RequestLayout.of(schema)
    item_column = table.needs(item or ITEM, "--item-column")
    if label is not None:
        table.needs(label, "--label-column")
    label_column = label or (LABEL if LABEL in table.names else None)
    features, absent = layout.of_columns(table.names, str(path))
    names = [*features, item_column, *([label_column] if label_column else [])]
    table.read(list(dict.fromkeys(names)))
    item_ids = convert.item_name(None) if schema.string_ids else convert.item_id(None)
    kind = "a string that is not empty" if schema.string_ids else "an integer from 0 to 2^63 - 1"
    ids = table.column(item_column, Wanted(ITEM, item_ids, f"the id of an item, {kind}"))
    positive = np.ones(len(ids), np.bool_)
    if label_column:
        labels = table.column(label_column, Wanted(LABEL, convert.label, "a label, 0 or 1"))
        positive = labels.to_numpy(zero_copy_only=False) > 0.5
    if not positive.any():
        raise HeldOutError(f"{path} has {len(ids)} rows, and none is a positive; nothing is judged")
    return HeldOut(
        path,
        *_users(table, schema, layout, features),
        _keys(ids),
        positive,
        label_column is not None,
        tuple(absent),
    )


class _Table:
    """A file whose columns are known before its rows are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.suffix not in SUFFIXES:
            raise HeldOutError(f"{path} came; expected a file that ends in {', '.join(SUFFIXES)}")
        if not path.is_file():
            raise HeldOutError(f"there is no file {path}")
        self.names: list[str] = self._try(self._columns)
        twice = [name for name in self.names if self.names.count(name) > 1]
        if twice:
            raise HeldOutError(f"{path} has two columns {twice[0]!r}; rename one")

    def needs(self, name: str, flag: str) -> str:
        """The name of a column, if there is such a one."""
        if name in self.names:
            return name
        raise HeldOutError(f"{self.path}: {unknown_name('column', name, self.names)} ({flag})")

    def read(self, names: Sequence[str]) -> None:
        """Read the rows of some columns."""
        self.rows: pa.Table = self._try(lambda: self._read([*names]))

    def column(self, name: str, wanted: Wanted) -> pa.Array:
        """A column that was read, converted. Raises HeldOutError: a value cannot be used."""

        def error(fault: Fault) -> HeldOutError:
            comma = ":" if fault.row is None else ","
            fault = replace(fault, expected=wanted.expected)
            return HeldOutError(f"{self.path}{comma} {fault.of(name)}")

        return checked(self.rows[name], wanted, error, self.path.suffix == ".csv").combine_chunks()

    def _try(self, step: Any) -> Any:
        try:
            return step()
        except (pa.ArrowException, OSError) as error:
            why = f"{error}".splitlines()[0]
            raise HeldOutError(
                f"{self.path} cannot be read as {self.path.suffix[1:]}: {why}"
            ) from error

    def _columns(self) -> list[str]:
        if self.path.suffix == ".parquet":
            return [*pq.read_schema(self.path).names]
        if self.path.suffix == ".csv":
            return [*csv.open_csv(self.path).schema.names]
        self._json = json.read_json(self.path)
        return [*self._json.column_names]

    def _read(self, names: list[str]) -> pa.Table:
        if self.path.suffix == ".parquet":
            return pq.read_table(self.path, columns=names)
        if self.path.suffix == ".csv":
            options = csv.ConvertOptions(
                include_columns=names,
                column_types=dict.fromkeys(names, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
            )
            return csv.read_csv(self.path, convert_options=options)
        return self._json.select(names)


def _keys(ids: pa.Array) -> Ids:
    """Each distinct string is hashed once."""
    encoded = ids.dictionary_encode()
    distinct = encoded.dictionary.to_numpy(zero_copy_only=False)
    codes: Ids = encoded.indices.to_numpy(zero_copy_only=False)
    return as_keys(distinct)[codes]


def _users(
    table: _Table, schema: Schema, layout: RequestLayout, names: Sequence[str]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any], Ids]:
    """-> dense [U, F_dense] and categorical [U, F_cat] of the distinct users, and the user of every
    row [n]."""
    dense, categorical = layout.empty(table.rows.num_rows)
    described = {feature.name: feature for feature in (*schema.dense("user"), *schema.ids("user"))}
    codes = []
    for name in names:
        values = table.column(name, convert.feature(described[name]))
        place = layout.columns[name]
        if described[name].kind == "dense":
            dense[:, place] = values.to_numpy(zero_copy_only=False)
            codes.append(np.unique(dense[:, place], return_inverse=True)[1].ravel())
        else:
            encoded = pc.fill_null(values, "").cast(pa.binary()).dictionary_encode()
            codes.append(encoded.indices.to_numpy(zero_copy_only=False))
            texts = encoded.dictionary.to_numpy(zero_copy_only=False)
            categorical[:, place] = texts[codes[-1]]
    together = np.stack(codes, axis=1)
    _, first, user = np.unique(together, axis=0, return_index=True, return_inverse=True)
    return dense[first], categorical[first], user.ravel().astype(np.int64)
