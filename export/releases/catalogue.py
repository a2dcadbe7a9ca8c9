"""Reads what `python -m export catalogue` adds and removes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cascade.artifact import Array, ArtifactError
from cascade.encoding import Encoder
from export.context import Catalogue


def check_file(path: Path) -> None:
    """Raises ArtifactError where there is no such file."""
    if not path.is_file():
        raise ArtifactError(f"there is no file {path}")


def read_items(path: Path, encoder: Encoder) -> Catalogue:
    """New items, encoded.

    Raises:
        ArtifactError: the file or a column of it is missing, or an item_id is invalid.
    """
    check_file(path)
    names = [feature.name for feature in encoder.schema.side("item")]
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ArtifactError(f"{path} is not Parquet: {error}") from error
    if missing := [name for name in ("item_id", *names) if name not in table.column_names]:
        raise ArtifactError(
            f"{path} lacks the columns {missing}; items have item_id and {', '.join(names)}"
        )
    ids = table["item_id"]
    if not pa.types.is_integer(ids.type) or ids.null_count:
        raise ArtifactError(f"{path}: item_id is {ids.type} with {ids.null_count} nulls, not int64")
    if len(table) and int(np.min(ids.to_numpy())) < 0:
        raise ArtifactError(f"{path}: a negative item_id; -1 stands for no item")
    dense, codes = encoder.encode_table("item", table)
    return Catalogue(dense, codes, ids.to_numpy().astype(np.int64), table.select(names))


def read_ids(path: Path) -> Array:
    """int64 [n] from a text file.

    Raises:
        ArtifactError: a line is no id.
    """
    check_file(path)
    found = []
    for number, line in enumerate(path.read_text().split("\n"), 1):
        text = line.strip()
        if text and not text.isdecimal():
            raise ArtifactError(f"{path}:{number}: {text!r} is no item id")
        if text:
            found.append(int(text))
    return np.array(found, np.int64)


def nothing(encoder: Encoder) -> Catalogue:
    """A catalogue without items."""
    schema = encoder.schema
    return Catalogue(
        np.zeros((0, schema.dense_width("item")), np.float32),
        np.zeros((0, schema.ids_width("item")), np.int64),
        np.zeros(0, np.int64),
    )
