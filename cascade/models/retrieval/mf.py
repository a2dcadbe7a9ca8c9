"""Matrix factorisation with biases: a vector and a number for each user and each item.

Koren, Bell and Volinsky, "Matrix Factorization Techniques for Recommender Systems", Computer 2009,
equation 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cascade.models.embeddings import Embeddings
from cascade.models.fields import column, own_id
from cascade.models.scorer import Retriever
from cascade.schema import Schema


@dataclass(frozen=True)
class MatrixFactorizationConfig:
    """How many factors a user and an item have."""

    factors: int = 64


PRESETS = {
    # The paper's figure 4 tries 40 to 1500 factors.
    "default": MatrixFactorizationConfig(),
    "paper": MatrixFactorizationConfig(factors=200),
    "tiny": MatrixFactorizationConfig(factors=4),
}


class MatrixFactorization(Retriever):
    """score(u, i) = mu + b_u + b_i + <p_u, q_i>, by the ids of users and items alone.

    U = V = factors + 2: the states are (p_u, b_u + mu, 1) and (q_i, 1, b_i), whose dot product is
    the score.

        >>> from cascade.models.example import SHOP, rows
        >>> model = MatrixFactorization(SHOP, PRESETS["tiny"])
        >>> user_dense, user_ids, item_dense, item_ids = rows(2)
        >>> model.user(user_dense, user_ids).shape, model.item(item_dense, item_ids).shape
        (torch.Size([2, 6]), torch.Size([2, 6]))
    """

    needs = ("ids",)

    def __init__(self, schema: Schema, config: MatrixFactorizationConfig) -> None:
        super().__init__(schema)
        self.user_width = self.item_width = config.factors + 2
        self.ids = own_id(schema, "user"), own_id(schema, "item")
        self.user_factors, self.item_factors = (Embeddings([f], config.factors) for f in self.ids)
        self.user_bias, self.item_bias = (Embeddings([f], 1) for f in self.ids)
        self.mean = nn.Parameter(torch.zeros(1))
        for table in (self.user_factors, self.item_factors):
            nn.init.normal_(table.table.weight, std=0.1)
        for table in (self.user_bias, self.item_bias):
            nn.init.zeros_(table.table.weight)

    def user_parts(self) -> tuple[str, ...]:
        return ("user_factors", "user_bias", "mean")

    def item_parts(self) -> tuple[str, ...]:
        return ("item_factors", "item_bias")

    def user(self, dense: Tensor, ids: Tensor) -> Tensor:
        own = column(self.schema, self.ids[0], ids)
        bias = self.user_bias(own).flatten(1) + self.mean
        return torch.cat((self.user_factors(own).flatten(1), bias, torch.ones_like(bias)), dim=1)

    def item(self, dense: Tensor, ids: Tensor) -> Tensor:
        own = column(self.schema, self.ids[1], ids)
        bias = self.item_bias(own).flatten(1)
        return torch.cat((self.item_factors(own).flatten(1), torch.ones_like(bias), bias), dim=1)
