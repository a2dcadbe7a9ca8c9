"""Rankers as a team writes them in plain PyTorch, over flat rows: (user numbers, user ids, item
numbers, item ids) -> logits [rows, tasks]. None of them knows of this repository."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

USER_NUMBERS, USER_IDS, ITEM_NUMBERS, ITEM_IDS = 3, 5, 2, 6
WIDTH, ROWS = 8, 50  # of the tables
NUMBERS, FIELDS = USER_NUMBERS + ITEM_NUMBERS, USER_IDS + ITEM_IDS
FLAT = NUMBERS + FIELDS * WIDTH


def draw(count: int, seed: int = 0) -> dict[str, Any]:
    """Inputs of so many rows, by name."""
    random = np.random.default_rng((seed, count))
    return {
        "user_numbers": random.normal(size=(count, USER_NUMBERS)).astype(np.float32),
        "user_ids": random.integers(1, ROWS, (count, USER_IDS)),
        "item_numbers": random.normal(size=(count, ITEM_NUMBERS)).astype(np.float32),
        "item_ids": random.integers(1, ROWS, (count, ITEM_IDS)),
    }


def layers(*widths: int, norm: bool = False) -> nn.Sequential:
    made: list[nn.Module] = []
    for before, after in pairwise(widths):
        made += [nn.Linear(before, after), *[nn.BatchNorm1d(after)] * norm, nn.ReLU()]
    return nn.Sequential(*made)


class Tables(nn.Module):
    """A table per field, and one of single numbers for linear parts."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(ROWS, WIDTH) for _ in range(FIELDS))
        self.weights = nn.ModuleList(nn.Embedding(ROWS, 1) for _ in range(FIELDS))

    def vectors(self, user: Tensor, item: Tensor) -> Tensor:
        ids = torch.cat((user, item), 1)
        return torch.stack([table(ids[:, i]) for i, table in enumerate(self.tables)], 1)

    def first_order(self, user: Tensor, item: Tensor) -> Tensor:
        ids = torch.cat((user, item), 1)
        return torch.stack([table(ids[:, i]) for i, table in enumerate(self.weights)], 1).sum(1)


class Logistic(Tables):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(NUMBERS, 1)

    def forward(self, un: Tensor, ui: Tensor, it: Tensor, ii: Tensor) -> Tensor:
        return self.linear(torch.cat((un, it), 1)) + self.first_order(ui, ii)


class Mlp(Tables):
    """Item and user columns in turn, so that no side lies in one piece."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(FLAT) if norm else nn.Identity()
        self.deep, self.out = layers(FLAT, 64, 32, norm=norm), nn.Linear(32, 1)

    def forward(self, un: Tensor, ui: Tensor, it: Tensor, ii: Tensor) -> Tensor:
        return self.out(
            self.deep(self.norm(torch.cat((un, self.vectors(ui, ii).flatten(1), it), 1)))
        )


class MlpBatchNorm(Mlp):
    def __init__(self) -> None:
        super().__init__(norm=True)


class NeuMf(Tables):
    def __init__(self) -> None:
        super().__init__()
        self.deep, self.out = layers(2 * WIDTH, 32, 16), nn.Linear(16 + WIDTH, 1)

    def forward(self, un: Tensor, ui: Tensor, it: Tensor, ii: Tensor) -> Tensor:
        user, item = (
            [self.tables[table](ids[:, 0]) for table in tables]
            for ids, tables in ((ui, (0, 1)), (ii, (2, 3)))
        )
        deep = self.deep(torch.cat((user[0], item[0]), 1))
        return self.out(torch.cat((deep, user[1] * item[1]), 1))


class WideDeep(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(NUMBERS, 1)

    def forward(self, un: Tensor, ui: Tensor, it: Tensor, ii: Tensor) -> Tensor:
        wide = self.linear(torch.cat((un, it), 1)) + self.first_order(ui, ii)
        return wide + super().forward(un, ui, it, ii)


class DeepFm(WideDeep):
    def forward(self, un: Tensor, ui: Tensor, it: Tensor, ii: Tensor) -> Tensor:
        vectors = self.vectors(ui, ii)
        pairs = vectors.sum(1).pow(2) - vectors.pow(2).sum(1)
        return super().forward(un, ui, it, ii) + 0.5 * pairs.sum(1, keepdim=True)


class Fm(Tables):
    """A factorisation machine: sums, and dots of all pairs by the square of a sum."""

    def forward(self, un: Tensor, ui: Tensor, it: Tensor, ii: Tensor) -> Tensor:
        vectors = self.vectors(ui, ii)
        pairs = vectors.sum(1).pow(2) - vectors.pow(2).sum(1)
        return self.first_order(ui, ii) + 0.5 * pairs.sum(1, keepdim=True)


class CrossNet(Tables):
    """DCN: x0 * (w . x) + b + x; with matrices DCN-v2."""

    matrices = False

    def __init__(self) -> None:
        super().__init__()
        out = FLAT if self.matrices else 1
        self.cross = nn.ModuleList(nn.Linear(FLAT, out, bias=self.matrices) for _ in range(3))
        self.bias = nn.ParameterList(torch.randn(FLAT) * 0.1 for _ in range(3))
        self.deep, self.out = layers(FLAT, 64, 32), nn.Linear(32 + FLAT, 1)

    def forward(self, un: Tensor, ui: Tensor, it: Tensor, ii: Tensor) -> Tensor:
        first = x = torch.cat((un, it, self.vectors(ui, ii).flatten(1)), 1)
        for layer, bias in zip(self.cross, self.bias, strict=True):
            x = first * layer(x) + x + (0 if self.matrices else bias)
        return self.out(torch.cat((x, self.deep(first)), 1))


class CrossNetV2(CrossNet):
    matrices = True


class Dlrm(Tables):
    """The paper's: a bottom net over the user's numbers, dots of all pairs, a top net."""

    def __init__(self) -> None:
        super().__init__()
        count = FIELDS + 1
        self.bottom = layers(USER_NUMBERS, 16, WIDTH)
        self.top = layers(WIDTH + count * (count - 1) // 2, 64, 32)
        self.out = nn.Linear(32, 1)
        pairs = [(i, j) for i in range(count) for j in range(i)]
        self.i, self.j = (torch.tensor(side) for side in zip(*pairs, strict=True))

    def forward(self, un: Tensor, ui: Tensor, it: Tensor, ii: Tensor) -> Tensor:
        dense = self.bottom(un)
        vectors = torch.cat((dense.unsqueeze(1), self.vectors(ui, ii)), 1)
        dots = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.i, self.j]
        return self.out(self.top(torch.cat((dense, dots), 1)))


class SharedTable(nn.Module):
    """One table, an offset per field, and a probability."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(FIELDS * ROWS, WIDTH)
        self.register_buffer("offsets", ROWS * torch.arange(FIELDS))
        self.deep = nn.Sequential(*layers(FLAT, 64), nn.Linear(64, 1), nn.Sigmoid())

    def forward(self, un: Tensor, ui: Tensor, it: Tensor, ii: Tensor) -> Tensor:
        vectors = self.table(torch.cat((ui, ii), 1) + self.offsets)
        return self.deep(torch.cat((un, it, vectors.flatten(1)), 1))


class Bags(nn.Module):
    """A history and an item of the same table, each a masked mean."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH, padding_idx=0)
        self.deep = nn.Sequential(*layers(NUMBERS + 2 * WIDTH, 64), nn.Linear(64, 1))

    def mean(self, ids: Tensor) -> Tensor:
        mask = (ids > 0).float().unsqueeze(-1)
        return (self.table(ids) * mask).sum(1) / mask.sum(1).clamp(min=1)

    def forward(self, un: Tensor, ui: Tensor, it: Tensor, ii: Tensor) -> Tensor:
        return self.deep(torch.cat((un, it, self.mean(ui), self.mean(ii)), 1))


class BagTables(nn.Module):
    """Bags by `nn.EmbeddingBag`, a mean of the user's and a sum of the item's."""

    def __init__(self) -> None:
        super().__init__()
        self.user = nn.EmbeddingBag(ROWS, WIDTH, mode="mean")
        self.item = nn.EmbeddingBag(ROWS, WIDTH, mode="sum")
        self.deep = nn.Sequential(*layers(NUMBERS + 2 * WIDTH, 64), nn.Linear(64, 1))

    def forward(self, un: Tensor, ui: Tensor, it: Tensor, ii: Tensor) -> Tensor:
        return self.deep(torch.cat((self.user(ui), un, self.item(ii), it), 1))


class OneMatrix(Tables):
    """Ids and numbers beside each other in one matrix of floats, taken apart again by column."""

    def __init__(self) -> None:
        super().__init__()
        self.deep, self.out = layers(FLAT, 64), nn.Linear(64, 1)

    def forward(self, un: Tensor, ui: Tensor, it: Tensor, ii: Tensor) -> Tensor:
        whole = torch.cat((ii.float(), un, ui.float(), it), 1)
        items, numbers, users, others = whole.split(
            [ITEM_IDS, USER_NUMBERS, USER_IDS, ITEM_NUMBERS], 1
        )
        ids = users.long(), items.long()
        vectors = self.vectors(*ids).flatten(1)
        return self.out(self.deep(torch.cat((numbers, vectors, others), 1)))


class Tasks(Tables):
    """Three heads over one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = layers(FLAT, 64)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 1))
            for _ in range(3)
        )

    def forward(self, un: Tensor, ui: Tensor, it: Tensor, ii: Tensor) -> Tensor:
        trunk = self.trunk(torch.cat((un, self.vectors(ui, ii).flatten(1), it), 1))
        return torch.cat([head(trunk) for head in self.heads], 1)


class Experts(Tables):
    """MMoE: experts over all columns, weighed by a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(layers(FLAT, 16) for _ in range(3))
        self.gate, self.out = nn.Linear(FLAT, 3), nn.Linear(16, 1)

    def forward(self, un: Tensor, ui: Tensor, it: Tensor, ii: Tensor) -> Tensor:
        x = torch.cat((un, it, self.vectors(ui, ii).flatten(1)), 1)
        given = torch.stack([expert(x) for expert in self.experts], 1)
        return self.out((given * torch.softmax(self.gate(x), 1).unsqueeze(2)).sum(1))


class Interest(nn.Module):
    """DIN: the item attends to the user's history, of which some places are empty."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH)
        self.attention = nn.Sequential(*layers(4 * WIDTH, 16), nn.Linear(16, 1))
        self.deep = nn.Sequential(*layers(2 * WIDTH + NUMBERS, 32), nn.Linear(32, 1))

    def forward(self, un: Tensor, ui: Tensor, it: Tensor, ii: Tensor) -> Tensor:
        history, item = self.table(ui), self.table(ii[:, 0])
        asked = item.unsqueeze(1).expand(-1, USER_IDS, -1)
        near = torch.cat((history, asked, history * asked, history - asked), 2)
        weights = self.attention(near).masked_fill((ui < 5).unsqueeze(2), -1e9)
        interest = (torch.softmax(weights, 1) * history).sum(1)
        return self.deep(torch.cat((un, interest, item, it), 1))


class Scaled(nn.Module):
    """Numbers of both sides normalised and clamped in one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(NUMBERS))
        self.deep = nn.Sequential(*layers(NUMBERS, 16), nn.Linear(16, 1))

    def forward(self, un: Tensor, ui: Tensor, it: Tensor, ii: Tensor) -> Tensor:
        numbers = (torch.cat((un, it), 1) - self.mean) / 0.7
        return self.deep(torch.clamp(numbers, -1, 1))


class Transformer(Tables):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(NUMBERS, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 2, 16, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear((FIELDS + 1) * WIDTH, 1)

    def forward(self, un: Tensor, ui: Tensor, it: Tensor, ii: Tensor) -> Tensor:
        numbers = self.first(torch.cat((un, it), 1)).unsqueeze(1)
        tokens = torch.cat((numbers, self.vectors(ui, ii)), 1)
        return self.out(self.encoder(tokens).flatten(1))


class AutoInt(Tables):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.rest = (
            nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4)
        )
        self.out = nn.Linear(FIELDS * WIDTH, 1)

    def forward(self, un: Tensor, ui: Tensor, it: Tensor, ii: Tensor) -> Tensor:
        x = self.vectors(ui, ii)
        weights = torch.softmax(self.query(x) @ self.key(x).transpose(1, 2) / WIDTH**0.5, -1)
        return self.out(torch.relu(weights @ self.value(x) + self.rest(x)).flatten(1))


MODELS: tuple[type[nn.Module], ...] = (
    *(Logistic, Mlp, MlpBatchNorm, NeuMf, WideDeep, Fm, DeepFm, CrossNet, CrossNetV2, Dlrm),
    *(SharedTable, Bags, BagTables, OneMatrix, Tasks, Experts, Interest, Scaled, Transformer),
    AutoInt,
)
