"""Which features a stored user has: all that a store knows of a schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade import values
from cascade.encoding import InvalidInput
from cascade.errors import CascadeError

Dense = npt.NDArray[np.float32]
Categorical = npt.NDArray[np.object_]


class OtherLayout(CascadeError, ValueError):
    """A store, or a record of it, was written for users of other features."""


@dataclass(frozen=True)
class UserLayout:
    """The features of a user in the order of the two tensors of a request.

    Args:
        dense: names of the numbers.
        categorical: names of the categoricals and bags.
        bags: of those, the bags and sequences, and how many members of each are read.
        sequences: of those, the sequences: the last members are read, not the first.
        hash: the schema's `layout_hash`.
    """

    dense: tuple[str, ...]
    categorical: tuple[str, ...]
    bags: Mapping[str, int]
    hash: str
    sequences: tuple[str, ...] = ()

    @classmethod
    def from_features(cls, features: str, layout_hash: str) -> UserLayout:
        """From the JSON of `cascade.spec.wire_features`, as it stands in a config.pbtxt.

        Raises:
            ValueError: it is not such a text.
        """
        try:
            value = json.loads(features)
            categorical = value["categorical"]
            return cls(
                tuple(value["dense"]),
                tuple(feature["name"] for feature in categorical),
                {f["name"]: int(f["length"]) for f in categorical if f["bag"]},
                layout_hash,
                tuple(f["name"] for f in categorical if f.get("sequence")),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{features[:40]!r} does not list the features of a user: {error!r}"
            ) from error

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> UserLayout:
        """Read back `to_json`.

        Raises:
            ValueError: the text is damaged.
        """
        try:
            value = json.loads(text)
            return cls(
                tuple(value["dense"]),
                tuple(value["categorical"]),
                {name: int(length) for name, length in value["bags"].items()},
                str(value["hash"]),
                tuple(value.get("sequences", ())),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a layout of users: {error!r}") from error

    def check_same(self, other: UserLayout, where: str) -> None:
        """Raises OtherLayout where `other`, found at `where`, has another hash."""
        if other.hash == self.hash:
            return
        names = [set(layout.names) for layout in (self, other)]
        differ = sorted(names[0] ^ names[1])
        what = f"only one of the two has {', '.join(differ)}" if differ else "same names"
        raise OtherLayout(
            f"{where} was written for layout {other.hash}, but the layout here is {self.hash} "
            f"({what}). Write the users anew: python -m export users --replace"
        )

    @property
    def width(self) -> int:
        """Columns of `dense`; a user without numbers has one that nobody reads."""
        return max(1, len(self.dense))

    @property
    def columns(self) -> int:
        """Columns of `categorical`, likewise."""
        return max(1, len(self.categorical))

    @property
    def names(self) -> tuple[str, ...]:
        """Every feature that a user may have."""
        return (*self.dense, *self.categorical)

    def nobody(self, users: int = 1) -> tuple[Dense, Categorical]:
        """Users of whom nothing is known: dense [B, F_dense] and categorical [B, F_cat]."""
        return (
            np.full((users, self.width), np.nan, np.float32),
            np.full((users, self.columns), b"", np.object_),
        )

    def fill(self, user: Mapping[str, Any], dense: Dense, categorical: Categorical) -> None:
        """Write raw values by name into a user's rows, [F_dense] and [F_cat]. None is missing.

        Raises:
            InvalidInput: names the feature and says what came and what was expected.
        """
        for name, value in user.items():
            if name not in self._column:
                raise InvalidInput(values.unknown_name("feature", name, self.names))
            column = self._column[name]
            if column < len(self.dense):
                dense[column] = values.number(name, value)
            elif name in self.bags:
                categorical[column - len(self.dense)] = self.members(name, value)
            else:
                categorical[column - len(self.dense)] = values.category(name, value)

    def members(self, name: str, value: object) -> bytes:
        """The value of a bag or sequence as it is stored. Raises InvalidInput."""
        wire = values.sequence if name in self.sequences else values.bag
        return wire(name, value, self.bags[name])

    @cached_property
    def _column(self) -> dict[str, int]:
        return {name: column for column, name in enumerate(self.names)}
