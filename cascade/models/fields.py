"""What the textbook models read: the features of (user, item) rows as numbers and vectors, the ids
that tell users and items apart, and the items that a user met."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cascade.errors import CascadeError
from cascade.models.embeddings import Embeddings
from cascade.schema import Feature, Schema, Side


class UnfitSchema(CascadeError):
    """A schema that lacks a feature without which a model is none."""


class Fields(nn.Module):
    """(user, item) rows -> numbers [B, n] and vectors [B, F, D], the user's before the item's.

    A categorical has one vector, a bag or sequence the mean of its members'. With `vectors_of_all`,
    a number has one instead: a learnt vector times the number (Song et al., CIKM 2019, section
    4.2), behind those of the ids of its side.
    """

    def __init__(self, schema: Schema, width: int, vectors_of_all: bool = False) -> None:
        super().__init__()
        self.dense = {side: len(schema.dense(side)) for side in SIDES}
        self.user, self.item = (Embeddings(schema.ids(side), width) for side in SIDES)
        self.numbers = 0 if vectors_of_all else sum(self.dense.values())
        self.count = len(schema.ids("user")) + len(schema.ids("item"))
        self.scales = nn.ParameterDict()
        if vectors_of_all:
            self.count += sum(self.dense.values())
            for side, dense in self.dense.items():
                if dense:
                    self.scales[side] = nn.Parameter(torch.empty(dense, width))
                    nn.init.normal_(self.scales[side], std=0.01)
        self.width = self.numbers + self.count * width  # of `flat`

    def forward(
        self, user_dense: Tensor, user_ids: Tensor, item_dense: Tensor, item_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        numbers, vectors = [], []
        rows = (self.user, user_dense, user_ids), (self.item, item_dense, item_ids)
        for side, (table, dense, ids) in zip(SIDES, rows, strict=True):
            vectors.append(table(ids))
            if self.dense[side]:
                if side in self.scales:
                    vectors.append(dense.unsqueeze(2) * self.scales[side])
                else:
                    numbers.append(dense)
        none = user_dense[:, :0]
        return torch.cat(numbers, dim=1) if numbers else none, torch.cat(vectors, dim=1)

    def flat(
        self, user_dense: Tensor, user_ids: Tensor, item_dense: Tensor, item_ids: Tensor
    ) -> Tensor:
        """All of a row side by side, [B, n + F * D]."""
        return self.beside(*self(user_dense, user_ids, item_dense, item_ids))

    def beside(self, numbers: Tensor, vectors: Tensor) -> Tensor:
        """The same, of what a call returned."""
        x = vectors.flatten(1)
        return torch.cat((numbers, x), dim=1) if self.numbers else x


SIDES: tuple[Side, Side] = ("user", "item")


def own_id(schema: Schema, side: Side) -> Feature:
    """The feature that tells the users or the items apart: of the categoricals of a side the one
    with the most values. Raises UnfitSchema: it has none."""
    found = [feature for feature in schema.ids(side) if feature.kind == "categorical"]
    if not found:
        raise UnfitSchema(
            f"schema {schema.name} has no categorical of the {side}, by which the model could tell "
            f"one {side} from another; add one, or choose another model"
        )
    return max(found, key=lambda feature: feature.cardinality)


class Met(NamedTuple):
    """The items that a user met: a sequence of the user, and the feature of the items whose ids
    its members are."""

    sequence: Feature
    item: Feature


def met(schema: Schema) -> Met:
    """The first sequence of the user that shares the ids of an item feature. Raises UnfitSchema:
    there is none."""
    for feature in schema.ids("user"):
        if feature.kind == "sequence" and feature.shares:
            return Met(feature, schema.owner(feature))
    raise UnfitSchema(
        f"schema {schema.name} has no sequence of the user that shares the ids of an item feature "
        "(`shares`), which the model reads; add one, or choose another model"
    )


def column(schema: Schema, feature: Feature, ids: Tensor) -> Tensor:
    """The ids of one feature, [B, length], among those of its side, [B, C]."""
    start = schema.first_column(feature)
    return ids[:, start : start + feature.length]
