"""YouTube's candidate generation: the mean of what a user watched, and the user's features, through
an MLP.

Covington, Adams and Sargin, "Deep Neural Networks for YouTube Recommendations", RecSys 2016,
section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cascade.models.embeddings import Embeddings
from cascade.models.fields import column, met
from cascade.models.scorer import Retriever, mlp, run_mlp
from cascade.schema import Schema


@dataclass(frozen=True)
class YouTubeConfig:
    """The widths of all layers."""

    width: int = 64  # of an item's vector, and of the user's
    feature_width: int = 16  # of the vectors of the user's other features
    hidden: tuple[int, ...] = (256, 128)  # before the last layer


PRESETS = {
    "default": YouTubeConfig(),
    # Table 1 and section 4.1: vectors of 256, a tower of 1024, 512 and 256.
    "paper": YouTubeConfig(width=256, feature_width=32, hidden=(1024, 512)),
    "tiny": YouTubeConfig(width=4, feature_width=4, hidden=(8,)),
}


class YouTube(Retriever):
    """The items that a user met enter by the table of the items themselves. U = V = width + 1: the
    last number of an item's state is its bias in the softmax, that of a user's is 1.

        >>> from cascade.models.example import SHOP, rows
        >>> model = YouTube(SHOP, PRESETS["tiny"])
        >>> user_dense, user_ids, item_dense, item_ids = rows(2)
        >>> model.user(user_dense, user_ids).shape, model.item(item_dense, item_ids).shape
        (torch.Size([2, 5]), torch.Size([2, 5]))
    """

    needs = ("history",)

    def __init__(self, schema: Schema, config: YouTubeConfig) -> None:
        super().__init__(schema)
        self.user_width = self.item_width = config.width + 1
        self.met = met(schema)
        self.items = Embeddings([self.met.item], config.width)
        nn.init.normal_(self.items.table.weight, std=config.width**-0.5)
        self.bias = Embeddings([self.met.item], 1)
        nn.init.zeros_(self.bias.table.weight)
        self.others = [f for f in schema.ids("user") if f != self.met.sequence]
        self.features = Embeddings(self.others, config.feature_width)
        first = config.width + len(self.others) * config.feature_width + len(schema.dense("user"))
        self.layers = mlp((first, *config.hidden, config.width))

    def user_parts(self) -> tuple[str, ...]:
        return ("features", "layers")

    def item_parts(self) -> tuple[str, ...]:
        return ("bias",)

    def user(self, dense: Tensor, ids: Tensor) -> Tensor:
        members = column(self.schema, self.met.sequence, ids)  # [B, L]
        there = (members > 0).to(dense.dtype).unsqueeze(2)
        watched = (self.items.table(members) * there).sum(1) / there.sum(1).clamp(min=1)
        parts = [watched]
        if self.others:
            own = [column(self.schema, feature, ids) for feature in self.others]
            parts.append(self.features(torch.cat(own, dim=1)).flatten(1))
        if self.schema.dense("user"):
            parts.append(dense)
        vector = run_mlp(self.layers, torch.cat(parts, dim=1), last_relu=True)  # figure 3
        return torch.cat((vector, torch.ones_like(vector[:, :1])), dim=1)

    def item(self, dense: Tensor, ids: Tensor) -> Tensor:
        own = column(self.schema, self.met.item, ids)
        return torch.cat((self.items(own).flatten(1), self.bias(own).flatten(1)), dim=1)
