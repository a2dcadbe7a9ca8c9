"""One column of a user or of an item, and one label of a row: what a `Schema` is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
    def vocabulary(self) -> str:
        """The name of the feature whose vocabulary it has."""
        return self.shares or self.name

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
SHARED = (
    *("encoding", "buckets", "hashing", "offset", "min_count"),
    *("missing_id", "unknown_id", "cardinality", "digest"),
)
