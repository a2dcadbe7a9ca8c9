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
from typing import Any

from cascade.feature import (
    CLICK,
    ENCODINGS,
    REFUSED,
    SHARED,
    Encoding,
    Feature,
    Hashing,
    Kind,
    PadSide,
    SchemaError,
    Side,
    Task,
    TaskKind,
)

__all__ = [
    "CLICK",
    "ENCODINGS",
    "REFUSED",
    "Encoding",
    "Feature",
    "Hashing",
    "Kind",
    "PadSide",
    "Schema",
    "SchemaError",
    "Side",
    "Task",
    "TaskKind",
    "vocabulary_digest",
]


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
        for name in SHARED:
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
            cardinality, digest = sizes[feature.vocabulary]
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
