"""The ids of items in Parquet files: integers, or strings and the keys that stand for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from cascade.artifact import Array, ArtifactError
from cascade.columns import convert
from cascade.columns.checked import Fault, checked
from cascade.columns.convert import Wanted
from cascade.item_keys import PAD, keys_of
from cascade.schema import Schema

CHUNK = 1 << 16  # ids at a time: as Python objects, all of a catalogue would take gigabytes


def read_item_ids(column: pa.ChunkedArray, where: Path) -> tuple[Array, pa.Array | None]:
    """A column `item_id` -> keys int64 [N] and, where its ids are strings, the ids large_string
    [N]. Raises ArtifactError: it has nulls, another type, an id that stands for no item or that 64
    bits do not hold, an id twice, or two strings of one key; names `where` it is."""
    if column.null_count:
        raise ArtifactError(f"{where}: {column.null_count} of {len(column)} item_id are null")
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_integer(kind):
        return _integers(column, where), None
    if pa.types.is_date(kind):
        raise ArtifactError(f"{where}: item_id is {column.type}; expected int64 or string")

    def error(fault: Fault) -> ArtifactError:
        if fault.row is None:
            return ArtifactError(f"{where}: item_id is {fault.came}; expected int64 or string")
        return ArtifactError(f"{where}: an item_id is empty, which stands for no item")

    wanted = Wanted("item_id", convert.item_name(None), "a string that is not empty")
    names = checked(column, wanted, error).cast(pa.large_string()).combine_chunks()
    names = names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names
    return _keys(names, where), names


def check_kind(names: pa.Array | None, schema: Schema, where: Path) -> None:
    """Raises ArtifactError if ids are strings and the schema says integers, or the reverse."""
    if schema.string_ids != (names is not None):
        found, wanted = ("string", "integers") if names is not None else ("int64", "strings")
        raise ArtifactError(
            f"{where}: item_id is {found}, and the schema {schema.name} says that ids are {wanted} "
            f"(string_ids is {str(schema.string_ids).lower()}): change one of the two"
        )


def check_same_item(one: str, other: str, where: Path) -> None:
    """Raises ArtifactError if two ids of one key differ."""
    if one != other:
        raise ArtifactError(
            f"{where}: items {one!r} and {other!r} have the same 64-bit key: rename one of them"
        )


def _integers(column: pa.ChunkedArray, where: Path) -> Array:
    def error(fault: Fault) -> ArtifactError:
        none = ", which stands for no item" if fault.came == str(PAD) else ""
        return ArtifactError(
            f"{where}, row {fault.row}: an item_id is {fault.came}{none}; expected {fault.expected}"
        )

    wanted = Wanted("item_id", convert.item_id(None), "an integer from 0 to 2^63 - 1")
    keys: Array = checked(column, wanted, error).to_numpy()
    ordered = np.sort(keys)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise ArtifactError(f"{where}: item {twice[0]} is there more than once")
    return keys


def _keys(names: pa.Array, where: Path) -> Array:
    chunks = (names[start : start + CHUNK].to_pylist() for start in range(0, len(names), CHUNK))
    keys = keys_of((name for chunk in chunks for name in chunk), len(names))
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    for place in same[:1]:
        one, other = (names[int(row)].as_py() for row in order[place : place + 2])
        check_same_item(one, other, where)
        raise ArtifactError(f"{where}: item {one!r} is there more than once")
    return keys
