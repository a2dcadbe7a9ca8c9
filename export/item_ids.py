"""The ids of items in Parquet files: integers, or strings and the keys that stand for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cascade.artifact import Array, ArtifactError
from cascade.item_keys import PAD, keys_of
from cascade.schema import Schema

CHUNK = 1 << 16  # ids at a time: as Python objects, all of a catalogue would take gigabytes


def read_item_ids(column: pa.ChunkedArray, where: Path) -> tuple[Array, pa.Array | None]:
    """A column `item_id` -> keys int64 [N] and, where its ids are strings, the ids large_string
    [N]. Raises ArtifactError: it has nulls, another type, an id that stands for no item, a string
    twice, or two strings of one key; names `where` it is."""
    if column.null_count:
        raise ArtifactError(f"{where}: {column.null_count} of {len(column)} item_id are null")
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind):
        return _integers(column, where), None
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ArtifactError(f"{where}: item_id is {column.type}; expected int64 or string")
    names = column.cast(pa.large_string()).combine_chunks()
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
    try:
        keys: Array = column.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise ArtifactError(f"{where}: item_id: {error}; expected ids of 64 bits") from error
    if (keys == PAD).any():
        raise ArtifactError(f"{where}: an item_id is {PAD}, which stands for no item")
    return keys


def _keys(names: pa.Array, where: Path) -> Array:
    try:
        names.validate(full=True)
    except pa.ArrowInvalid as error:
        raise ArtifactError(f"{where}: item_id: {error}; expected strings in UTF-8") from error
    chunks = (names[start : start + CHUNK].to_pylist() for start in range(0, len(names), CHUNK))
    keys = keys_of((name for chunk in chunks for name in chunk), len(names))
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    for place in same[:1]:
        one, other = (names[int(row)].as_py() for row in order[place : place + 2])
        check_same_item(one, other, where)
        raise ArtifactError(f"{where}: item {one!r} is there more than once")
    if pc.any(pc.equal(names, "")).as_py():
        raise ArtifactError(f"{where}: an item_id is empty, which stands for no item")
    return keys
