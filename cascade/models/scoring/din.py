"""DIN: what a user did before counts by how near it is to the item that is scored.

Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cascade.models.fields import Fields, column, met
from cascade.models.scorer import Scorer, mlp
from cascade.schema import Schema


@dataclass(frozen=True)
class DINConfig:
    """The widths of all layers."""

    width: int = 16  # of every embedding
    attention: tuple[int, ...] = (64, 16)  # of the activation unit
    hidden: tuple[int, ...] = (256, 128)


PRESETS = {
    "default": DINConfig(),
    # Figure 2: an activation unit of 36, layers of 200 and 80.
    "paper": DINConfig(width=12, attention=(36,), hidden=(200, 80)),
    "tiny": DINConfig(width=4, attention=(4,), hidden=(8,)),
}


class Dice(nn.Module):
    """[B, ..., W] -> the same shape: x where it is large in its batch, alpha x where it is small
    (equation 3); in evaluation by the mean and variance that training saw."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, eps=1e-8, affine=False)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        large = torch.sigmoid(self.norm(x.flatten(0, -2)).view(x.shape))
        return x * (self.alpha + (1 - self.alpha) * large)


class DiceMLP(nn.Module):
    """Linear layers with Dice behind each, and one that gives a number: [B, ..., W] -> [B, ...]."""

    def __init__(self, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = mlp((width, *hidden))
        self.activations = nn.ModuleList(Dice(units) for units in hidden)
        self.last = nn.Linear(hidden[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer, activation in zip(self.layers, self.activations, strict=True):
            x = activation(layer(x))
        found: Tensor = self.last(x).squeeze(-1)
        return found


class ActivationUnit(nn.Module):
    """How much members [B, L, D] of a user's past count beside an item [B, D]: [B, L]."""

    def __init__(self, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.network = DiceMLP(4 * width, hidden)

    def forward(self, members: Tensor, item: Tensor) -> Tensor:
        item = item.unsqueeze(1).expand_as(members)
        x = torch.cat((item, members, item - members, item * members), dim=2)
        weight: Tensor = self.network(x)
        return weight


class DIN(Scorer):
    """The sum of the members' vectors, each times its weight (equation 2, without a softmax), and
    the features of the row, through an MLP with Dice. Members and item have one table.

        >>> from cascade.models.example import SHOP, rows
        >>> DIN(SHOP, PRESETS["paper"])(*rows(2)).shape
        torch.Size([2])
    """

    needs = ("history",)

    def __init__(self, schema: Schema, config: DINConfig) -> None:
        super().__init__(schema)
        self.met = met(schema)
        self.fields = Fields(schema, config.width)
        self.unit = ActivationUnit(config.width, config.attention)
        self.network = DiceMLP(self.fields.width + config.width, config.hidden)

    def forward(
        self, user_dense: Tensor, user_ids: Tensor, item_dense: Tensor, item_ids: Tensor
    ) -> Tensor:
        items, first = self.fields.item.table, self.fields.item.first_row(self.met.item)
        ids = column(self.schema, self.met.sequence, user_ids)  # [B, L]
        members = items(ids + first)
        item = items(column(self.schema, self.met.item, item_ids).squeeze(1) + first)
        weight = self.unit(members, item) * (ids > 0)
        interest = torch.matmul(weight.unsqueeze(1), members).squeeze(1)  # [B, D]
        row = self.fields.flat(user_dense, user_ids, item_dense, item_ids)
        logits: Tensor = self.network(torch.cat((row, interest), dim=1))
        return logits
