"""What a user and an item look like: embedding tables, ONNX input names, Triton tensors, the
client's arrays, test data and benchmark payloads are all read off a `Schema`.

Two hashes tell schemas apart. `hash` covers everything, the fitted vocabularies included; it goes
into every artifact of a release, and loading refuses a mismatch. `layout_hash` covers only what a
request looks like; it goes into config.pbtxt, which all the releases of a model share.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from cascade.errors import CascadeError

Side = Literal["user", "item"]
Kind = Literal["dense", "categorical", "bag", "sequence"]
Encoding = Literal["log1p", "identity", "buckets", "vocabulary", "hash", "integer"]
Hashing = Literal["crc32", "md5", "murmur3", "modulo"]
PadSide = Literal["", "left", "right"]
TaskKind = Literal["binary", "amount"]

_IDS = ("vocabulary", "hash", "integer")
ENCODINGS: Mapping[str, tuple[str, ...]] = {
    "dense": ("log1p", "identity", "buckets"),
    "categorical": _IDS,
    "bag": _IDS,
    "sequence": _IDS,
}
REFUSED = -1  # in place of a reserved id: the model has no row for such a value


class SchemaError(CascadeError, ValueError):
    """A schema that contradicts itself, or an artifact made for another schema."""


@dataclass(frozen=True)
class Task:
    """One label of a row, and what a model says of it.

    Args:
        name: unique in its schema, a Python identifier: formulas of the final score use it.
        kind: `binary` is 0 or 1, of which a model gives the probability (the sigmoid of its logit);
            `amount` is a number of at least 0, of which a model gives the mean (the softplus).
        weight: of its loss beside those of the other tasks.
    """

    name: str
    kind: TaskKind = "binary"
    weight: float = 1.0

    def __post_init__(self) -> None:
        wrong = ""
        if not self.name.isidentifier():
            wrong = "the name of a task has letters, digits and _, and begins with no digit"
        elif self.kind not in get_args(TaskKind):
            wrong = f"kind is {self.kind!r}, not one of {get_args(TaskKind)}"
        elif not self.weight > 0:
            wrong = f"weight is {self.weight:g}; expected a positive number"
        if wrong:
            raise SchemaError(f"task {self.name}: {wrong}")


CLICK = (Task("click"),)


@dataclass(frozen=True)
class Feature:
    """One column of a user or of an item.

    Args:
        name: unique in its schema; also the name a client uses.
        kind: `dense` is a number, `categorical` a string, `bag` a list of strings, `sequence` a
            list of strings whose order matters, oldest first.
        encoding: `log1p`, `identity` or `buckets` for dense; for the others `vocabulary`, `hash`,
            or `integer`, a number that is an id already.
        length: ids a row takes: 1 for a categorical, the most members of a bag (the first ones are
            kept) or of a sequence (the newest, that is the last ones, are kept).
        min_count: a value seen less often in training shares the out-of-vocabulary id.
        buckets: number of hash buckets, for the encoding `hash`.
        cardinality: fitted: rows of the embedding table (two of them reserved).
        digest: fitted: identifies the vocabulary.
        missing_id, unknown_id: the reserved rows: of a missing value and of the pads of a bag or
            sequence, and of a value that the vocabulary does not know; -1 refuses such a value.
        offset: id of hash bucket 0, or what is added to an integer.
        hashing: how a value finds its bucket: `crc32` or `md5` (as a hexadecimal number) of its
            UTF-8, `murmur3` (32 bits, seed 0, unsigned), or an integer `modulo` the buckets.
        pad_side: where the pads of a list stand; "" = right of a bag, left of a sequence.
        fill: of a dense value that is missing, before all else.
        mean, std: (x - mean) / std is what a model sees of a dense value, after log1p.
        boundaries: of `buckets`, ascending: the number of boundaries <= x is what a model sees.
        shares: the name of a categorical of the items whose ids this feature has, too: a list of
            items that a user met. Its vocabulary is that feature's.
    """

    name: str
    side: Side
    kind: Kind
    encoding: Encoding
    length: int = 1
    min_count: int = 1
    buckets: int = 0
    cardinality: int = 0
    digest: str = ""
    missing_id: int = 0
    unknown_id: int = 1
    offset: int = 2
    hashing: Hashing = "crc32"
    pad_side: PadSide = ""
    fill: float = 0.0
    mean: float = 0.0
    std: float = 1.0
    boundaries: tuple[float, ...] = ()
    shares: str = ""

    def __post_init__(self) -> None:
        wrong, known = "", ENCODINGS.get(self.kind, ())
        if self.side not in ("user", "item"):
            wrong = f"side is {self.side!r}, not 'user' or 'item'"
        elif self.kind not in ENCODINGS:
            wrong = f"kind is {self.kind!r}, not one of {list(ENCODINGS)}"
        elif self.encoding not in known:
            wrong = f"a {self.kind} feature is encoded by one of {known}, not by {self.encoding!r}"
        elif self.length < 1 or (self.length > 1 and not self.multivalued):
            wrong = f"a {self.kind} cannot have length {self.length}"
        elif self.encoding == "hash" and self.buckets < 1:
            wrong = "hashing needs `buckets` of at least 1"
        elif self.hashing not in get_args(Hashing):
            wrong = f"hashing is {self.hashing!r}, not one of {get_args(Hashing)}"
        elif not self.std > 0:
            wrong = f"std is {self.std:g}; expected a positive number"
        elif self.encoding == "buckets" and (
            not self.boundaries or [*self.boundaries] != sorted(set(self.boundaries))
        ):
            wrong = "buckets need `boundaries`, each larger than the one before"
        if wrong:
            raise SchemaError(f"feature {self.name}: {wrong}")

    @property
    def multivalued(self) -> bool:
        """Whether a value is a list of strings: a bag or a sequence."""
        return self.kind in ("bag", "sequence")

    @property
    def pads_left(self) -> bool:
        """Whether the pads of a list stand before its members."""
        return (self.pad_side or ("left" if self.kind == "sequence" else "right")) == "left"

    def to_dict(self) -> dict[str, Any]:
        """What identifies a feature. Fields that came later are left out where they have their
        default, so that schemas from before have the hash that they had."""
        found = asdict(self)
        for name in _LATER:
            if found[name] == getattr(type(self), name):
                del found[name]
        return found


_LATER = (
    "missing_id",
    "unknown_id",
    "offset",
    "hashing",
    "pad_side",
    "fill",
    "mean",
    "std",
    "boundaries",
    "shares",
)
# What has to be equal where a feature has the ids of another one.
_SHARED = (
    *("encoding", "buckets", "hashing", "offset", "min_count"),
    *("missing_id", "unknown_id", "cardinality", "digest"),
)


@dataclass(frozen=True)
class Schema:
    """Features in a fixed order: every tensor lists the features of one side in that order."""

    name: str
    features: tuple[Feature, ...]
    string_ids: bool = False  # of the items: answers name them by strings instead of integers
    tasks: tuple[Task, ...] = CLICK  # the labels of a row; the first orders items unless said

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.features]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SchemaError(f"schema {self.name}: feature names occur twice: {twice}")
        for side in ("user", "item"):
            if not any(feature.side == side for feature in self.features):
                raise SchemaError(f"schema {self.name}: there is no {side} feature; add one")
        tasks = [task.name for task in self.tasks]
        if not tasks or len(set(tasks)) < len(tasks):
            raise SchemaError(f"schema {self.name}: tasks are {tasks}; expected different names")
        for feature in self.features:
            if feature.shares:
                self._check_shared(feature)

    def _check_shared(self, feature: Feature) -> None:
        """A feature that has the ids of another one has to number values as that one does."""
        owner = next((f for f in self.features if f.name == feature.shares), None)
        if owner is None or (owner.side, owner.kind, owner.shares) != ("item", "categorical", ""):
            raise SchemaError(
                f"feature {feature.name} shares {feature.shares!r}, which is no categorical of the "
                "items with ids of its own"
            )
        for name in _SHARED:
            own, wanted = getattr(feature, name), getattr(owner, name)
            if own != wanted:
                raise SchemaError(
                    f"feature {feature.name} has {name} {own!r}, and {owner.name}, whose ids it "
                    f"shares, has {wanted!r}"
                )

    def side(self, side: Side) -> tuple[Feature, ...]:
        """All features of a side."""
        return tuple(feature for feature in self.features if feature.side == side)

    def dense(self, side: Side) -> tuple[Feature, ...]:
        """The numbers of a side: the columns of its `dense` tensor."""
        return tuple(feature for feature in self.side(side) if feature.kind == "dense")

    def ids(self, side: Side) -> tuple[Feature, ...]:
        """The categoricals, bags and sequences of a side: its `categorical` tensor on the wire."""
        return tuple(feature for feature in self.side(side) if feature.kind != "dense")

    def dense_width(self, side: Side) -> int:
        """Columns of the dense tensor. A side without numbers sends one column that nobody reads,
        because neither Triton nor ONNX Runtime takes a tensor without elements."""
        return max(1, len(self.dense(side)))

    def wire_width(self, side: Side) -> int:
        """Columns of the categorical tensor on the wire: one per feature of `ids`."""
        return max(1, len(self.ids(side)))

    def ids_width(self, side: Side) -> int:
        """Columns of the encoded id tensor: one per categorical, `length` per bag or sequence."""
        return max(1, sum(feature.length for feature in self.ids(side)))

    def first_column(self, feature: Feature) -> int:
        """Where the ids of a feature begin among the encoded ids of its side."""
        ids = self.ids(feature.side)
        return sum(other.length for other in ids[: ids.index(feature)])

    def owner(self, feature: Feature) -> Feature:
        """The feature whose vocabulary a feature has: its own, unless it shares another one's."""
        if not feature.shares:
            return feature
        return next(other for other in self.features if other.name == feature.shares)

    @property
    def hash(self) -> str:
        """Identifies this schema with its fitted vocabularies."""
        return _digest(self.to_dict())

    @property
    def layout_hash(self) -> str:
        """Identifies what a request looks like, whatever the vocabularies."""
        request: list[Any] = [[f.name, f.side, f.kind, f.length] for f in self.features]
        return _digest([*request, "string ids"] if self.string_ids else request)

    def fitted(self, sizes: Mapping[str, tuple[int, str]]) -> Schema:
        """The same schema with the `(cardinality, digest)` of every id feature filled in; those
        that share another one's ids have its."""

        def fit(feature: Feature) -> Feature:
            cardinality, digest = sizes[feature.shares or feature.name]
            return replace(feature, cardinality=cardinality, digest=digest)

        features = (f if f.kind == "dense" else fit(f) for f in self.features)
        return replace(self, features=tuple(features))

    def check_same(self, other_hash: str, where: str) -> None:
        """Raises SchemaError if an artifact was made for another schema."""
        if other_hash != self.hash:
            raise SchemaError(
                f"{where} was made for schema {other_hash}, but the schema here is {self.hash} "
                f"({self.name}). Train and export all stages from one prepared data set."
            )

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"name": self.name}
        found["features"] = [feature.to_dict() for feature in self.features]
        if self.tasks != CLICK:
            found["tasks"] = [asdict(task) for task in self.tasks]
        return {**found, "string_ids": True} if self.string_ids else found

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Schema:
        try:
            features = (
                Feature(**{**f, "boundaries": tuple(f.get("boundaries", ()))})
                for f in value["features"]
            )
            tasks = tuple(Task(**task) for task in value["tasks"]) if "tasks" in value else CLICK
            strings = bool(value.get("string_ids", False))
            return cls(value["name"], tuple(features), strings, tasks)
        except (KeyError, TypeError) as error:
            raise SchemaError(f"not a schema: {error}") from error

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Schema:
        try:
            return cls.from_dict(json.loads(path.read_text()))
        except json.JSONDecodeError as error:
            raise SchemaError(f"{path}: not a schema: {error}") from error


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def vocabulary_digest(values: Iterable[bytes], numbers: Any = None) -> str:
    """Identifies a vocabulary by its values, their order, and their ids int64 if they have own."""
    sha = hashlib.sha256()
    for value in values:
        sha.update(value + b"\n")
    if numbers is not None:
        sha.update(numbers.astype("<i8").tobytes())
    return sha.hexdigest()[:16]
