"""Layers that several models have in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CrossLayer(nn.Module):
    """x0, x [B, W] -> x0 * (V U x + b) + x: a layer of DCN-v2 (Wang et al., WWW 2021, equations 1
    and 2); without a rank, the matrix W x W is one."""

    def __init__(self, width: int, rank: int | None) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False) if rank else None
        self.up = nn.Linear(rank or width, width)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        found: Tensor = x0 * self.up(x if self.down is None else self.down(x)) + x
        return found


def cross(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """Cross layers one behind the other, [B, W] -> [B, W]."""
    x0 = x
    for layer in layers:
        x = layer(x0, x)
    return x


class Attention(nn.Module):
    """Multi-head scaled dot-product attention (Vaswani et al., NeurIPS 2017): queries [B, Q, D],
    keys, which are the values, too, [B, K, D], and where a query may look, bool [B or 1, Q or 1, K]
    -> [B, Q, D]. A query that may look nowhere looks at all keys alike, so that it is finite."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width is {width}; expected a multiple of the {heads} heads")
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, queries: Tensor, keys: Tensor, allowed: Tensor) -> Tensor:
        q, k, v = (
            self._split(self.query(queries)),
            self._split(self.key(keys)),
            self._split(self.value(keys)),
        )
        scores = torch.matmul(q, k.transpose(2, 3)) * self.scale  # [B, H, Q, K]
        scores = scores.masked_fill(~allowed.unsqueeze(1), torch.finfo(scores.dtype).min)
        found = torch.matmul(torch.softmax(scores, dim=3), v)  # [B, H, Q, D / H]
        mixed: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return mixed

    @torch.no_grad()
    def begin_as_mean(self, times: float) -> None:
        """Begin as about the mean of the keys, `times` as large, whatever the query."""
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.query.weight *= 0.1
        self.out.weight *= times

    def _split(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, H, N, D / H]."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)
