"""Raw values to tensors: the same code in training and in the server.

A raw value is what a client sends: a number (NaN = missing) or bytes (empty = missing). A bag or
sequence is one value whose members are joined by `|`. Ids 0 and 1 of every table are reserved.

    bag, length 3         a|b      ->  a b 0      a|b|c|d  ->  a b c
    sequence, length 3    a|b      ->  0 a b      a|b|c|d  ->  b c d
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cascade.errors import CascadeError
from cascade.schema import Feature, Schema, SchemaError, Side, vocabulary_digest

if TYPE_CHECKING:
    import pyarrow as pa

MISSING, UNKNOWN, FIRST = 0, 1, 2
MAX_VALUE_BYTES = 8192
_SIDES: tuple[Side, Side] = ("user", "item")

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
    """

    def __init__(
        self,
        schema: Schema,
        vocabularies: Mapping[str, Sequence[bytes]],
        sides: Sequence[Side] = ("user", "item"),
    ) -> None:
        self.schema = schema
        self._lookup: dict[str, dict[bytes, int]] = {}
        for feature in _with_vocabulary(schema, sides):
            values = vocabularies.get(feature.name)
            if values is None:
                raise SchemaError(f"feature {feature.name}: there is no vocabulary for it")
            if vocabulary_digest(values) != feature.digest:
                raise SchemaError(
                    f"feature {feature.name}: the vocabulary ({len(values)} values) is not the one "
                    f"that schema {schema.hash} was fitted to ({feature.cardinality - FIRST} "
                    "values). Prepare the data again, or restore the file."
                )
            self._lookup[feature.name] = {value: FIRST + i for i, value in enumerate(values)}
        # What every request needs of the schema, looked up once.
        self._ids = {side: schema.ids(side) for side in _SIDES}
        self._width = {side: schema.ids_width(side) for side in _SIDES}
        self._log1p = {
            side: np.array([f.encoding == "log1p" for f in schema.dense(side)], bool)
            for side in _SIDES
        }

    @classmethod
    def fit(cls, schema: Schema, vocabularies: Mapping[str, Sequence[bytes]]) -> Encoder:
        """Fill the schema's cardinalities and digests from the vocabularies, then encode by it."""
        sizes = {f.name: (FIRST + f.buckets, "") for f in schema.features if f.encoding == "hash"}
        for feature in _with_vocabulary(schema, _SIDES):
            values = vocabularies[feature.name]
            sizes[feature.name] = (FIRST + len(values), vocabulary_digest(values))
        return cls(schema.fitted(sizes), vocabularies)

    def vocabulary(self, feature: Feature) -> list[bytes]:
        """The values of a feature, in the order of their ids."""
        return [*self._lookup[feature.name]]

    def encode(
        self, side: Side, dense: npt.NDArray[Any], categorical: npt.NDArray[Any]
    ) -> tuple[Floats, Ids]:
        """Encode what came over the wire: dense, float [B, F_dense] with NaN = missing, and
        categorical, object [B, F_cat] of bytes with empty = missing -> float32 [B, F_dense] and
        int64 [B, sum of lengths]. The InvalidInput names the feature, what came and what to send.
        """
        ids = np.zeros((len(categorical), self._width[side]), np.int64)
        column = 0
        for feature, values in zip(self._ids[side], categorical.T.tolist(), strict=False):
            if feature.multivalued:
                ids[:, column : column + feature.length] = self.ids(feature, values)
            else:
                ids[:, column] = [self._single(feature, value) for value in values]
            column += feature.length
        return self.encode_dense(side, dense), ids

    def encode_dense(self, side: Side, dense: npt.NDArray[Any]) -> Floats:
        """[B, F_dense] raw numbers -> float32: log1p as in the DLRM paper, missing as 0."""
        encoded: Floats = np.array(dense, np.float32)
        encoded[np.isnan(encoded)] = 0
        if np.isinf(encoded).any():
            self._refuse_infinite(side, dense)
        log1p = self._log1p[side]
        if log1p.any():
            width = len(log1p)  # a side without numbers has a column that no model reads
            numbers = encoded[:, :width]
            logs = np.log1p(np.maximum(numbers, 0))
            encoded[:, :width] = logs if log1p.all() else np.where(log1p, logs, numbers)
        return encoded

    def _refuse_infinite(self, side: Side, dense: npt.NDArray[Any]) -> None:
        features = self.schema.dense(side)
        row, column = np.argwhere(np.isinf(np.asarray(dense, np.float32)))[0]
        name = features[column].name if column < len(features) else f"column {column}"
        raise InvalidInput(
            f"feature {name}: {dense[row, column]} is not a finite number; send NaN where the "
            "value is missing"
        )

    def ids(self, feature: Feature, values: Sequence[bytes] | npt.NDArray[Any]) -> Ids:
        """[B] raw values of one feature -> ids [B, length]."""
        ids = np.zeros((len(values), feature.length), np.int64)
        for row, value in enumerate(values):
            if feature.multivalued and value:
                _check_length(feature, value)
                members = [member for member in value.split(b"|") if member]
                kept = [self._id(feature, member) for member in _kept(feature, members)]
                if feature.kind == "sequence":  # the newest member is always in the last column
                    ids[row, feature.length - len(kept) :] = kept
                else:
                    ids[row, : len(kept)] = kept
            else:
                ids[row, 0] = self._single(feature, value)
        return ids

    def _single(self, feature: Feature, value: bytes) -> int:
        """The id of a whole value."""
        if not value:
            return MISSING
        _check_length(feature, value)
        return self._id(feature, value)

    def _id(self, feature: Feature, value: bytes) -> int:
        if feature.encoding == "hash":
            _check_utf8(feature, value)
            return FIRST + zlib.crc32(value) % feature.buckets
        known = self._lookup[feature.name].get(value)
        if known is None:
            _check_utf8(feature, value)  # what is in the vocabulary is valid
            return UNKNOWN
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
            values = [(v.as_py() or "").encode() for v in encoded.dictionary] + [b""]
            codes = encoded.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False)
            blocks.append(self.ids(feature, values)[codes])
        ids = np.concatenate(blocks, axis=1) if blocks else np.zeros((table.num_rows, 1), np.int64)
        return self.encode_dense(side, dense), ids

    def save(self, folder: Path) -> None:
        """Write schema.json and vocabulary/NAME.txt, one value per line."""
        self.schema.save(folder / "schema.json")
        (folder / "vocabulary").mkdir(exist_ok=True)
        for name, lookup in self._lookup.items():
            (folder / "vocabulary" / f"{name}.txt").write_bytes(b"\n".join(lookup))

    @classmethod
    def load(cls, folder: Path, sides: Sequence[Side] = ("user", "item")) -> Encoder:
        """Read what `save` wrote, whole or only for one side. Raises SchemaError if a file is
        missing, damaged or of another schema."""
        schema = Schema.load(folder / "schema.json")
        vocabularies: dict[str, Sequence[bytes]] = {}
        for feature in _with_vocabulary(schema, sides):
            path = folder / "vocabulary" / f"{feature.name}.txt"
            if not path.exists():
                raise SchemaError(f"feature {feature.name}: its vocabulary {path} is missing")
            text = path.read_bytes()
            vocabularies[feature.name] = text.split(b"\n") if text else []
        return cls(schema, vocabularies, sides)


def _kept(feature: Feature, members: list[bytes]) -> list[bytes]:
    """The members that a row has room for: the first of a bag, the newest of a sequence."""
    sequence = feature.kind == "sequence"
    return members[-feature.length :] if sequence else members[: feature.length]


def _with_vocabulary(schema: Schema, sides: Sequence[Side]) -> list[Feature]:
    return [f for f in schema.features if f.encoding == "vocabulary" and f.side in sides]


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
