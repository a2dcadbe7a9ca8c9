"""Two-tower retrieval: a user and an item meet in one dot product.

Yi et al., "Sampling-bias-corrected neural modeling for large corpus item recommendations",
RecSys 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cascade.models.embeddings import Embeddings
from cascade.models.scorer import Scorer, mlp, run_mlp
from cascade.schema import Schema, Side


@dataclass(frozen=True)
class TwoTowerConfig:
    """The widths of both towers."""

    width: int = 16  # of each feature's embedding
    layers: tuple[int, ...] = (512, 256, 256)  # the last is that of the shared space


PRESETS = {"default": TwoTowerConfig(), "tiny": TwoTowerConfig(width=4, layers=(16, 8))}


class Tower(nn.Module):
    """dense [B, F_dense], ids [B, C] -> unit vectors [B, D]."""

    def __init__(self, schema: Schema, side: Side, config: TwoTowerConfig) -> None:
        super().__init__()
        self.dense_count = len(schema.dense(side))
        self.embeddings = Embeddings(schema.ids(side), config.width)
        first = self.dense_count + len(schema.ids(side)) * config.width
        self.layers = mlp((first, *config.layers))

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        x = self.embeddings(ids).flatten(1)
        if self.dense_count:
            x = torch.cat((dense, x), dim=1)
        return nn.functional.normalize(run_mlp(self.layers, x), dim=-1)


class TwoTower(Scorer):
    """`user` and `item` are the towers, `cross` is the cosine of the two. U = V = D."""

    def __init__(self, schema: Schema, config: TwoTowerConfig) -> None:
        super().__init__(schema)
        self.user_width = self.item_width = config.layers[-1]
        self.user_tower = Tower(schema, "user", config)
        self.item_tower = Tower(schema, "item", config)

    def user_parts(self) -> tuple[str, ...]:
        return ("user_tower",)

    def item_parts(self) -> tuple[str, ...]:
        return ("item_tower",)

    def user(self, dense: Tensor, ids: Tensor) -> Tensor:
        vectors: Tensor = self.user_tower(dense, ids)
        return vectors

    def item(self, dense: Tensor, ids: Tensor) -> Tensor:
        vectors: Tensor = self.item_tower(dense, ids)
        return vectors

    def cross(self, user: Tensor, item: Tensor) -> Tensor:
        return torch.matmul(item.to(user.dtype), user.unsqueeze(-1)).squeeze(-1)
