"""What `export catalogue` reads: the items that come, and the ids of those that leave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cascade.artifact import Array, ArtifactError
from cascade.columns import convert
from cascade.columns.checked import Fault, checked
from cascade.data import past
from cascade.encoding import Encoder, InvalidInput
from cascade.id_lines import read
from cascade.schema import Feature
from export.context import Catalogue
from export.item_ids import check_kind, read_item_ids

PAST = [feature.name for feature in past.ITEM]


def read_items(path: Path | None, encoder: Encoder, checkpoints: Path) -> Catalogue:
    """New items of a Parquet file, encoded; none without a file. A file may lack the past of the
    items: those that the catalogue of the checkpoints has keep what it tells, and of the others it
    is missing. Raises ArtifactError: the file or another column of it is missing, or an item_id is
    invalid."""
    schema = encoder.schema
    if path is None:
        dense = np.zeros((0, schema.dense_width("item")), np.float32)
        codes = np.zeros((0, schema.ids_width("item")), np.int64)
        names = pa.array([], pa.large_string()) if schema.string_ids else None
        return Catalogue(dense, codes, np.zeros(0, np.int64), names=names)
    _check_file(path)
    features = [feature.name for feature in schema.side("item")]
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{path} is not Parquet: {error}") from error
    if twice := [name for name in table.column_names if table.column_names.count(name) > 1]:
        raise ArtifactError(f"{path} has the column {twice[0]!r} more than once; rename one")
    untold = [name for name in features if name not in table.column_names and name in PAST]
    needed = [name for name in ("item_id", *features) if name not in untold]
    if missing := [name for name in needed if name not in table.column_names]:
        raise ArtifactError(
            f"{path} lacks the columns {missing}; items have item_id and {', '.join(features)}"
        )
    keys, named = read_item_ids(table["item_id"], path)
    check_kind(named, schema, path)
    raw = pa.table({f.name: _raw(table, f, path) for f in schema.side("item") if f.name in needed})
    for name, values in _past(untold, keys, checkpoints).items():
        raw = raw.append_column(name, values)
    try:
        dense, codes = encoder.encode_table("item", raw)
    except InvalidInput as error:
        raise ArtifactError(f"{path}: {error}") from error
    return Catalogue(dense, codes, keys, raw.select(features), named)


def _raw(table: pa.Table, feature: Feature, path: Path) -> pa.ChunkedArray:
    """The column of a feature, by the rules of training."""

    def error(fault: Fault) -> ArtifactError:
        return ArtifactError(f"{path}: {fault.of(feature.name)}")

    return checked(table[feature.name], convert.feature(feature), error)


def _past(names: list[str], keys: Array, checkpoints: Path) -> dict[str, pa.Array]:
    """Columns of the past of items [n], as the catalogue of the checkpoints has them."""
    if not names:
        return {}
    path = checkpoints / "catalogue.parquet"
    old = pq.read_table(path, columns=["item_id", *names])
    known = pa.array(read_item_ids(old["item_id"], path)[0])
    where = pc.index_in(pa.array(keys), value_set=known)
    return {name: old[name].take(where) for name in names}


def read_ids(path: Path | None, string_ids: bool = False) -> Array:
    """Item ids [n] from a text file, int64 or object of str; none without a file. Raises
    ArtifactError: a line is no id."""
    kind = object if string_ids else np.int64
    if path is None:
        return np.zeros(0, kind)
    _check_file(path)
    lines = read(path.read_bytes(), string_ids)
    for line in lines.bad[:1]:
        raise ArtifactError(f"{path}:{line.number}: {line.problem}")
    for number in () if string_ids else lines.ambiguous():
        raise ArtifactError(
            f"{path}:{number}: these may be several ids, or one with separators of thousands; "
            "write one id a line, without them"
        )
    ids = lines.literals()
    for number, item in zip(lines.numbers, ids, strict=False):
        if not string_ids and item < 0:
            raise ArtifactError(
                f"{path}:{number}: {item} is no item id; expected an integer from 0 to 2^63 - 1"
            )
    return np.array(ids, kind)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ArtifactError(f"there is no file {path}")
