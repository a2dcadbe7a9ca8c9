"""Two-tower retrieval: a user and an item meet in one dot product.

Yi et al., "Sampling-bias-corrected neural modeling for large corpus item recommendations",
RecSys 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cascade.models.embeddings import Embeddings
from cascade.models.scorer import Retriever, mlp, run_mlp
from cascade.schema import Feature, Schema, Side

OTHERS = 0.1  # how large drawn vectors are beside those that training begins with


@dataclass(frozen=True)
class TwoTowerConfig:
    """The widths of both towers."""

    width: int = 16  # of each feature's embedding
    layers: tuple[int, ...] = (512, 256, 256)  # the last is that of the shared space
    factors: bool = False  # whether each id has a vector of its own in the shared space, too


PRESETS = {
    "default": TwoTowerConfig(),
    # For logs of choices: what a layer learns of all ids, plus a factorisation of the log.
    "factors": TwoTowerConfig(layers=(128, 128), factors=True),
    "tiny": TwoTowerConfig(width=4, layers=(16, 8)),
}


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


class Factors(nn.Module):
    """A tower's vectors [B, D], and a vector for each id added to them; the last number of an
    item's vector is a bias, that of a user's is 1.

    As in matrix factorisation, an id that occurs often has a vector of its own; as in a tower, one
    that occurs seldom is where its features are. A list of L members adds the sum of their vectors
    over the square root of L.
    """

    def __init__(self, schema: Schema, side: Side, config: TwoTowerConfig) -> None:
        super().__init__()
        self.user = side == "user"
        self.tower = Tower(schema, side, config)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.ids = Embeddings(schema.ids(side), config.layers[-1], power=0.5, by_age=True)
        nn.init.normal_(self.ids.table.weight, std=0.05)

    @torch.no_grad()
    def begin(self, feature: Feature, ids: Tensor, vectors: Tensor) -> None:
        """Begin with vectors [M, R], R < D, for some ids [M] of a feature."""
        table = self.ids.table.weight
        table *= OTHERS  # what is drawn says nothing, beside vectors that do
        table[self.ids.first_row(feature) + ids, : vectors.shape[1]] += vectors.to(table.device)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        vectors: Tensor = self.tower(dense, ids) * self.scale + self.ids(ids).sum(1)
        if not self.user:
            return vectors
        return torch.cat((vectors[:, :-1], torch.ones_like(vectors[:, -1:])), dim=1)


class TwoTower(Retriever):
    """`user` and `item` are the towers, `cross` is the dot product of the two. U = V = D."""

    def __init__(self, schema: Schema, config: TwoTowerConfig) -> None:
        super().__init__(schema)
        self.user_width = self.item_width = config.layers[-1]
        self.factors = config.factors
        self.unit_vectors = not config.factors
        tower = Factors if config.factors else Tower
        self.user_tower = tower(schema, "user", config)
        self.item_tower = tower(schema, "item", config)

    def begin(self, feature: Feature, ids: Tensor, vectors: Tensor) -> None:
        """Let the factors of some ids [M] of a feature begin with vectors [M, R], R < D."""
        tower = self.user_tower if feature.side == "user" else self.item_tower
        assert isinstance(tower, Factors)
        tower.begin(feature, ids, vectors)

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
