"""A small shop: the schema and the rows of the examples in the docstrings of the models."""

from __future__ import annotations

import torch
from torch import Tensor

from cascade.schema import Feature, Schema

SHOP = Schema(
    "shop",
    (
        Feature("age", "user", "dense", "log1p"),
        Feature("city", "user", "categorical", "vocabulary", cardinality=40),
        Feature(
            *("bought", "user", "sequence", "vocabulary", 5), cardinality=1000, shares="product"
        ),
        Feature("price", "item", "dense", "log1p"),
        Feature("product", "item", "categorical", "vocabulary", cardinality=1000),
        Feature("tags", "item", "bag", "vocabulary", 3, cardinality=30),
    ),
)


def rows(count: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """user_dense [B, 1], user_ids [B, 6], item_dense [B, 1] and item_ids [B, 4] of drawn rows."""
    random = torch.Generator().manual_seed(0)

    def ids(*most: int) -> Tensor:
        return torch.cat([torch.randint(n, (count, 1), generator=random) for n in most], dim=1)

    numbers = torch.rand(2, count, 1, generator=random)
    return numbers[0], ids(40, *[1000] * 5), numbers[1], ids(1000, 30, 30, 30)
