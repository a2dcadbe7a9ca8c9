"""Exports our own ranker as a third party would: the whole model over flat (user, item) rows, the
baseline that shows what evaluating the user once per request saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cascade.models.scorer import Scorer
from cascade.schema import Schema, Side
from cascade.spec import TASKS
from export.artifacts import onnx_file
from export.artifacts.graphs import said, several

OUTPUT = "logit"


class Flat(nn.Module):
    """Encoded rows, [n, F] each -> logits [n], or what every task says [n, T] of a model of
    several. A side without dense features, or without ids, leaves that argument out."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(
        self,
        user_dense: Tensor | None = None,
        user_ids: Tensor | None = None,
        item_dense: Tensor | None = None,
        item_ids: Tensor | None = None,
    ) -> Tensor:
        tensors = (user_dense, user_ids, item_dense, item_ids)
        rows = next(tensor.shape[0] for tensor in tensors if tensor is not None)
        kinds = (torch.float32, torch.long, torch.float32, torch.long)
        sides = zip(tensors, kinds, strict=True)
        given = [torch.zeros(rows, 1, dtype=kind) if x is None else x for x, kind in sides]
        if several(self.scorer):
            return said(self.scorer(*given), self.scorer.kinds)
        return self.scorer.score_rows(*given)


def flat_onnx(scorer: Scorer, schema: Schema, path: Path) -> dict[str, Any]:
    """Write the model to one ONNX file (and `path`.data where it is large), dynamic in the rows ->
    the content of the JSON that maps its inputs, see `export.foreign.wrapper`."""
    inputs: dict[str, list[str]] = {}
    example: dict[str, Tensor] = {}
    sides: tuple[Side, ...] = ("user", "item")
    for side in sides:
        if schema.dense(side):
            inputs[f"{side}_dense"] = [feature.name for feature in schema.dense(side)]
            example[f"{side}_dense"] = torch.zeros(2, schema.dense_width(side))
        if schema.ids(side):
            inputs[f"{side}_ids"] = [feature.name for feature in schema.ids(side)]
            example[f"{side}_ids"] = torch.zeros(2, schema.ids_width(side), dtype=torch.long)
    dynamic = {name: {0: torch.export.Dim("rows")} for name in example}
    path.parent.mkdir(parents=True, exist_ok=True)
    tasks = several(scorer)
    output = TASKS if tasks else OUTPUT
    names = ([*example], [output])
    onnx_file.trace(Flat(scorer), example, dynamic, *names, path, f"{path.name}.data")
    if tasks:
        return {"inputs": inputs, "output": output, "output_is": "value", "tasks": [*tasks]}
    return {"inputs": inputs, "output": output, "output_is": "logit"}
