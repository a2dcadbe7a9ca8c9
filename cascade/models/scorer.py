"""The contract of every model: user once per request, item once per export, cross per candidate.

A state is one packed float tensor per row, so that what is precomputed for an item is one row of
one matrix: one gather, one memory-mapped file, whatever the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class Scorer(nn.Module, ABC):
    """user [B, U], item [N, V], cross [B, U] x [B, K, V] -> logits [B, K]."""

    user_width: int  # U
    item_width: int  # V
    recomputes = False  # can `cross` do without a part of the item state?

    @abstractmethod
    def user(self, dense: Tensor, ids: Tensor) -> Tensor:
        """dense [B, F_dense], ids [B, C] -> user state [B, U]."""

    @abstractmethod
    def item(self, dense: Tensor, ids: Tensor) -> Tensor:
        """dense [N, F_dense], ids [N, C] -> item state [N, V]."""

    @abstractmethod
    def cross(self, user: Tensor, item: Tensor) -> Tensor:
        """user state [B, U], item states [B, K, V] -> logits [B, K].

        Item states may come in half precision, as they are stored: widening what is needed of
        them, where it is needed, moves half of the bytes.
        """

    def arranged(self, candidates: int, recompute: bool = False) -> Scorer:
        """The same model and weights with `cross` arranged for so many candidates a user, where
        there is a choice.

        Args:
            recompute: leave out of the item state what `cross` can compute anew from the rest of
                it: fewer bytes to wait for, more to compute. Where `recomputes`.
        """
        return self

    def forward(
        self, user_dense: Tensor, user_ids: Tensor, item_dense: Tensor, item_ids: Tensor
    ) -> Tensor:
        """Logits [B] of B (user, item) rows."""
        item = self.item(item_dense, item_ids)
        return self.cross(self.user(user_dense, user_ids), item.unsqueeze(1)).squeeze(1)


def mlp(widths: Sequence[int]) -> nn.ModuleList:
    """Linear layers of the given widths; `run_mlp` puts ReLU between them."""
    return nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))


def run_mlp(layers: nn.ModuleList, x: Tensor, last_relu: bool = False) -> Tensor:
    """ReLU after every layer but the last, and after that one too if asked."""
    for position, layer in enumerate(layers):
        x = layer(x)
        if last_relu or position + 1 < len(layers):
            x = torch.relu(x)
    return x
