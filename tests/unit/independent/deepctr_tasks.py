"""Models of several tasks of DeepCTR-Torch with the weights of ours: `reference(scorer, rows)` ->
logits [B, T]."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.unit.independent.case import Rows, fill, fill_linear, fill_linears, places, row_layout
from tests.unit.independent.deepctr import columns, fill_tables, models, order, run


def shared_bottom(scorer: Any, rows: Rows) -> Tensor:
    bottom, towers = scorer.bottom[::2], scorer.towers
    width, described = scorer.fields.user.width, columns(scorer.fields.user.width)
    model = models.SharedBottom(
        described,
        [layer.out_features for layer in bottom],
        [layer.out_features for layer in towers[0][0][::2]],
        task_types=["regression"] * len(towers),
        task_names=scorer.tasks,
    )
    fill_tables(model, scorer.fields)
    fill_linears(model.bottom_dnn.linears, bottom, places(row_layout(width), order(described)))
    _fill_towers(model, towers)
    return run(model, rows)


def mmoe(scorer: Any, rows: Rows) -> Tensor:
    experts, towers = [expert[::2] for expert in scorer.experts], scorer.towers
    width, described = scorer.fields.user.width, columns(scorer.fields.user.width)
    model = models.MMOE(
        described,
        len(experts),
        [layer.out_features for layer in experts[0]],
        (),
        [layer.out_features for layer in towers[0][0][::2]],
        task_types=["regression"] * len(towers),
        task_names=scorer.tasks,
    )
    fill_tables(model, scorer.fields)
    at = places(row_layout(width), order(described))
    for theirs, ours in zip(model.expert_dnn, experts, strict=True):
        fill_linears(theirs.linears, ours, at)
    for theirs, ours in zip(model.gate_dnn_final_layer, scorer.gates, strict=True):
        fill_linear(theirs, ours, at)
    _fill_towers(model, towers)
    return run(model, rows)


def _fill_towers(model: Any, towers: Any) -> None:
    for place, (hidden, last) in enumerate(towers):
        fill_linears(model.tower_dnn[place].linears, hidden[::2])
        fill(model.tower_dnn_final_layer[place].weight, last.weight)
        fill(model.out[place].bias, last.bias)
