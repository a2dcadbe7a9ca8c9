"""What the split knows of a value of the flat graph: for each element of a row, which tensor of
which side holds it.

A row is one (user, item) pair. Shapes here leave the axis of the rows out, which stands first in
every tensor: B users, N items, or B * K pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from onnx import helper

from cascade.artifact import Array

Side = Literal["user", "item", "both"]
USER: Side = "user"
ITEM: Side = "item"
BOTH: Side = "both"
SIDES: tuple[Side, ...] = (USER, ITEM, BOTH)
CODES = {side: code for code, side in enumerate(SIDES)}


@dataclass(frozen=True, eq=False)
class Part:
    """A tensor [rows, *shape] of one side: a row per user, per item or per pair."""

    side: Side
    name: str
    shape: tuple[int, ...]
    dtype: int  # of onnx.TensorProto

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        return self.size * item_bytes(self.dtype)


@dataclass(frozen=True)
class Cost:
    """What an operation takes for one row of its side: multiply-adds of a product, and bytes of the
    rows that a lookup reads of a table."""

    multiply_adds: int = 0
    table_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.multiply_adds + other.multiply_adds, self.table_bytes + other.table_bytes)


@dataclass(frozen=True, eq=False)
class Mosaic:
    """Elements of several parts, put together as a row has them.

    Args:
        part: index into `parts`, place: position in that part when it is flattened; both have the
            shape of a row. An operation that moves elements does to them what it does to a row.
    """

    parts: tuple[Part, ...]
    part: Array
    place: Array

    @classmethod
    def of(cls, part: Part) -> Mosaic:
        """All of a part."""
        places = np.arange(part.size, dtype=np.int64).reshape(part.shape)
        return cls((part,), np.zeros(part.shape, np.int32), places)

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.part.shape
        return shape

    @property
    def dtype(self) -> int:
        return self.parts[0].dtype

    @cached_property
    def used(self) -> tuple[Part, ...]:
        """The parts that have elements in it."""
        return tuple(self.parts[i] for i in np.unique(self.part))

    @cached_property
    def sides(self) -> frozenset[Side]:
        return frozenset(part.side for part in self.used)

    @property
    def whole(self) -> Part | None:
        """The part that this is, unchanged; None where it is not one."""
        if len(self.used) != 1 or self.used[0].shape != self.shape:
            return None
        return self.used[0] if in_order(self.place) else None

    def moved(self, move: Callable[[Array], Array]) -> Mosaic:
        """The same elements in other places."""
        return Mosaic(self.parts, np.asarray(move(self.part)), np.asarray(move(self.place)))

    def take(self, coordinates: Array, axis: int) -> Mosaic:
        """Some coordinates along an axis."""
        return self.moved(lambda a: np.take(a, coordinates, axis))

    def by_axis(self, axis: int) -> dict[Side, Array] | None:
        """The coordinates along an axis that each side holds; None where one coordinate has
        elements of several sides."""
        codes = np.array([CODES[p.side] for p in self.parts], np.int8)[self.part]
        codes = np.moveaxis(codes, axis, 0).reshape(self.shape[axis], -1)
        if not codes.size or not (codes == codes[:, :1]).all():
            return None
        found = {side: np.flatnonzero(codes[:, 0] == CODES[side]) for side in SIDES}
        return {side: where for side, where in found.items() if len(where)}

    def runs(self, axis: int) -> list[Array]:
        """Neighbouring coordinates along an axis that one part holds; empty where a coordinate has
        elements of several parts, or all are of one run."""
        count = self.shape[axis]
        part = np.moveaxis(self.part, axis, 0).reshape(count, -1)
        if count < 2 or not part.size or not (part == part[:, :1]).all():
            return []
        place = np.moveaxis(self.place, axis, 0).reshape(count, -1)
        first, last = place.min(axis=1), place.max(axis=1)
        ends = np.array([p.size - 1 for p in self.parts])[part[:, 0]]
        other = part[1:, 0] != part[:-1, 0]
        again = (first[1:] == 0) & (last[:-1] == ends[:-1]) & (first[1:] < first[:-1])
        cuts = np.flatnonzero(other | again) + 1
        return np.split(np.arange(count), cuts) if len(cuts) else []


@dataclass(frozen=True, eq=False)
class Sum:
    """A value that is the sum of at most one term of each side, all of one shape. It is added up
    where an operation needs it whole, so that a user's term is added once per pair at most."""

    terms: Mapping[Side, Part]

    @property
    def shape(self) -> tuple[int, ...]:
        return next(iter(self.terms.values())).shape

    @property
    def sides(self) -> frozenset[Side]:
        return frozenset(self.terms)


@dataclass(frozen=True, eq=False)
class Opaque:
    """A tensor of which no rows are known. Only the operation that reads it in the flat graph may
    read it here."""

    side: Side
    name: str

    @property
    def sides(self) -> frozenset[Side]:
        return frozenset([self.side])


Value = Mosaic | Sum | Opaque


def item_bytes(dtype: int) -> int:
    """Of one element of a type of onnx.TensorProto."""
    return int(helper.tensor_dtype_to_np_dtype(dtype).itemsize)


def in_order(place: Array) -> bool:
    """Whether the elements lie as in memory."""
    return bool((place.ravel() == np.arange(place.size)).all())


def concatenated(mosaics: Sequence[Mosaic], axis: int) -> Mosaic:
    """One after the other along an axis."""
    parts = list(dict.fromkeys(part for mosaic in mosaics for part in mosaic.parts))
    number = {part: i for i, part in enumerate(parts)}
    coded = [np.array([number[p] for p in m.parts], np.int32)[m.part] for m in mosaics]
    places = [m.place for m in mosaics]
    return Mosaic(tuple(parts), np.concatenate(coded, axis), np.concatenate(places, axis))


def assembled(pieces: Sequence[tuple[Array, Mosaic]], axis: int) -> Mosaic:
    """Pieces back at their coordinates along an axis."""
    order = np.argsort(np.concatenate([where for where, _ in pieces]))
    return concatenated([mosaic for _, mosaic in pieces], axis).take(order, axis)
