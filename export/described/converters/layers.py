"""What the converted models have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from export.described.converters.fields import Field
from export.described.converters.weights import Layer


class Lookup(nn.Module):
    """ids [n, columns] -> a vector [n, D] of each field: that of its id, or the sum or mean of the
    members of a bag. A bag without members is zeros.

    Args:
        tables: [rows, D] of each field; the same tensor where fields share a table.
    """

    def __init__(self, fields: Sequence[Field], tables: Sequence[Tensor], mean: bool) -> None:
        super().__init__()
        made = {id(table): _table(table) for table in tables}
        self.tables = nn.ModuleList(made[id(table)] for table in tables)
        self._fields, self._mean = list(fields), mean

    def forward(self, ids: Tensor) -> list[Tensor]:
        found, start = [], 0
        for table, field in zip(self.tables, self._fields, strict=True):
            columns = ids[:, start : start + field.length]
            start += field.length
            if field.pad is None:
                found.append(table(columns[:, 0]))
                continue
            real = columns != field.pad
            members = real.unsqueeze(-1).to(torch.float32)
            # A pad may be an id beyond the table.
            total = (table(torch.where(real, columns, 0)) * members).sum(1)
            found.append(total / members.sum(1).clamp(min=1) if self._mean else total)
        return found


class Dots(nn.Module):
    """Vectors [n, D], the first of which is the bottom net's -> it, and the dots of pairs.

    Args:
        pairs: positions of the two vectors of each dot, in the order in which the top net reads.
    """

    first: Tensor
    second: Tensor

    def __init__(self, pairs: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        for name, side in zip(("first", "second"), zip(*pairs, strict=True), strict=True):
            self.register_buffer(name, torch.tensor(side, dtype=torch.long), persistent=False)

    def forward(self, vectors: list[Tensor]) -> Tensor:
        stacked = torch.stack(vectors, 1)
        products = torch.bmm(stacked, stacked.transpose(1, 2))
        return torch.cat((vectors[0], products[:, self.first, self.second]), 1)


class Joined(nn.Module):
    """Vectors [n, D] side by side."""

    def forward(self, vectors: list[Tensor]) -> Tensor:
        return torch.cat(vectors, 1)


class Dlrm(nn.Module):
    """dense [n, D], ids [n, columns] -> logit [n]: the paper's figure 1."""

    def __init__(
        self, bottom: nn.Module, lookup: Lookup, interaction: nn.Module, top: nn.Module
    ) -> None:
        super().__init__()
        self.bottom, self.lookup, self.interaction, self.top = bottom, lookup, interaction, top

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        vectors = [self.bottom(dense), *self.lookup(ids)]
        return self.top(self.interaction(vectors)).squeeze(1)


def _table(rows: Tensor) -> nn.Embedding:
    made: nn.Embedding = nn.Embedding.from_pretrained(rows)  # type: ignore[no-untyped-call]
    return made


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer of given weights [out, in], bias [out]."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None:
            made.bias.copy_(bias)
    return made


def mlp(layers: Sequence[Layer], last: bool, sigmoid: int = -1) -> nn.Sequential:
    """Layers with a ReLU after each, after the last one only where `last`; a sigmoid instead after
    the layer `sigmoid`."""
    made: list[nn.Module] = []
    for number, (weight, bias) in enumerate(layers):
        made.append(linear(weight, bias))
        if last or number < len(layers) - 1:
            made.append(nn.Sigmoid() if number == sigmoid else nn.ReLU())
    return nn.Sequential(*made)
