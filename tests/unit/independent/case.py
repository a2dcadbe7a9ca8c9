"""Rows of a shop whose features other implementations can express, and models with drawn weights,
which a reference copies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cascade.models import MODELS, build, preset
from cascade.models.embeddings import Embeddings
from cascade.models.fields import Fields, column
from cascade.models.scorer import Scorer
from cascade.schema import Feature, Schema, Side, Task
from tests.schemas import draw_rows

COUNT = 128
NUMBERS = torch.linspace(-1.5, 1.5, 7)  # what a number is one of
TASKS = (Task("click"), Task("revenue", "amount"))
SCHEMA = Schema(
    "shop",
    (
        Feature(*("bought", "user", "sequence", "vocabulary", 5), cardinality=30, shares="product"),
        Feature("age", "user", "dense", "identity"),
        Feature("city", "user", "categorical", "vocabulary", cardinality=9),
        Feature("liked", "user", "bag", "vocabulary", 3, cardinality=8),
        Feature("person", "user", "categorical", "vocabulary", cardinality=40),
        Feature("visits", "user", "dense", "identity"),
        Feature("tags", "item", "bag", "vocabulary", 3, cardinality=7),
        Feature("product", "item", "categorical", "vocabulary", cardinality=30),
        Feature("price", "item", "dense", "identity"),
        Feature("brand", "item", "categorical", "vocabulary", cardinality=6),
    ),
    tasks=TASKS,
)
SIDES: tuple[Side, Side] = ("user", "item")
BY_NAME = {feature.name: feature for feature in SCHEMA.features}
IDS = [feature for side in SIDES for feature in SCHEMA.ids(side)]
DENSE = [feature for side in SIDES for feature in SCHEMA.dense(side)]


class Rows(NamedTuple):
    """What `forward` of a model takes."""

    user_dense: Tensor
    user_ids: Tensor
    item_dense: Tensor
    item_ids: Tensor

    def of(self, name: str) -> Tensor:
        """The number [B, 1] or the ids [B, L] of a feature."""
        feature = BY_NAME[name]
        dense, ids = self[:2] if feature.side == "user" else self[2:]
        if feature.kind != "dense":
            return column(SCHEMA, feature, ids)
        place = SCHEMA.dense(feature.side).index(feature)
        return dense[:, place : place + 1]

    def steps(self, name: str) -> Tensor:
        """Which of NUMBERS a number is, [B, 1]."""
        return (self.of(name) == NUMBERS).long().argmax(1, keepdim=True)

    def members(self, name: str) -> list[list[int]]:
        """The members of a list, or the id of a categorical, without pads, row by row."""
        several = BY_NAME[name].multivalued
        return [[i for i in row if i or not several] for row in self.of(name).tolist()]


def rows(seed: int = 0) -> Rows:
    """Drawn rows: missing and unknown values, empty lists, short ones and full ones are among
    them."""
    found = []
    random = torch.Generator().manual_seed(seed)
    for side in SIDES:
        drawn = draw_rows(SCHEMA, side, COUNT, seed)
        steps = torch.randint(len(NUMBERS), drawn.dense.shape, generator=random)
        found += [NUMBERS[steps], drawn.ids]
    return Rows(*found)


def drawn(model: str, changes: dict[str, Any], seed: int = 0) -> Scorer:
    """A model of the preset `tiny`, or of `default` without one, with changes, whose weights are
    nowhere what they begin with."""
    torch.manual_seed(seed)
    size = "tiny" if "tiny" in MODELS[model].presets else "default"
    scorer = build(model, {**preset(model, size), **changes}, SCHEMA).eval()
    tables = {id(one.table.weight) for one in scorer.modules() if isinstance(one, Embeddings)}
    for parameter in scorer.parameters():
        matrix = parameter.dim() > 1 and id(parameter) not in tables
        nn.init.normal_(parameter, std=(2 / parameter.shape[1]) ** 0.5 if matrix else 0.5)
    for name, buffer in scorer.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 2)
    return scorer


def fill(theirs: Tensor, ours: Tensor) -> None:
    """Copy a weight; `copy_` alone would stretch one of another shape."""
    assert theirs.shape == ours.shape
    theirs.copy_(ours)


def fill_linear(theirs: nn.Module, ours: nn.Module, columns: Tensor | None = None) -> None:
    """Copy a linear layer; `columns`: for each of their inputs, the place of it among ours."""
    assert isinstance(theirs, nn.Linear)
    assert isinstance(ours, nn.Linear)
    fill(theirs.weight, ours.weight if columns is None else ours.weight[:, columns])
    assert (theirs.bias is None) == (ours.bias is None)
    if theirs.bias is not None:
        fill(theirs.bias, ours.bias)


def fill_linears(
    theirs: Iterable[nn.Module], ours: Iterable[nn.Module], columns: Tensor | None = None
) -> None:
    """Copy several; `columns` are the inputs of the first."""
    for mine, other in zip(theirs, ours, strict=True):
        fill_linear(mine, other, columns)
        columns = None


def rows_of(embeddings: Embeddings, name: str) -> Tensor:
    """The rows of a feature's table, [cardinality, D]."""
    feature = BY_NAME[name]
    start = embeddings.first_row(feature)
    return embeddings.table.weight[start : start + feature.cardinality]


def table(fields: Fields, name: str) -> Tensor:
    """The same of `Fields`; for a number, its vector times each of NUMBERS."""
    feature = BY_NAME[name]
    if feature.kind == "dense":
        vector = fields.scales[feature.side][SCHEMA.dense(feature.side).index(feature)]
        return NUMBERS.unsqueeze(1) * vector
    return rows_of(fields.user if feature.side == "user" else fields.item, name)


def row_layout(width: int) -> list[tuple[str, int]]:
    """What `Fields.flat` puts side by side, with the widths: numbers, then vectors."""
    return [(f.name, 1) for f in DENSE] + [(f.name, width) for f in IDS]


def vector_layout(width: int) -> list[tuple[str, int]]:
    """The same where a number has a vector, too."""
    features = [f for side in SIDES for f in (*SCHEMA.ids(side), *SCHEMA.dense(side))]
    return [(feature.name, width) for feature in features]


def places(ours: Sequence[tuple[str, int]], theirs: Sequence[str]) -> Tensor:
    """For each column of a row of theirs, the place of it in ours."""
    widths = dict(ours)
    assert sorted(widths) == sorted(theirs)
    starts = dict(zip(widths, accumulate([0, *widths.values()]), strict=False))
    return torch.cat([torch.arange(starts[n], starts[n] + widths[n]) for n in theirs])
