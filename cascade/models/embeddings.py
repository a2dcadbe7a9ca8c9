"""The id features of one side as vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cascade.schema import Feature, SchemaError


class Embeddings(nn.Module):
    """ids [B, C] -> one vector per feature [B, F, D]; a bag is the mean of its members.

    All features share one table and find their rows by an offset: one gather, and one sparse
    gradient. Rows start uniform in +-1/sqrt(cardinality), as in the DLRM code.
    """

    offsets: Tensor

    def __init__(self, features: Sequence[Feature], width: int) -> None:
        super().__init__()
        unfitted = [f.name for f in features if f.cardinality < 1]
        if unfitted:
            raise SchemaError(f"features {unfitted} have no cardinality: fit the schema first")
        self.features = tuple(features)
        self.width = width
        rows = [feature.cardinality for feature in self.features]
        self.table = nn.Embedding(max(1, sum(rows)), width, sparse=True)
        offsets: list[int] = []
        self.segments: list[tuple[int, int, bool]] = []  # (first column, last column + 1, bag)
        with torch.no_grad():
            start = 0
            for feature, count in zip(self.features, rows, strict=True):
                self.table.weight[start : start + count].uniform_(-(count**-0.5), count**-0.5)
                column = len(offsets)
                offsets += [start] * feature.length
                self._add_segment(column, len(offsets), feature.multivalued)
                start += count
        self.register_buffer("offsets", torch.tensor(offsets, dtype=torch.long), persistent=False)

    def _add_segment(self, start: int, stop: int, bag: bool) -> None:
        if not bag and self.segments and not self.segments[-1][2]:
            start = self.segments.pop()[0]  # neighbouring categoricals are one slice
        self.segments.append((start, stop, bag))

    def forward(self, ids: Tensor) -> Tensor:
        if not self.features:
            return self.table.weight.new_zeros((ids.shape[0], 0, self.width))
        vectors = self.table(ids + self.offsets)  # [B, C, D]
        parts = []
        for start, stop, bag in self.segments:
            part = vectors[:, start:stop]
            if bag:
                present = (ids[:, start:stop] > 0).to(part.dtype).unsqueeze(-1)  # 0 = no member
                count = present.sum(1, keepdim=True).clamp(min=1)
                part = (part * present).sum(1, keepdim=True) / count
            parts.append(part)
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
