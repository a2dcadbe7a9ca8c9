"""What single values become: a text the bucket that its hash names (`Feature.hashing`), a number
what the model sees of it.

A hash takes a value in UTF-8 and the number of buckets; `modulo` gives None for what is no integer.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cascade.schema import Feature

Floats = npt.NDArray[np.float32]
_32 = 0xFFFFFFFF


def crc32(value: bytes, buckets: int) -> int:
    """`zlib.crc32(value) % buckets`."""
    return zlib.crc32(value) % buckets


def md5(value: bytes, buckets: int) -> int:
    """`int(hashlib.md5(value).hexdigest(), 16) % buckets`."""
    digest = hashlib.md5(value, usedforsecurity=False).digest()
    return int.from_bytes(digest, "big") % buckets


def murmur3(value: bytes, buckets: int) -> int:
    """`sklearn.utils.murmurhash3_32(value, seed=0, positive=True) % buckets`: A. Appleby's
    MurmurHash3_x86_32."""
    state = 0
    whole = len(value) & ~3
    for start in range(0, whole, 4):
        state ^= _mixed(int.from_bytes(value[start : start + 4], "little"))
        state = _rotated(state, 13) * 5 + 0xE6546B64 & _32
    state ^= _mixed(int.from_bytes(value[whole:], "little")) ^ len(value)
    state = (state ^ state >> 16) * 0x85EBCA6B & _32
    state = (state ^ state >> 13) * 0xC2B2AE35 & _32
    return (state ^ state >> 16) % buckets


def modulo(value: bytes, buckets: int) -> int | None:
    """`int(value) % buckets`, never negative."""
    try:
        return int(value) % buckets
    except ValueError:
        return None


def _mixed(block: int) -> int:
    return _rotated(block * 0xCC9E2D51 & _32, 15) * 0x1B873593 & _32


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> 32 - bits) & _32


HASHES: Mapping[str, Callable[[bytes, int], int | None]] = {
    "crc32": crc32,
    "md5": md5,
    "murmur3": murmur3,
    "modulo": modulo,
}


class Numeric:
    """The numbers of one side, in the order of the columns: what each becomes for the model."""

    def __init__(self, features: Sequence[Feature]) -> None:
        def each(name: str) -> Floats | None:
            default, found = getattr(Feature, name), [getattr(f, name) for f in features]
            return np.array(found, np.float32) if set(found) - {default} else None

        self._width = len(features)  # a side without numbers has a column that no model reads
        self._fill, self._mean, self._std = each("fill"), each("mean"), each("std")
        self._log1p = np.array([f.encoding == "log1p" for f in features], bool)
        self._buckets = {
            column: np.array(f.boundaries, np.float32)
            for column, f in enumerate(features)
            if f.encoding == "buckets"
        }

    def fill(self, numbers: Floats) -> None:
        """Put the value of a missing number, by default 0, into [B, F_dense], in place."""
        missing = np.isnan(numbers)
        if self._fill is None:
            numbers[missing] = 0
        elif missing.any():
            numbers[missing] = np.broadcast_to(self._fill, numbers.shape)[missing]

    def transform(self, numbers: Floats) -> None:
        """log1p as in the DLRM paper (negative as 0), buckets, mean and deviation; in place."""
        values = numbers[:, : self._width]
        if self._log1p.any():
            logs = np.log1p(np.maximum(values, 0))
            values[:] = logs if self._log1p.all() else np.where(self._log1p, logs, values)
        for column, boundaries in self._buckets.items():
            values[:, column] = np.searchsorted(boundaries, values[:, column], side="right")
        if self._mean is not None:
            values -= self._mean
        if self._std is not None:
            values /= self._std
