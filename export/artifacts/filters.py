"""Writes what retrieval needs to filter items: item ids and feature values to rows of a release.
Raw values come from the checkpoints' catalogue. Where it holds encoded values alone, the vocabulary
maps them back; a hash cannot be mapped back, nor can an id that several values share. Such a
feature is left out, and the release says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from cascade.artifact import Array, ArtifactError, Mapped
from cascade.encoding import FIRST, MISSING, UNKNOWN, Encoder
from cascade.errors import CascadeError
from cascade.schema import Feature
from cascade.stages.filters.items import FilterDescription
from export.context import Catalogue, Source

FILES = {
    "row_ids": ("filter_row_ids.bin", "int64"),
    "ids": ("filter_ids.bin", "int64"),
    "id_rows": ("filter_id_rows.bin", "int32"),
    "text": ("filter_text.bin", "uint8"),
    "text_starts": ("filter_text_starts.bin", "int64"),
    "rows": ("filter_rows.bin", "int32"),
    "row_starts": ("filter_row_starts.bin", "int64"),
}


class Unknown(CascadeError, ValueError):
    """The checkpoints do not determine the raw values of a feature; the message says why."""


class Pairs(NamedTuple):
    """Which item has which value."""

    values: pa.Array  # [V], large_binary, each once, in any order
    codes: Array  # [n], positions in `values`
    rows: Array  # [n], of the release


def write(source: Source, folder: Path, wanted: Sequence[str] | None) -> FilterDescription:
    """Write filters.json and the files that it describes, in the order of `source`, for the
    features that are wanted; None = all whose values are known. Raises ArtifactError: an id occurs
    twice, or the values of a wanted feature are unknown."""
    encoder, items = source.encoder, source.items
    known = {feature.name: feature for feature in encoder.schema.ids("item")}
    if strangers := sorted(set(wanted or ()) - set(known)):
        raise ArtifactError(f"no item feature is called {', '.join(strangers)}; known: {[*known]}")
    catalogue = source.folder / "catalogue.parquet"
    raw, places = set(pq.read_schema(catalogue).names), source.places

    def pairs(name: str) -> Pairs:
        if name in raw:
            return raw_pairs(pq.read_table(catalogue, columns=[name])[name], known[name], places)
        return decoded_pairs(items, known[name], encoder)

    names = [name for name in known if wanted is None or name in wanted]
    left_out = dict.fromkeys(known.keys() - names, "it was left out of this export")
    found = _write(folder, encoder, items.item_ids, names, pairs, left_out)
    for name in wanted or ():
        if name in found.left_out:
            raise ArtifactError(f"feature {name} cannot be filtered by: {found.left_out[name]}")
    return found


def refresh(
    source: Path, folder: Path, encoder: Encoder, keep: Array, added: Catalogue, item_ids: Array
) -> FilterDescription:
    """The same for a catalogue that has lost some items and gained others: of the rows [N] of the
    retrieval folder `source` some stay, and those of `added` follow."""
    old = FilterDescription.load(source, encoder.schema.hash)
    arrays = {name: np.asarray(mapped.open(source)) for name, mapped in old.mapped.items()}
    row, kept = np.cumsum(keep) - 1, int(keep.sum())
    known = {feature.name: feature for feature in encoder.schema.ids("item")}

    def pairs(name: str) -> Pairs:
        if added.raw is None:
            new = decoded_pairs(added, known[name], encoder)
        else:
            new = raw_pairs(added.raw[name], known[name], np.arange(len(added)))
        before = _stored(arrays, *old.features[name])
        stays = keep[before.rows]
        values = pa.concat_arrays([before.values, new.values]).dictionary_encode()
        codes = np.concatenate((before.codes[stays], new.codes + len(before.values)))
        rows = np.concatenate((row[before.rows[stays]], new.rows + kept))
        return Pairs(values.dictionary, values.indices.to_numpy()[codes], rows)

    names, left_out = [*old.features], dict(old.left_out)
    return _write(folder, encoder, item_ids, names, pairs, left_out, "of new items: ")


def _write(
    folder: Path,
    encoder: Encoder,
    item_ids: Array,
    names: list[str],
    pairs: Callable[[str], Pairs],
    left_out: dict[str, str],
    where: str = "",
) -> FilterDescription:
    """Write the pairs of each feature; one whose values are unknown is left out."""
    writer = _Writer(folder)
    writer.add_ids(item_ids)
    features = {}
    for name in tqdm(names, desc="filters", unit=" features", leave=False):
        try:
            features[name] = writer.add(pairs(name), len(item_ids))
        except Unknown as error:
            left_out[name] = f"{where}{error}"
    found = FilterDescription(encoder.schema.hash, writer.finish(), features, left_out)
    found.save(folder)
    return found


def _stored(arrays: dict[str, Array], first: int, end: int) -> Pairs:
    """Read back one feature."""
    starts, rows = (arrays[name][first : end + 1] for name in ("text_starts", "row_starts"))
    buffers = (starts - starts[0], arrays["text"][starts[0] : starts[-1]])
    contents = [None, *(pa.py_buffer(np.ascontiguousarray(part)) for part in buffers)]
    values = pa.Array.from_buffers(pa.large_binary(), end - first, contents)
    codes = np.repeat(np.arange(end - first), np.diff(rows))
    return Pairs(values, codes, arrays["rows"][rows[0] : rows[-1]])


def raw_pairs(column: pa.ChunkedArray, feature: Feature, places: Array) -> Pairs:
    """Pairs of raw values [n] of items in the rows `places` [n]: all members of a bag."""
    values, items = column.cast(pa.large_string()).combine_chunks(), pa.array(places)
    if feature.multivalued:
        members = pc.split_pattern(values, "|")
        items, values = items.take(pc.list_parent_indices(members)), pc.list_flatten(members)
    there = pc.fill_null(pc.not_equal(values, ""), False)
    encoded = values.filter(there).cast(pa.large_binary()).dictionary_encode()
    rows = items.filter(there).to_numpy(zero_copy_only=False)
    return Pairs(encoded.dictionary, encoded.indices.to_numpy(), rows)


def decoded_pairs(items: Catalogue, feature: Feature, encoder: Encoder) -> Pairs:
    """Pairs of encoded values, mapped back; item i is in row i. Raises Unknown."""
    first = encoder.schema.first_column(feature)
    ids = items.ids[:, first : first + feature.length]
    if feature.encoding != "vocabulary" or encoder.numbered(feature):
        raise Unknown("the catalogue holds hashes of its values alone, or a team's own ids")
    if (ids == UNKNOWN).any():
        raise Unknown("some items have a value that the vocabulary does not know")
    if feature.multivalued and (ids != MISSING).all(axis=1).any():
        raise Unknown(f"a {feature.kind} of {feature.length} members or more was cut")
    rows, columns = np.nonzero(ids >= FIRST)
    values = pa.array([*encoder.vocabulary(feature)], pa.large_binary())
    return Pairs(values, ids[rows, columns] - FIRST, rows)


class _Writer:
    """Appends to new files, one feature after the other. Files of an earlier export are unlinked
    first, so that servers that have them mapped keep them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._counts = dict.fromkeys(FILES, 0)
        for file, _ in FILES.values():
            (folder / file).unlink(missing_ok=True)
            (folder / file).touch()

    def finish(self) -> dict[str, Mapped]:
        """Write where the last values end -> the files."""
        self._append("text_starts", [self._counts["text"]])
        self._append("row_starts", [self._counts["rows"]])
        return {
            name: Mapped(file, dtype, (self._counts[name],))
            for name, (file, dtype) in FILES.items()
        }

    def add_ids(self, item_ids: Array) -> None:
        """Write the ids in both orders. Raises ArtifactError where an id occurs twice."""
        rows = np.argsort(item_ids, kind="stable")
        ids = item_ids[rows]
        twice = ids[1:][ids[1:] == ids[:-1]]
        if len(twice):
            raise ArtifactError(f"item {twice[0]} is in the catalogue more than once")
        self._append("row_ids", item_ids)
        self._append("ids", ids)
        self._append("id_rows", rows)

    def add(self, pairs: Pairs, items: int) -> tuple[int, int]:
        """Write a feature -> where its values begin and end among those of all features."""
        order = pc.sort_indices(pairs.values)
        values = pairs.values.take(order)
        rank = np.empty(len(values), np.int64)
        rank[order.to_numpy()] = np.arange(len(values))
        # By value and row at once; a member that a bag names twice counts once.
        both = np.unique(rank[pairs.codes] * items + pairs.rows)
        counts = np.bincount(both // items, minlength=len(values))
        starts, text = text_of(values)
        first = self._counts["text_starts"]
        self._append("text_starts", self._counts["text"] + starts[:-1])
        self._append("row_starts", self._counts["rows"] + np.cumsum(counts) - counts)
        self._append("text", text)
        self._append("rows", both % items)
        return first, first + len(values)

    def _append(self, name: str, values: Any) -> None:
        file, dtype = FILES[name]
        array = np.asarray(values, dtype)
        with (self._folder / file).open("ab") as target:
            target.write(np.ascontiguousarray(array).data)
        self._counts[name] += len(array)


def text_of(values: pa.Array) -> tuple[Array, Array]:
    """large_binary or large_string [V] -> where each value begins and the last ends, int64 [V + 1];
    their bytes."""
    _, starts, content = values.buffers()
    found = np.frombuffer(starts, np.int64)[values.offset : values.offset + len(values) + 1]
    text = np.frombuffer(content, np.uint8) if content else np.empty(0, np.uint8)
    return found - found[0], text[found[0] : found[-1]]
