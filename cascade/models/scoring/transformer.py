"""A transformer over what a user did before, cross layers and an MLP: the ranker of a two-stage
advertisement recommender.

Vaswani et al., "Attention Is All You Need", NeurIPS 2017 (the encoder); Wang et al., "DCN V2",
WWW 2021 (the cross layers).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cascade.models.fields import Fields, column, met
from cascade.models.layers import Attention, CrossLayer, cross
from cascade.models.scorer import Scorer, mlp, run_mlp
from cascade.schema import Schema


@dataclass(frozen=True)
class TransformerConfig:
    """The sizes of the network; how many items it reads is the sequence's length in the schema."""

    width: int = 32  # of every embedding, and of the encoder
    layers: int = 1
    heads: int = 2
    feed_forward: int = 64
    crosses: int = 2
    rank: int = 64  # of the cross layers; 0 is a full matrix
    hidden: tuple[int, ...] = (128, 64)
    dropout: float = 0.1


PRESETS = {
    "default": TransformerConfig(),
    # Three layers of eight heads, width 256, feed-forward 1024; three cross layers; 256-64-1.
    "paper": TransformerConfig(256, 3, 8, 1024, crosses=3, rank=0, hidden=(256, 64)),
    "tiny": TransformerConfig(4, 1, 2, 8, crosses=1, rank=3, hidden=(8,), dropout=0.0),
}


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each added to its input and then normalised:
    x [B, L, D] -> [B, L, D]."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.attention = Attention(width, config.heads)
        self.network = nn.Sequential(
            nn.Linear(width, config.feed_forward),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.feed_forward, width),
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        x = self.norms[0](x + self.dropout(self.attention(x, x, allowed)))
        found: Tensor = self.norms[1](x + self.dropout(self.network(x)))
        return found


class Transformer(Scorer):
    """The encoder reads the items that the user met, by the table of the items; the mean of what
    comes out stands beside the features of the row. It depends on the user alone, so a server
    computes it once per request.

        >>> from cascade.models.example import SHOP, rows
        >>> Transformer(SHOP, PRESETS["default"]).eval()(*rows(2)).shape
        torch.Size([2])
    """

    needs = ("history",)

    def __init__(self, schema: Schema, config: TransformerConfig) -> None:
        super().__init__(schema)
        self.met = met(schema)
        self.fields = Fields(schema, config.width)
        places = self.met.sequence.length
        self.places = nn.Parameter(torch.randn(places, config.width) * 0.02)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        width, rank = self.fields.width + config.width, config.rank or None
        self.crosses = nn.ModuleList(CrossLayer(width, rank) for _ in range(config.crosses))
        self.layers = mlp((width, *config.hidden, 1))

    def forward(
        self, user_dense: Tensor, user_ids: Tensor, item_dense: Tensor, item_ids: Tensor
    ) -> Tensor:
        items, first = self.fields.item.table, self.fields.item.first_row(self.met.item)
        ids = column(self.schema, self.met.sequence, user_ids)  # [B, L]
        there = ids > 0
        x = items(ids + first) + self.places
        for layer in self.encoder:
            x = layer(x, there.unsqueeze(1))
        weight = there.to(x.dtype)
        past = (x * weight.unsqueeze(2)).sum(1) / weight.sum(1, keepdim=True).clamp(min=1)
        row = self.fields.flat(user_dense, user_ids, item_dense, item_ids)
        crossed = cross(self.crosses, torch.cat((past, row), dim=1))
        return run_mlp(self.layers, crossed).squeeze(1)
