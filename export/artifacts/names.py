"""Writes the ids of items beside the ranker's graph, where they are strings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from cascade.artifact import Array, Mapped
from cascade.spec import ITEM_NAMES
from cascade.stages.names import NamesDescription
from export.artifacts.filters import text_of
from export.artifacts.stage_files import write_mapped
from export.context import Catalogue
from export.item_ids import check_same_item

KEYS, TEXT, STARTS = "item_name_keys", "item_name_text", "item_name_starts"
FILES = {ITEM_NAMES, *(f"{name}.bin" for name in (KEYS, TEXT, STARTS))}


def write(folder: Path, items: Catalogue, schema_hash: str) -> None:
    """Write the ids of a catalogue; where they are integers, remove those of an earlier export."""
    for file in FILES:
        (folder / file).unlink(missing_ok=True)
    if items.names is None:
        return
    order = np.argsort(items.item_ids)
    starts, text = text_of(items.names.take(pa.array(order)))
    mapped = {
        "keys": _mapped(folder, KEYS, items.item_ids[order], "int64"),
        "text": _mapped(folder, TEXT, text, "uint8"),
        "starts": _mapped(folder, STARTS, starts, "int64"),
    }
    NamesDescription(schema_hash, mapped).save(folder)


def refresh(
    source: Path, folder: Path, schema_hash: str, item_ids: Array, keep: Array, added: Catalogue
) -> None:
    """The same for a catalogue of keys `item_ids` [N], with their ids in `source`, of which some
    stay and those of `added` follow. Raises ArtifactError: a new id has the key of another one."""
    assert added.names is not None
    known = np.isin(added.item_ids, item_ids)
    before = stored(source, schema_hash, added.item_ids[known])
    for one, other in zip(before, added.names.filter(pa.array(known)), strict=True):
        check_same_item(one.as_py(), other.as_py(), source)
    kept = item_ids[keep]
    both = pa.concat_arrays([stored(source, schema_hash, kept), added.names])
    keys = np.concatenate((kept, added.item_ids))
    write(folder, replace(added, item_ids=keys, names=both), schema_hash)


def stored(folder: Path, schema_hash: str, keys: Array) -> pa.Array:
    """The ids that `write` wrote, large_string [n], of items by their keys. Raises ArtifactError:
    a file is missing or damaged."""
    described = NamesDescription.load(folder, schema_hash).mapped
    found = {name: np.asarray(file.open(folder)) for name, file in described.items()}
    buffers = [None, pa.py_buffer(found["starts"]), pa.py_buffer(found["text"])]
    names = pa.Array.from_buffers(pa.large_string(), len(found["keys"]), buffers)
    return names.take(pa.array(np.searchsorted(found["keys"], keys)))


def _mapped(folder: Path, name: str, values: Array, dtype: str) -> Mapped:
    return write_mapped(folder, name, [values], dtype, values.shape)
