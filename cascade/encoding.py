"""Raw values to tensors: the same code in training and in the server.

A raw value is what a client sends: a number (NaN = missing) or bytes (empty = missing). A bag or
sequence is one value whose members are joined by `|`. Ids 0 and 1 of every table are reserved,
unless the feature says otherwise: a model that was trained elsewhere has its own numbering.

    bag, length 3         a|b      ->  a b 0      a|b|c|d  ->  a b c
    sequence, length 3    a|b      ->  0 a b      a|b|c|d  ->  b c d
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cascade.errors import CascadeError
from cascade.files import file_name, named_file
from cascade.schema import REFUSED, Feature, Schema, SchemaError, Side, vocabulary_digest
from cascade.transforms import HASHES, Numeric

if TYPE_CHECKING:
    import pyarrow as pa

MISSING, UNKNOWN, FIRST = 0, 1, 2
MAX_VALUE_BYTES = 8192
_SIDES: tuple[Side, Side] = ("user", "item")

Raw = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class InvalidInput(CascadeError, ValueError):
    """A value that no trained model can read: the caller's mistake, told to the caller."""


class Encoder:
    """Encodes one side of rows.

    Args:
        schema: a fitted schema.
        vocabularies: by feature, the values; position i has id `FIRST + i`.
        sides: whose values it is to encode; the server needs only the users'.
        numbers: by feature, the ids int64 of its values, where they are numbered otherwise.
    """

    def __init__(
        self,
        schema: Schema,
        vocabularies: Mapping[str, Sequence[bytes]],
        sides: Sequence[Side] = ("user", "item"),
        numbers: Mapping[str, Ids] | None = None,
    ) -> None:
        self.schema = schema
        self._numbers = {**(numbers or {})}
        self._lookup: dict[str, dict[bytes, int]] = {}
        for feature in _with_vocabulary(schema, sides):
            values = vocabularies.get(feature.name)
            if values is None:
                raise SchemaError(f"feature {feature.name}: there is no vocabulary for it")
            ids = self._numbers.get(feature.name)
            if vocabulary_digest(values, ids) != feature.digest:
                raise SchemaError(
                    f"feature {feature.name}: the vocabulary ({len(values)} values) is not the one "
                    f"that schema {schema.hash} was fitted to ({feature.cardinality - FIRST} "
                    "values). Prepare the data again, or restore the file."
                )
            own = range(FIRST, FIRST + len(values)) if ids is None else ids.tolist()
            self._lookup[feature.name] = dict(zip(values, own, strict=True))
        self.unknown_seen = 0  # values so far that no vocabulary had
        self._ids = {side: schema.ids(side) for side in _SIDES}
        self._width = {side: schema.ids_width(side) for side in _SIDES}
        self._numeric = {side: Numeric(schema.dense(side)) for side in _SIDES}

    @classmethod
    def fit(
        cls,
        schema: Schema,
        vocabularies: Mapping[str, Sequence[bytes]],
        numbers: Mapping[str, Ids] | None = None,
    ) -> Encoder:
        """Fill the schema's cardinalities and digests from the vocabularies, then encode by it. A
        cardinality that the schema states stays."""
        sizes = {}
        for feature in (f for f in schema.features if not f.shares):
            if feature.encoding == "vocabulary":
                values, ids = vocabularies[feature.name], (numbers or {}).get(feature.name)
                last = FIRST + len(values) - 1 if ids is None else int(ids.max(initial=-1))
                digest = vocabulary_digest(values, ids)
            else:
                last, digest = feature.offset + feature.buckets - 1, ""
            rows = 1 + max(last, feature.missing_id, feature.unknown_id)
            sizes[feature.name] = (feature.cardinality or rows, digest)
        return cls(schema.fitted(sizes), vocabularies, numbers=numbers)

    def vocabulary(self, feature: Feature) -> dict[bytes, int]:
        """The values of a feature, and the id of each."""
        return self._lookup[feature.vocabulary]

    def numbered(self, feature: Feature) -> bool:
        """Whether the values of a feature have ids of their own, instead of 2, 3, ..."""
        return (feature.vocabulary) in self._numbers

    def encode(
        self, side: Side, dense: Raw, categorical: Raw, unknown: Ids | None = None
    ) -> tuple[Floats, Ids]:
        """Encode what came over the wire: dense, float [B, F_dense] with NaN = missing, and
        categorical, object [B, F_cat] of bytes with empty = missing -> float32 [B, F_dense] and
        int64 [B, sum of lengths]. The InvalidInput names the feature, what came and what to send.

        `unknown`, zeros [B, F_cat], gets how many of the values are not in the vocabulary.
        """
        ids = np.zeros((len(categorical), self._width[side]), np.int64)
        column = 0
        columns = zip(self._ids[side], categorical.T.tolist(), strict=False)
        for place, (feature, values) in enumerate(columns):
            before, block = self.unknown_seen, ids[:, column : column + feature.length]
            if feature.multivalued:
                block[:] = self.ids(feature, values)
            else:
                block[:, 0] = [self._single(feature, value) for value in values]
            if self.unknown_seen != before and unknown is not None:
                unknown[:, place] = self._count_unknown(feature, values, block)
            column += feature.length
        return self.encode_dense(side, dense), ids

    def _count_unknown(self, feature: Feature, values: Sequence[bytes], ids: Ids) -> list[int]:
        """How many members of [B] values that became ids [B, length] are unknown."""
        counts = []
        for value, found in zip(values, ids.tolist(), strict=True):
            before = self.unknown_seen
            if value and feature.unknown_id in found:
                for member in _members(feature, value) if feature.multivalued else [value]:
                    self._id(feature, member)
            counts.append(self.unknown_seen - before)
        return counts

    def encode_dense(self, side: Side, dense: npt.NDArray[Any]) -> Floats:
        """[B, F_dense] raw numbers -> float32, as each feature is encoded."""
        encoded: Floats = np.array(dense, np.float32)
        for step in (self._numeric[side].fill, self._numeric[side].transform):
            step(encoded)  # the second may divide by a deviation below 1
            if np.isinf(encoded).any():
                self._refuse_infinite(side, dense, encoded)
        return encoded

    def _refuse_infinite(self, side: Side, dense: npt.NDArray[Any], encoded: Floats) -> None:
        features = self.schema.dense(side)
        row, column = np.argwhere(np.isinf(encoded))[0]
        name = features[column].name if column < len(features) else f"column {column}"
        is_ = "too large" if np.isfinite(np.float32(dense[row, column])) else "not a finite number"
        raise InvalidInput(
            f"feature {name}: {dense[row, column]} is {is_}; send NaN where the value is missing"
        )

    def ids(self, feature: Feature, values: Sequence[bytes] | npt.NDArray[Any]) -> Ids:
        """[B] raw values of one feature -> ids [B, length]."""
        if not feature.multivalued:
            found = [self._single(feature, value) for value in values]
            return np.array(found, np.int64).reshape(-1, 1)
        ids = np.full((len(values), feature.length), feature.missing_id, np.int64)
        for row, value in enumerate(values):
            kept = []
            if value:
                _check_length(feature, value)
                kept = [self._id(feature, member) for member in _members(feature, value)]
                if feature.pads_left:
                    ids[row, feature.length - len(kept) :] = kept
                else:
                    ids[row, : len(kept)] = kept
            if feature.missing_id == REFUSED and len(kept) < feature.length:
                _refuse_missing(feature)
        return ids

    def _single(self, feature: Feature, value: bytes) -> int:
        """The id of a whole value."""
        if not value:
            if feature.missing_id == REFUSED:
                _refuse_missing(feature)
            return feature.missing_id
        _check_length(feature, value)
        return self._id(feature, value)

    def _id(self, feature: Feature, value: bytes) -> int:
        known: int | None
        if feature.encoding == "vocabulary":
            known = self._lookup[feature.vocabulary].get(value)
        elif feature.encoding == "integer":
            known = _integer(feature, value)
        else:
            _check_utf8(feature, value)
            bucket = HASHES[feature.hashing](value, feature.buckets)
            known = None if bucket is None else feature.offset + bucket
        if known is None:
            _check_utf8(feature, value)  # what is in the vocabulary is valid
            if feature.unknown_id == REFUSED:
                _refuse_unknown(feature, value)
            self.unknown_seen += 1
            return feature.unknown_id
        return known

    def encode_table(self, side: Side, table: pa.Table) -> tuple[Floats, Ids]:
        """Encode raw columns of a table, named by feature: the bulk form of `encode`. Each distinct
        value is encoded once, by the same `ids` that the server calls."""
        dense = np.zeros((table.num_rows, self.schema.dense_width(side)), np.float32)
        for column, feature in enumerate(self.schema.dense(side)):
            dense[:, column] = table[feature.name].to_numpy()
        blocks = []
        for feature in self.schema.ids(side):
            encoded = table[feature.name].combine_chunks().dictionary_encode()
            values = [(v.as_py() or "").encode() for v in encoded.dictionary]
            codes = encoded.indices
            if codes.null_count:
                codes, values = codes.fill_null(len(values)), [*values, b""]
            codes = codes.to_numpy(zero_copy_only=False)
            blocks.append(self.ids(feature, values)[codes])
        ids = np.concatenate(blocks, axis=1) if blocks else np.zeros((table.num_rows, 1), np.int64)
        return self.encode_dense(side, dense), ids

    def save(self, folder: Path) -> None:
        """Write schema.json and vocabulary/NAME.txt, by `file_name`, one value per line."""
        self.schema.save(folder / "schema.json")
        (place := folder / "vocabulary").mkdir(exist_ok=True)
        for name, lookup in self._lookup.items():
            (place / file_name(name, ".txt")).write_bytes(b"\n".join(lookup))
        for name, ids in self._numbers.items():
            np.save(place / file_name(name, ".npy"), ids)

    @classmethod
    def load(cls, folder: Path, sides: Sequence[Side] = ("user", "item")) -> Encoder:
        """Read what `save` wrote, whole or only for one side. Raises SchemaError if a file is
        missing, damaged or of another schema."""
        schema, place = Schema.load(folder / "schema.json"), folder / "vocabulary"
        vocabularies, numbers = dict[str, Sequence[bytes]](), dict[str, Ids]()
        for feature in _with_vocabulary(schema, sides):
            path, own = (named_file(place, feature.name, ending) for ending in (".txt", ".npy"))
            if not path.exists():
                raise SchemaError(f"feature {feature.name}: its vocabulary {path} is missing")
            text = path.read_bytes()
            vocabularies[feature.name] = text.split(b"\n") if text else []
            if own.exists():
                numbers[feature.name] = np.load(own)
        return cls(schema, vocabularies, sides, numbers)


def _members(feature: Feature, value: bytes) -> list[bytes]:
    """The members that a row has room for: the first of a bag, the newest of a sequence."""
    members = [member for member in value.split(b"|") if member]
    newest = feature.kind == "sequence"
    return members[-feature.length :] if newest else members[: feature.length]


def _with_vocabulary(schema: Schema, sides: Sequence[Side]) -> list[Feature]:
    read = [schema.owner(f) for f in schema.features if f.side in sides]
    return [feature for feature in dict.fromkeys(read) if feature.encoding == "vocabulary"]


def _check_length(feature: Feature, value: bytes) -> None:
    if len(value) > MAX_VALUE_BYTES:
        raise InvalidInput(
            f"feature {feature.name}: a value of {len(value)} bytes came; at most "
            f"{MAX_VALUE_BYTES} are read"
        )


def _check_utf8(feature: Feature, value: bytes) -> None:
    try:
        value.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"feature {feature.name}: {value[:20]!r} is not UTF-8; send text in UTF-8"
        ) from error


def _integer(feature: Feature, value: bytes) -> int | None:
    """The id of a value that is a number already; None if the table has no such row."""
    try:
        found = int(value) + feature.offset
    except ValueError:
        return None
    return found if 0 <= found < feature.cardinality else None


def _refuse_missing(feature: Feature) -> None:
    wanted = f"{feature.length} members" if feature.multivalued else "a value"
    raise InvalidInput(
        f"feature {feature.name}: nothing came; expected {wanted}, because the model has no row "
        "for what is missing (`missing:` of the feature names one)"
    )


def _refuse_unknown(feature: Feature, value: bytes) -> None:
    raise InvalidInput(
        f"feature {feature.name}: {value[:40].decode()!r} came, which is none of the values that "
        "the model knows, and the model has no row for others (`unknown:` of the feature names one)"
    )
