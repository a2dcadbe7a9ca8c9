"""Filters drawn at random, and what is left of a catalogue under them, by the raw values alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cascade.schema import Schema


@dataclass(frozen=True)
class Shop:
    """The items as they came: ids [N] and, by feature, the set of values of each item."""

    ids: Any
    values: dict[str, list[set[str]]]

    @classmethod
    def of(cls, checkpoints: Path, schema: Schema) -> Shop:
        table = pq.read_table(checkpoints / "catalogue.parquet")
        values = {
            feature.name: [
                {v for v in (text.split("|") if feature.kind == "bag" else [text]) if v}
                for text in table[feature.name].to_pylist()
            ]
            for feature in schema.ids("item")
        }
        return cls(table["item_id"].to_numpy(), values)

    def left(self, case: Case, denied: set[int]) -> set[int]:
        """Ids of the items that may be recommended."""
        return {
            int(item)
            for place, item in enumerate(self.ids)
            if int(item) not in denied
            and int(item) not in case.exclude
            and all(
                self.values[feature][place] & set(wanted) for feature, wanted in case.allow.items()
            )
        }


@dataclass(frozen=True)
class Case:
    """A user's filters."""

    exclude: list[int] = field(default_factory=list)
    allow: dict[str, list[str]] = field(default_factory=dict)

    @property
    def wire(self) -> tuple[bytes, bytes]:
        """As they are sent."""
        packed = np.array(self.exclude, "<i8").tobytes()
        return packed, json.dumps(self.allow).encode() if self.allow else b""


def column(parts: list[bytes]) -> Any:
    """[B] -> object [B, 1]."""
    found = np.empty((len(parts), 1), object)
    found[:, 0] = parts
    return found


def draw(shop: Shop, random: np.random.Generator, most: int = 1000) -> Case:
    """No filter, one or both; few items or nearly all; ids and values that nobody has."""
    exclude: list[int] = []
    if random.random() < 0.6:
        share = random.choice([0.01, 0.3, 0.95, 1.0])
        count = min(most, round(share * len(shop.ids)))
        exclude = [*random.permutation(shop.ids)[:count].tolist(), 7][:most]
    allow: dict[str, list[str]] = {}
    if random.random() < 0.6:
        features = random.permutation(list(shop.values))[: random.integers(1, 3)]
        for feature in features.tolist():
            known = sorted(set().union(*shop.values[feature]))
            wanted = random.permutation(known)[: random.choice([1, 3, len(known)])].tolist()
            allow[feature] = [*wanted, "nobody has this"]
    return Case(exclude, allow)


def intra_list_similarity(vectors: Any) -> float:
    """Mean cosine of the pairs of a list [R, D] of vectors of length 1 (Ziegler et al., WWW 2005);
    0 if there is no pair."""
    count = len(vectors)
    if count < 2:
        return 0.0
    return float(((vectors @ vectors.T).sum() - count) / (count * (count - 1)))
