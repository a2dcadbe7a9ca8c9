"""Schemas drawn at random, and rows that fit them: shared by the tests of models and of export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from cascade.schema import Feature, Kind, Schema, Side

KINDS: dict[str, tuple[Kind, ...]] = {
    "all": ("dense", "categorical", "bag", "sequence"),
    "no numbers": ("categorical", "bag", "sequence"),
    "numbers alone": ("dense",),
}


@dataclass(frozen=True)
class Rows:
    """dense float32 [B, F_dense], ids int64 [B, C] of one side, as `Encoder` gives them."""

    dense: Tensor
    ids: Tensor

    def __getitem__(self, rows: slice | Tensor) -> Rows:
        return Rows(self.dense[rows], self.ids[rows])

    def double(self) -> Rows:
        return Rows(self.dense.double(), self.ids)

    @property
    def both(self) -> tuple[Tensor, Tensor]:
        return self.dense, self.ids


@st.composite
def schemas(draw: st.DrawFn, most: int = 4, needs: Sequence[str] = ()) -> Schema:
    """A fitted schema: any mix of kinds on either side, sides without numbers or without ids, sides
    of a single feature, and the features of the two sides in any order; with what a model needs
    (`Scorer.needs`)."""
    features = []
    if "ids" in needs:
        features += [_feature(draw, side, "categorical", 9) for side in ("user", "item")]
    if "history" in needs:
        item = _feature(draw, "item", "categorical", 8)
        length = draw(st.integers(1, 5))
        shared = {"length": length, "digest": item.digest, "shares": item.name}
        met = Feature(
            "met", "user", "sequence", item.encoding, cardinality=item.cardinality, **shared
        )
        features += [item, met]
    for side in ("user", "item"):
        kinds = KINDS[draw(st.sampled_from(sorted(KINDS)))]
        for number in range(draw(st.integers(1, most))):
            features.append(_feature(draw, side, draw(st.sampled_from(kinds)), number))
    return Schema("drawn", tuple(draw(st.permutations(features))))


def _feature(draw: st.DrawFn, side: Side, kind: Kind, number: int) -> Feature:
    name = f"{side}_{kind}_{number}"
    if kind == "dense":
        return Feature(name, side, kind, "identity")
    length = draw(st.integers(1, 3)) if kind in ("bag", "sequence") else 1
    cardinality = draw(st.integers(2, 9))  # 2: nothing but missing and unknown
    return Feature(name, side, kind, "vocabulary", length, cardinality=cardinality, digest=name)


def draw_rows(schema: Schema, side: Side, count: int, seed: int) -> Rows:
    """Rows of one side; a bag or a sequence has any number of members, none included, and
    pads after them or before them."""
    random = np.random.default_rng((seed, side == "item"))
    dense = np.zeros((count, schema.dense_width(side)), np.float32)
    if schema.dense(side):
        dense = random.normal(size=dense.shape).astype(np.float32)
    ids = np.zeros((count, schema.ids_width(side)), np.int64)
    column = 0
    for feature in schema.ids(side):
        drawn = random.integers(0, feature.cardinality, (count, feature.length))
        if feature.multivalued:
            members = random.integers(0, feature.length + 1, (count, 1))
            there = np.arange(feature.length) < members
            there = there[:, ::-1] if feature.kind == "sequence" else there
            drawn = np.where(there, np.maximum(drawn, 1), 0)
        ids[:, column : column + feature.length] = drawn
        column += feature.length
    return Rows(torch.from_numpy(dense), torch.from_numpy(ids))


def bag_columns(schema: Schema, side: Side) -> list[slice]:
    """Where the bags of a side lie among the columns of its ids."""
    found, column = [], 0
    for feature in schema.ids(side):
        if feature.kind == "bag":
            found.append(slice(column, column + feature.length))
        column += feature.length
    return found
