"""The id features of one side as vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cascade.schema import Feature, SchemaError

FADING = 1.0  # where learning starts: the k-th newest of a sequence weighs k ** -FADING


def embeddings_of(model: nn.Module, features: Sequence[Feature]) -> Embeddings | None:
    """The widest embeddings of just these features in a model, if it has any."""
    found = [m for m in model.modules() if isinstance(m, Embeddings) and m.features == (*features,)]
    return max(found, key=lambda one: one.width, default=None)


class Embeddings(nn.Module):
    """ids [B, C] -> one vector per feature [B, F, D]; that of a bag or sequence is the sum of its
    members over (their number) ^ `power`: by default the mean. With `by_age` the members of a
    sequence have learnt weights W by their place from the newest one, and their sum is divided by
    |W|. A model that needs more of the order reads a sequence by `members`.

    All features share one table and find their rows by an offset: one gather, and one sparse
    gradient. Rows start uniform in +-1/sqrt(cardinality), as in the DLRM code.
    """

    offsets: Tensor

    def __init__(
        self, features: Sequence[Feature], width: int, power: float = 1.0, by_age: bool = False
    ) -> None:
        super().__init__()
        if unfitted := [f.name for f in features if f.cardinality < 1]:
            raise SchemaError(f"features {unfitted} have no cardinality: fit the schema first")
        self.features = tuple(features)
        self.width, self.power = width, power
        rows = [feature.cardinality for feature in self.features]
        self.table = nn.Embedding(max(1, sum(rows)), width, sparse=True)
        offsets: list[int] = []
        self.ages = nn.ParameterDict()  # by first column: log weights [L], of the newest first
        self.segments: list[tuple[int, int, bool]] = []  # (first column, last column + 1, list)
        with torch.no_grad():
            start = 0
            for feature, count in zip(self.features, rows, strict=True):
                self.table.weight[start : start + count].uniform_(-(count**-0.5), count**-0.5)
                first, several = len(offsets), feature.multivalued
                if self.segments and not several and not self.segments[-1][2]:
                    first = self.segments.pop()[0]  # adjacent categoricals are one slice
                if by_age and feature.kind == "sequence":
                    ages = torch.arange(1.0, feature.length + 1)
                    self.ages[str(first)] = nn.Parameter(-FADING * ages.log())
                offsets += [start] * feature.length
                self.segments.append((first, len(offsets), several))
                start += count
        self.register_buffer("offsets", torch.tensor(offsets, dtype=torch.long), persistent=False)

    @torch.no_grad()
    def take(self, other: Embeddings) -> None:
        """Begin with the vectors of another model for the same features. Of wider ones, the
        directions along which they lie farthest from 0; beside narrower ones, drawn numbers stay
        behind."""
        vectors = other.table.weight
        if other.width > self.width:
            axes = torch.linalg.eigh(vectors.t() @ vectors).eigenvectors  # the largest is the last
            vectors = vectors @ axes[:, -self.width :]
        self.table.weight[:, : vectors.shape[1]] = vectors

    def first_row(self, feature: Feature) -> int:
        """Where the rows of a feature begin in the table."""
        before = self.features[: self.features.index(feature)]
        return sum(other.cardinality for other in before)

    def members(self, ids: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """The members of one feature, in order: vectors [B, L, D], and where there is one [B, L];
        `ids` [B, C] are those of all features."""
        feature = next(feature for feature in self.features if feature.name == name)
        start = sum(f.length for f in self.features[: self.features.index(feature)])
        own = slice(start, start + feature.length)
        return self.table(ids[:, own] + self.offsets[own]), ids[:, own] > 0

    def forward(self, ids: Tensor) -> Tensor:
        if not self.features:
            return self.table.weight.new_zeros((ids.shape[0], 0, self.width))
        vectors = self.table(ids + self.offsets)  # [B, C, D]
        parts = []
        for start, stop, multivalued in self.segments:
            part = vectors[:, start:stop]
            if multivalued:
                weight, total = self._weights(ids[:, start:stop] > 0, start)
                part = (part * weight.unsqueeze(-1)).sum(1, keepdim=True) / total.unsqueeze(-1)
            parts.append(part)
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def _weights(self, present: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Of a list's members, where there are any [B, L]: their weights [B, L], and what the sum
        is divided by [B, 1]."""
        weight = present.to(self.table.weight.dtype)
        if str(start) in self.ages:
            newer = torch.flip(torch.cumsum(torch.flip(weight, (1,)), 1), (1,)) - weight
            weight = weight * torch.exp(self.ages[str(start)])[newer.long()]
            return weight, (weight * weight).sum(1, keepdim=True).clamp(min=1e-6).sqrt()
        count = weight.sum(1, keepdim=True).clamp(min=1)
        return weight, count if self.power == 1 else count**self.power
