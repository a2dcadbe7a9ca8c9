"""How elements of one tensor come to where a value has them: by a reshape, a slice and a
transposition, which move blocks, where a Gather would move element by element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import numpy as np

from cascade.artifact import Array


@dataclass(frozen=True)
class Turns:
    """The tensor as `dims`, of each axis the coordinates from `starts` to `ends`, its axes then in
    this `order`.

        >>> turns(np.arange(24).reshape(4, 3, 2).transpose(1, 0, 2).reshape(3, 8), 24)
        Turns(dims=(4, 3, 2), starts=(0, 0, 0), ends=(4, 3, 2), order=(1, 0, 2))
        >>> turns(np.array([[3, 5], [9, 11]]), 12)  # places 3, 5 of 6, of every 6
        Turns(dims=(2, 3, 2), starts=(0, 1, 1), ends=(2, 3, 2), order=(0, 1, 2))
    """

    dims: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def slices(self) -> bool:
        return any(self.starts) or self.ends != self.dims

    @property
    def transposes(self) -> bool:
        return self.order != tuple(range(len(self.order)))


def turns(place: Array, size: int) -> Turns | None:
    """Of a value's places in a flattened tensor of that size; None where no turns give them."""
    if not place.size:
        return None
    digits = _digits(place)
    if digits is None or any(stride < 1 for _, stride in digits):
        return None
    largest = sorted(range(len(digits)), key=lambda digit: -digits[digit][1])
    strides = [size, *(digits[digit][1] for digit in largest)]
    if strides[-1] > 1 or len(strides) == 1:
        strides.append(1)  # one coordinate of a last axis
    dims, starts, ends = [], [], []
    rest = int(place.flat[0])
    for number, (larger, stride) in enumerate(pairwise(strides)):
        dim, remainder = divmod(larger, stride)
        start, rest = divmod(rest, stride)
        count = digits[largest[number]][0] if number < len(largest) else 1
        if remainder or start + count > dim:
            return None
        dims.append(dim)
        starts.append(start)
        ends.append(start + count)
    order = [*np.argsort(largest).tolist(), *range(len(largest), len(dims))]
    return Turns(tuple(dims), tuple(starts), tuple(ends), tuple(order))


def _digits(place: Array) -> list[tuple[int, int]] | None:
    """Counts and strides, the axes of `place` one after the other and each taken apart, such that a
    place is the first one plus the sum of digits times strides; None where there are none."""
    first = place.flat[0]
    steps = []
    for axis in range(place.ndim):
        row: Sequence[int | slice] = [slice(None) if a == axis else 0 for a in range(place.ndim)]
        steps.append(place[tuple(row)] - first)
    total = reduce(np.add.outer, steps, np.asarray(first))
    if not (total == place).all():
        return None
    found: list[tuple[int, int]] = []
    for step in steps:
        inner: list[tuple[int, int]] = []
        while len(step) > 1:
            even = step == np.arange(len(step)) * step[1]
            count = len(step) if even.all() else int(even.argmin())
            blocks, left = divmod(len(step), count)
            if (
                left
                or not (step.reshape(blocks, count) == step[::count, None] + step[:count]).all()
            ):
                return None
            inner.insert(0, (count, int(step[1])))
            step = step[::count]
        found += inner
    return found
