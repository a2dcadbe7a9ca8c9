"""Multi-gate mixture-of-experts: experts that all tasks share, and for each task a gate that mixes
them and a tower.

Ma, Zhao, Yi, Chen, Hong and Chi, "Modeling Task Relationships in Multi-task Learning with
Multi-gate Mixture-of-Experts", KDD 2018, figure 1c and equations 6 to 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cascade.models.fields import Fields
from cascade.models.scorer import Scorer
from cascade.models.scoring.shared_bottom import relus, towers
from cascade.schema import Schema


@dataclass(frozen=True)
class MMoEConfig:
    """How many experts there are, and the widths of all layers."""

    width: int = 16  # of every embedding
    experts: int = 4
    expert: tuple[int, ...] = (128, 64)  # of the layers of each expert
    tower: tuple[int, ...] = (32,)  # of each task's own hidden layers; 1 follows


PRESETS = {
    "default": MMoEConfig(),
    # Section 5.1: 8 experts of one layer of 16 units, towers of 8.
    "paper": MMoEConfig(experts=8, expert=(16,), tower=(8,)),
    "tiny": MMoEConfig(width=4, experts=3, expert=(8,), tower=(4,)),
}


class MMoE(Scorer):
    """y_t = tower_t(sum over experts i of softmax(W_t x)_i * expert_i(x)), a logit for each task of
    the schema: [B, T], or [B] of one task.

    >>> from dataclasses import replace
    >>> from cascade.models.example import SHOP, rows
    >>> from cascade.schema import Task
    >>> two = replace(SHOP, tasks=(Task("click"), Task("revenue", "amount", weight=0.3)))
    >>> model = MMoE(two, PRESETS["default"])
    >>> model(*rows(5)).shape
    torch.Size([5, 2])
    """

    def __init__(self, schema: Schema, config: MMoEConfig) -> None:
        super().__init__(schema)
        self.tasks = tuple(task.name for task in schema.tasks)
        self.fields = Fields(schema, config.width)
        width = self.fields.width
        experts = (relus((width, *config.expert)) for _ in range(config.experts))
        self.experts = nn.ModuleList(experts)
        gates = (nn.Linear(width, config.experts, bias=False) for _ in self.tasks)
        self.gates = nn.ModuleList(gates)
        self.towers = towers(len(self.tasks), (config.expert[-1], *config.tower))

    def forward(
        self, user_dense: Tensor, user_ids: Tensor, item_dense: Tensor, item_ids: Tensor
    ) -> Tensor:
        row = self.fields.flat(user_dense, user_ids, item_dense, item_ids)  # [B, W]
        outputs = torch.stack([expert(row) for expert in self.experts], dim=1)  # [B, E, H]
        logits = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            share = torch.softmax(gate(row), dim=1)  # [B, E]
            mixed = (share.unsqueeze(2) * outputs).sum(1)  # [B, H]
            logits.append(tower(mixed))
        found = torch.cat(logits, dim=1)  # [B, T]
        return found if len(self.tasks) > 1 else found.squeeze(1)
