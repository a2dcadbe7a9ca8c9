"""AutoInt: self-attention among the features of a row.

Song, Shi, Xiao, Duan, Xu, Zhang and Tang, "AutoInt: Automatic Feature Interaction Learning via
Self-Attentive Neural Networks", CIKM 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cascade.models.fields import Fields
from cascade.models.scorer import Scorer
from cascade.schema import Schema


@dataclass(frozen=True)
class AutoIntConfig:
    """The sizes of the interacting layers."""

    width: int = 16  # of every vector
    layers: int = 3
    heads: int = 2
    head_width: int = 16


PRESETS = {
    "default": AutoIntConfig(layers=2),
    # Section 5.1.4: vectors of 16, three layers, two heads, hidden units of 32.
    "paper": AutoIntConfig(),
    "tiny": AutoIntConfig(width=4, layers=1, head_width=3),
}


class Interacting(nn.Module):
    """Vectors [B, F, W] -> [B, F, H * D]: equations 5 to 8. As in the paper, products are not
    scaled and projections have no bias."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, out = heads, heads * head_width
        self.query, self.key, self.value, self.residual = (
            nn.Linear(width, out, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )  # [B, H, F, D]
        weights = torch.softmax(torch.matmul(query, key.transpose(2, 3)), dim=3)
        found = torch.matmul(weights, value).transpose(1, 2).flatten(2)
        return torch.relu(found + self.residual(x))


class AutoInt(Scorer):
    """Interacting layers, and a linear layer over all that comes out, equation 9.

    >>> from cascade.models.example import SHOP, rows
    >>> AutoInt(SHOP, PRESETS["paper"])(*rows(2)).shape
    torch.Size([2])
    """

    def __init__(self, schema: Schema, config: AutoIntConfig) -> None:
        super().__init__(schema)
        self.fields = Fields(schema, config.width, vectors_of_all=True)
        out = config.heads * config.head_width
        widths = [config.width, *[out] * (config.layers - 1)]
        self.layers = nn.ModuleList(
            Interacting(width, config.heads, config.head_width) for width in widths
        )
        self.last = nn.Linear(self.fields.count * out, 1)

    def forward(
        self, user_dense: Tensor, user_ids: Tensor, item_dense: Tensor, item_ids: Tensor
    ) -> Tensor:
        _, x = self.fields(user_dense, user_ids, item_dense, item_ids)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.last(x.flatten(1)).squeeze(1)
        return logits
