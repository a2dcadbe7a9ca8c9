"""Shared bottom: one trunk for all tasks, and a tower for each.

Caruana, "Multitask Learning", Machine Learning 1997; as drawn by Ma et al., "Modeling Task
Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", KDD 2018, figure 1a and
equation 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from cascade.models.fields import Fields
from cascade.models.scorer import Scorer
from cascade.schema import Schema


@dataclass(frozen=True)
class SharedBottomConfig:
    """The widths of all layers."""

    width: int = 16  # of every embedding
    bottom: tuple[int, ...] = (256, 128)  # of the layers that all tasks share
    tower: tuple[int, ...] = (32,)  # of each task's own hidden layers; 1 follows


PRESETS = {
    "default": SharedBottomConfig(),
    "tiny": SharedBottomConfig(width=4, bottom=(8,), tower=(4,)),
}


class SharedBottom(Scorer):
    """y_t = tower_t(bottom(x)), a logit for each task of the schema: [B, T], or [B] of one task.

    >>> from dataclasses import replace
    >>> from cascade.models.example import SHOP, rows
    >>> from cascade.schema import Task
    >>> two = replace(SHOP, tasks=(Task("click"), Task("revenue", "amount", weight=0.3)))
    >>> model = SharedBottom(two, PRESETS["default"])
    >>> model.tasks, model.kinds
    (('click', 'revenue'), ('binary', 'amount'))
    >>> model(*rows(5)).shape
    torch.Size([5, 2])
    """

    def __init__(self, schema: Schema, config: SharedBottomConfig) -> None:
        super().__init__(schema)
        self.tasks = tuple(task.name for task in schema.tasks)
        self.fields = Fields(schema, config.width)
        self.bottom = relus((self.fields.width, *config.bottom))
        self.towers = towers(len(self.tasks), (config.bottom[-1], *config.tower))

    def forward(
        self, user_dense: Tensor, user_ids: Tensor, item_dense: Tensor, item_ids: Tensor
    ) -> Tensor:
        row = self.fields.flat(user_dense, user_ids, item_dense, item_ids)  # [B, W]
        shared = self.bottom(row)  # [B, H]
        logits = torch.cat([tower(shared) for tower in self.towers], dim=1)  # [B, T]
        return logits if len(self.tasks) > 1 else logits.squeeze(1)


def relus(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of these widths, each followed by ReLU."""
    layers = ((nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths))
    return nn.Sequential(*(step for layer in layers for step in layer))


def towers(count: int, widths: Sequence[int]) -> nn.ModuleList:
    """For each task hidden layers of these widths, and its logit."""
    each = (nn.Sequential(relus(widths), nn.Linear(widths[-1], 1)) for _ in range(count))
    return nn.ModuleList(each)
