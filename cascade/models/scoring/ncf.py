"""NeuMF: matrix factorisation and an MLP over the ids of a user and an item, fused.

He, Liao, Zhang, Nie, Hu and Chua, "Neural Collaborative Filtering", WWW 2017, equation 12.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cascade.models.embeddings import Embeddings
from cascade.models.fields import column, own_id
from cascade.models.scorer import Scorer, mlp, run_mlp
from cascade.schema import Schema


@dataclass(frozen=True)
class NeuMFConfig:
    """The widths of all layers."""

    factors: int = 8  # of the factorisation
    width: int = 32  # of a user's and of an item's vector in front of the MLP
    hidden: tuple[int, ...] = (32, 16, 8)


PRESETS = {
    # Section 4.1: 8 to 64 predictive factors; the MLP has 32 -> 16 -> 8 for 8 of them.
    "default": NeuMFConfig(),
    "paper": NeuMFConfig(factors=64, width=128, hidden=(128, 64, 64)),
    "tiny": NeuMFConfig(factors=4, width=4, hidden=(4,)),
}


class NeuMF(Scorer):
    """h^T (p_u * q_i, MLP(p'_u, q'_i)): the two parts have vectors of their own.

    >>> from cascade.models.example import SHOP, rows
    >>> NeuMF(SHOP, PRESETS["default"])(*rows(2)).shape
    torch.Size([2])
    """

    needs = ("ids",)

    def __init__(self, schema: Schema, config: NeuMFConfig) -> None:
        super().__init__(schema)
        self.ids = own_id(schema, "user"), own_id(schema, "item")
        self.user_factors, self.item_factors = (Embeddings([f], config.factors) for f in self.ids)
        self.user_vectors, self.item_vectors = (Embeddings([f], config.width) for f in self.ids)
        self.layers = mlp((2 * config.width, *config.hidden))
        self.fused = nn.Linear(config.factors + config.hidden[-1], 1)
        for table in (self.user_factors, self.item_factors, self.user_vectors, self.item_vectors):
            nn.init.normal_(table.table.weight, std=0.1)

    def forward(
        self, user_dense: Tensor, user_ids: Tensor, item_dense: Tensor, item_ids: Tensor
    ) -> Tensor:
        user = column(self.schema, self.ids[0], user_ids)
        item = column(self.schema, self.ids[1], item_ids)
        factors = self.user_factors(user).flatten(1) * self.item_factors(item).flatten(1)
        vectors = (self.user_vectors(user).flatten(1), self.item_vectors(item).flatten(1))
        deep = run_mlp(self.layers, torch.cat(vectors, dim=1), last_relu=True)
        logits: Tensor = self.fused(torch.cat((factors, deep), dim=1)).squeeze(1)
        return logits
