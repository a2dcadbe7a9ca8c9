"""What a request looks like: its features, and the way from dicts of raw values to its two tensors.

    layout = RequestLayout.of(schema)
    dense, categorical = layout.arrays([{"age": 31, "history": ["m-3", "m-9"]}])

An export writes the layout into config.pbtxt (the parameter `features`), where clients read it; a
store of users records it beside the users (`cascade.store.records`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade import values
from cascade.encoding import InvalidInput
from cascade.errors import CascadeError
from cascade.schema import Kind, Schema

User = Mapping[str, Any]
"""Raw feature values by name: numbers, strings, lists of strings. Absent or None = missing."""

Dense = npt.NDArray[np.float32]
Categorical = npt.NDArray[np.object_]


class LayoutError(CascadeError, ValueError):
    """A text that does not list the features of a user."""


@dataclass(frozen=True)
class IdFeature:
    """One column of the tensor `categorical`. The server reads `length` members: the first ones of
    a bag, the last of a sequence."""

    name: str
    kind: Kind = "categorical"
    length: int = 1

    @property
    def multivalued(self) -> bool:
        """Whether a value is a list of strings."""
        return self.kind != "categorical"

    def to_wire(self, value: object) -> bytes:
        """UTF-8, members joined by `|`; empty = missing. Raises InvalidInput."""
        if self.kind == "categorical":
            return values.category(self.name, value)
        if self.kind == "bag":
            return values.bag(self.name, value, self.length)
        return values.sequence(self.name, value, self.length)


@dataclass(frozen=True)
class RequestLayout:
    """The features of a user in the order of the two tensors.

    Args:
        dense: names of the numbers, the columns of `dense`.
        categorical: categoricals, bags and sequences, the columns of `categorical`.
        layout_hash: as of the schema (`Schema.layout_hash`).
        items: features of the items by whose values a user may ask for items (`allow`). They are
            no part of the tensors, so they do not count when layouts are compared.
        string_ids: items are named by strings instead of integers, in answers and in `exclude`.
    """

    dense: tuple[str, ...]
    categorical: tuple[IdFeature, ...]
    layout_hash: str
    items: tuple[str, ...] = field(default=(), compare=False)
    string_ids: bool = field(default=False, compare=False)

    @classmethod
    def of(cls, schema: Schema) -> RequestLayout:
        """The layout of the requests of a schema."""
        return RequestLayout(
            tuple(feature.name for feature in schema.dense("user")),
            tuple(IdFeature(f.name, f.kind, f.length) for f in schema.ids("user")),
            schema.layout_hash,
            tuple(feature.name for feature in schema.ids("item")),
            schema.string_ids,
        )

    def to_json(self) -> str:
        """The parameter `features` of config.pbtxt."""
        categorical = [
            {"name": f.name, "bag": f.multivalued, "length": f.length}
            | ({"sequence": True} if f.kind == "sequence" else {})
            for f in self.categorical
        ]
        content = {"dense": self.dense, "categorical": categorical, "items": self.items}
        return json.dumps(content | ({"string_ids": True} if self.string_ids else {}))

    @classmethod
    def from_json(cls, features: str, layout_hash: str) -> RequestLayout:
        """Read back `to_json`, also of an export that did not write `items`, `sequence` or
        `string_ids` yet. Raises LayoutError if the text is no such JSON."""
        try:
            content = json.loads(features)
            categorical = [
                id_feature(f["name"], int(f["length"]), f["bag"], f.get("sequence", False))
                for f in content["categorical"]
            ]
            items = tuple(content.get("items", ()))
            string_ids = bool(content.get("string_ids", False))
            dense = tuple(content["dense"])
            return RequestLayout(dense, tuple(categorical), layout_hash, items, string_ids)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise LayoutError(
                f"{features[:40]!r} does not list the features of a user: {error!r}"
            ) from error

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every feature that a user may have, in the order of the columns."""
        return (*self.dense, *(feature.name for feature in self.categorical))

    @cached_property
    def columns(self) -> dict[str, int]:
        """Where a feature stands in its tensor, by name."""
        ids = {feature.name: column for column, feature in enumerate(self.categorical)}
        return {name: column for column, name in enumerate(self.dense)} | ids

    @cached_property
    def id_features(self) -> dict[str, IdFeature]:
        """The features of `categorical` by name."""
        return {feature.name: feature for feature in self.categorical}

    @property
    def dense_width(self) -> int:
        """F_dense. A user without numbers sends one unused column, because Triton takes no tensor
        without elements."""
        return max(1, len(self.dense))

    @property
    def categorical_width(self) -> int:
        """F_cat, likewise at least 1."""
        return max(1, len(self.categorical))

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """Those of the two tensors that hold features of a user."""
        held = {"dense": self.dense, "categorical": self.categorical}
        return tuple(name for name, features in held.items() if features)

    def of_columns(self, columns: Sequence[str], table: str) -> tuple[list[str], list[str]]:
        """The features that a table has as columns, and those that it lacks. Raises InvalidInput
        if it has none of them."""
        present = [name for name in self.names if name in columns]
        if not present:
            raise InvalidInput(
                f"{table} has none of the features {', '.join(self.names)} as a column; its "
                f"columns are {', '.join(columns)}"
            )
        return present, [name for name in self.names if name not in columns]

    def empty(self, users: int = 1) -> tuple[Dense, Categorical]:
        """dense [B, F_dense] and categorical [B, F_cat] in which every value is missing."""
        return (
            np.full((users, self.dense_width), np.nan, np.float32),
            np.full((users, self.categorical_width), b"", np.object_),
        )

    def fill(self, user: User, dense: Dense, categorical: Categorical) -> None:
        """Write values into a user's rows, [F_dense] and [F_cat]; features that are not named stay.
        The InvalidInput names the feature and says what came and what was expected."""
        if not isinstance(user, Mapping):
            raise InvalidInput(
                f"a user is a dict of feature values by name; a {type(user).__name__} came"
            )
        for name, value in user.items():
            if name not in self.columns:
                raise InvalidInput(values.unknown_name("feature", name, self.names))
            if name in self.id_features:
                categorical[self.columns[name]] = self.id_features[name].to_wire(value)
            else:
                dense[self.columns[name]] = values.number(name, value)

    def arrays(self, users: Sequence[User]) -> tuple[Dense, Categorical]:
        """Users as the two tensors: float32 [B, F_dense] and object (bytes) [B, F_cat]. The
        InvalidInput says which of several users."""
        dense, categorical = self.empty(len(users))
        for row, user in enumerate(users):
            try:
                self.fill(user, dense[row], categorical[row])
            except InvalidInput as error:
                raise of_user(row, len(users), error) from error.__cause__
        return dense, categorical


def id_feature(name: str, length: int, multivalued: bool, sequence: bool) -> IdFeature:
    """From the two flags that stand in JSON for the kind of a feature."""
    kind: Kind = "sequence" if sequence else "bag" if multivalued else "categorical"
    return IdFeature(name, kind, length)


def of_user(user: int, users: int, error: InvalidInput) -> InvalidInput:
    """The error with the user's number in front, where there are several users."""
    return InvalidInput(f"user {user}: {error}" if users > 1 else str(error))
