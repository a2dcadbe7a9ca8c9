"""Logistic regression, the usual baseline of click models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cascade.models.embeddings import Embeddings
from cascade.models.scorer import Scorer, mlp, run_mlp
from cascade.schema import Schema


@dataclass(frozen=True)
class LogisticConfig:
    """One weight per id and per number; with `user_layers`, hidden layers over the user's numbers
    in place of their weights."""

    user_layers: tuple[int, ...] = ()


PRESETS = {
    "default": LogisticConfig(),
    # For logs of choices: what a user's past says of a label is no straight line.
    "bent": LogisticConfig(user_layers=(32,)),
}


class LogisticRegression(Scorer):
    """Three sums: the user's weights, the item's weights, the bias. U = V = 1."""

    user_width = item_width = 1

    def __init__(self, schema: Schema, config: LogisticConfig) -> None:
        super().__init__(schema)
        self.user_ids = Embeddings(schema.ids("user"), 1)
        self.item_ids = Embeddings(schema.ids("item"), 1)
        numbers = schema.dense_width("user")
        last = (numbers, *config.user_layers)[-1]
        self.user_dense = nn.Linear(last, 1, bias=False)
        self.item_dense = nn.Linear(schema.dense_width("item"), 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(1))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        self.user_layers = mlp((numbers, *config.user_layers))

    def forget_items(self) -> None:
        """All items are alike, and stay so: what is learnt depends on the user alone."""
        for weight in (self.item_ids.table.weight, self.item_dense.weight):
            nn.init.zeros_(weight)
            weight.requires_grad_(False)

    @torch.no_grad()
    def calibrate(self, scale: float, shift: float) -> None:
        """Multiply all logits by a number, and add another."""
        tables = self.user_ids.table, self.item_ids.table
        for layer in (*tables, self.user_dense, self.item_dense):
            layer.weight *= scale
        self.bias.mul_(scale).add_(shift)

    def user_parts(self) -> tuple[str, ...]:
        return ("user_ids", "user_layers", "user_dense", "bias")

    def item_parts(self) -> tuple[str, ...]:
        return ("item_ids", "item_dense")

    def user(self, dense: Tensor, ids: Tensor) -> Tensor:
        total: Tensor = self.user_ids(ids).sum(1)
        if self.schema.dense("user"):
            total = total + self.user_dense(run_mlp(self.user_layers, dense, last_relu=True))
        return total + self.bias

    def item(self, dense: Tensor, ids: Tensor) -> Tensor:
        total: Tensor = self.item_ids(ids).sum(1)
        if self.schema.dense("item"):
            total = total + self.item_dense(dense)
        return total

    def cross(self, user: Tensor, item: Tensor) -> Tensor:
        return user + item.squeeze(-1).to(user.dtype)
