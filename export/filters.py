"""What retrieval has to know about the items to filter them: ids and values to rows of a release.

Values are those that the checkpoints' catalogue has in raw form. Where it has encoded ones alone, a
vocabulary leads back to the values; a hash does not, nor does an id that several values share, and
such a feature is left out and named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from cascade.encoding import FIRST, MISSING, UNKNOWN, Encoder
from cascade.schema import Feature
from cascade.serving.filters.items import Description
from cascade.serving.runtime import Array, ArtifactError, Mapped
from export.stage_files import Catalogue

FILES = {
    "ids": ("filter_ids.bin", "int64"),
    "id_rows": ("filter_id_rows.bin", "int32"),
    "text": ("filter_text.bin", "uint8"),
    "text_starts": ("filter_text_starts.bin", "int64"),
    "rows": ("filter_rows.bin", "int32"),
    "row_starts": ("filter_row_starts.bin", "int64"),
}


class Unknown(ValueError):
    """The values of a feature cannot be told from what the checkpoints hold; says why."""


@dataclass(frozen=True)
class Pairs:
    """Which item has which value.

    Args:
        values: [V], large_binary, each once, in any order.
        codes: [n], positions in `values`. rows: [n], of the release.
    """

    values: pa.Array
    codes: Array
    rows: Array


def write(
    checkpoints: Path,
    encoder: Encoder,
    items: Catalogue,
    order: Array,
    folder: Path,
    wanted: Sequence[str] | None,
) -> Description:
    """Write filters.json and the files that it describes.

    Args:
        items: of the release, in its order.
        order: int64 [N], the item of the checkpoints that is in each row.
        wanted: features that can be asked for; None = all that can be told.

    Raises:
        ArtifactError: an id occurs twice, or a wanted feature cannot be told.
    """
    known = {feature.name: feature for feature in encoder.schema.ids("item")}
    if strangers := sorted(set(wanted or ()) - set(known)):
        raise ArtifactError(f"no item feature is called {', '.join(strangers)}; known: {[*known]}")
    source = _Source(checkpoints / "catalogue.parquet", encoder, items, order)
    features: dict[str, tuple[int, int]] = {}
    left_out: dict[str, str] = {}
    with _Writer(folder) as writer:
        writer.add_ids(items.item_ids)
        for name, feature in tqdm(known.items(), desc="filters", unit=" features", leave=False):
            if wanted is not None and name not in wanted:
                left_out[name] = "it was left out of this export"
                continue
            try:
                features[name] = writer.add(source.pairs(feature), len(items))
            except Unknown as error:
                if wanted is not None:
                    raise ArtifactError(f"feature {name} cannot be filtered by: {error}") from error
                left_out[name] = str(error)
    found = Description(encoder.schema.hash, writer.mapped, features, left_out)
    found.save(folder)
    return found


class _Source:
    """Where the values come from."""

    def __init__(self, catalogue: Path, encoder: Encoder, items: Catalogue, order: Array) -> None:
        self._catalogue, self._encoder, self._items = catalogue, encoder, items
        self._raw = set(pq.read_schema(catalogue).names)
        self._places = np.empty_like(order)
        self._places[order] = np.arange(len(order))
        self._columns: dict[str, int] = {}
        column = 0
        for feature in encoder.schema.ids("item"):
            self._columns[feature.name] = column
            column += feature.length

    def pairs(self, feature: Feature) -> Pairs:
        """Raises `Unknown` where they cannot be told."""
        return self._raw_pairs(feature) if feature.name in self._raw else self._decoded(feature)

    def _raw_pairs(self, feature: Feature) -> Pairs:
        """All members of a bag, more than a model reads of it."""
        table = pq.read_table(self._catalogue, columns=[feature.name])
        column = table[feature.name].cast(pa.large_string()).combine_chunks()
        items: Any = pa.array(self._places)
        if feature.kind == "bag":
            members = pc.split_pattern(column, "|")
            items, column = items.take(pc.list_parent_indices(members)), pc.list_flatten(members)
        there = pc.fill_null(pc.not_equal(column, ""), False)
        encoded = column.filter(there).cast(pa.large_binary()).dictionary_encode()
        rows = items.filter(there).to_numpy(zero_copy_only=False)
        return Pairs(encoded.dictionary, encoded.indices.to_numpy(), rows)

    def _decoded(self, feature: Feature) -> Pairs:
        first = self._columns[feature.name]
        ids = self._items.ids[:, first : first + feature.length]
        if feature.encoding == "hash":
            raise Unknown("the catalogue holds hashes of its values alone")
        if (ids == UNKNOWN).any():
            raise Unknown("some items have a value that the vocabulary does not know")
        if feature.kind == "bag" and (ids[:, -1] != MISSING).any():
            raise Unknown(f"a bag of {feature.length} members or more was cut")
        rows, columns = np.nonzero(ids >= FIRST)
        values = pa.array(self._encoder.vocabulary(feature), pa.large_binary())
        return Pairs(values, ids[rows, columns] - FIRST, rows)


class _Writer:
    """Appends to the files, one feature after the other; whoever has an old one mapped keeps it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, IO[bytes]] = {}
        self._counts = dict.fromkeys(FILES, 0)
        self._text_end = self._row_end = 0

    def __enter__(self) -> _Writer:
        for name, (file, _) in FILES.items():
            (self._folder / file).unlink(missing_ok=True)
            self._files[name] = (self._folder / file).open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._append("text_starts", [self._text_end])
        self._append("row_starts", [self._row_end])
        for file in self._files.values():
            file.close()

    @property
    def mapped(self) -> dict[str, Mapped]:
        return {
            name: Mapped(file, dtype, (self._counts[name],))
            for name, (file, dtype) in FILES.items()
        }

    def add_ids(self, item_ids: Array) -> None:
        """Raises ArtifactError where an id occurs twice."""
        rows = np.argsort(item_ids, kind="stable")
        ids = item_ids[rows]
        twice = ids[1:][ids[1:] == ids[:-1]]
        if len(twice):
            raise ArtifactError(f"item {twice[0]} is in the catalogue more than once")
        self._append("ids", ids)
        self._append("id_rows", rows)

    def add(self, pairs: Pairs, items: int) -> tuple[int, int]:
        """-> where the values of this feature begin and end among all values."""
        order = pc.sort_indices(pairs.values)
        values = pairs.values.take(order)
        rank = np.empty(len(values), np.int64)
        rank[order.to_numpy()] = np.arange(len(values))
        # By value and row at once; a member that a bag names twice counts once.
        both = np.unique(rank[pairs.codes] * items + pairs.rows)
        counts = np.bincount(both // items, minlength=len(values))
        starts, text = _text(values)
        first = self._counts["text_starts"]
        self._append("text_starts", self._text_end + starts[:-1])
        self._append("row_starts", self._row_end + np.cumsum(counts) - counts)
        self._append("text", text)
        self._append("rows", both % items)
        self._text_end += len(text)
        self._row_end += len(both)
        return first, first + len(values)

    def _append(self, name: str, values: Any) -> None:
        array = np.asarray(values, FILES[name][1])
        array.tofile(self._files[name])
        self._counts[name] += len(array)


def _text(values: pa.Array) -> tuple[Array, Array]:
    """[V], large_binary -> where each begins, and the last ends, int64 [V + 1]; and their bytes."""
    _, starts, content = values.buffers()
    found = np.frombuffer(starts, np.int64)[values.offset : values.offset + len(values) + 1]
    text = np.frombuffer(content, np.uint8) if content else np.empty(0, np.uint8)
    return found - found[0], text[found[0] : found[-1]]
