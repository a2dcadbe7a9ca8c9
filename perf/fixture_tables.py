"""Criteo's features with tables of a chosen size, and skewed draws of their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade.data.criteo import CATEGORIES, SCHEMA
from cascade.encoding import Encoder
from cascade.schema import Feature, Schema

Codes = npt.NDArray[np.int64]

# Distinct values of C1 … C26 in Criteo Kaggle, as the DLRM paper's code prints them: 33.8 million.
CARDINALITIES = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
SMALL_TABLE = 10_000  # rows of the largest table where the paper's sizes are not asked for
LONGEST_VOCABULARY = (
    20_000  # values beyond which a feature is hashed: a server keeps them in memory
)
ZIPF = 1.1  # exponent of the popularity of values


def sizes(paper: bool) -> dict[str, int]:
    """Values of every categorical feature."""
    limit = max(CARDINALITIES) if paper else SMALL_TABLE
    return {n: min(c, limit) for n, c in zip(CATEGORIES, CARDINALITIES, strict=True)}


def fit(values: Mapping[str, int], seen: Mapping[str, Sequence[str]]) -> Encoder:
    """The encoder whose tables have so many values each, two reserved rows besides.

    Args:
        values: how many, by feature.
        seen: real values by feature, the most frequent first; they go into the vocabulary before
            any that are made up. A feature that is hashed needs none.
    """
    features = tuple(_sized(f, values) if f.kind != "dense" else f for f in SCHEMA.features)
    schema = Schema(SCHEMA.name, features)
    vocabularies = {
        f.name: _vocabulary(CATEGORIES.index(f.name), values[f.name], seen.get(f.name, ()))
        for f in features
        if f.encoding == "vocabulary" and f.kind != "dense"
    }
    return Encoder.fit(schema, vocabularies)


def _sized(feature: Feature, values: Mapping[str, int]) -> Feature:
    count = values[feature.name]
    if count > LONGEST_VOCABULARY:
        return replace(feature, encoding="hash", buckets=count, min_count=1)
    return replace(feature, min_count=1)


def _vocabulary(feature: int, count: int, seen: Sequence[str]) -> list[bytes]:
    real = [value.encode() for value in seen[:count]]
    known = set(real)
    made_up = (name(feature, code).encode() for code in range(count + len(real)))
    real += [value for value in made_up if value not in known]
    return real[:count]


def name(feature: int, code: int) -> str:
    """A made-up value as eight hex digits, another one for every code of a feature."""
    return f"{((feature + 1) * 0x1234567 + code * 2654435761) % 2**32:08x}"


def skewed(random: np.random.Generator, size: int, shape: Any) -> Codes:
    """Codes below `size` by Zipf's law: code r comes with a density of (r + 1) ^ -ZIPF.

    By the inverse of the continuous law, for a table of its steps would be as long as the feature
    has values.
    """
    power = 1 - ZIPF
    u = random.random(shape)
    rank = ((u * ((size + 1.0) ** power - 1)) + 1) ** (1 / power)
    codes: Codes = np.minimum(rank.astype(np.int64) - 1, size - 1)
    return codes
