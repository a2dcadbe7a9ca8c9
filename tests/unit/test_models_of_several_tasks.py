"""Shared bottom and MMoE with several tasks: the contract, the paper's equations, and what of a
model a task reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cascade.models import build, preset
from cascade.models.contract import check
from cascade.models.example import SHOP, rows
from cascade.models.scoring.mmoe import MMoE
from cascade.schema import Task
from tests.weights import fresh

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS = (Task("click"), Task("engagement", weight=0.5), Task("revenue", "amount", 0.3))
SEVERAL = replace(SHOP, tasks=TASKS)
EACH = pytest.mark.parametrize("model", ["shared_bottom", "mmoe"])


@EACH
@pytest.mark.parametrize("name", ["default", "tiny"])
def test_a_logit_for_each_task(model: str, name: str) -> None:
    scorer = build(model, preset(model, name), SEVERAL)
    check(scorer)
    assert scorer.tasks == ("click", "engagement", "revenue")
    assert scorer.kinds == ("binary", "binary", "amount")
    assert scorer(*rows(5)).shape == (5, 3)
    user_dense, user_ids, item_dense, item_ids = rows(2)
    states = scorer.item(item_dense, item_ids).expand(2, -1, -1)
    assert scorer.cross(scorer.user(user_dense, user_ids), states).shape == (2, 2, 3)


@EACH
def test_a_task_reads_its_own_tower_and_what_is_shared(model: str) -> None:
    for task in range(3):
        scorer = fresh(SEVERAL, model)
        scorer(*rows(256))[:, task].square().sum().backward()
        learnt = {name: p.grad.to_dense().count_nonzero() for name, p in scorer.named_parameters()}
        read = {name for name, count in learnt.items() if count}
        others = tuple(
            f"{part}.{n}." for part in ("towers", "gates") for n in range(3) if n != task
        )
        assert read == {name for name in learnt if not name.startswith(others)}


def test_mmoe_is_the_sum_of_the_paper() -> None:
    """Equations 6 to 8, row by row and expert by expert, in NumPy."""
    model = fresh(SEVERAL, "mmoe").eval()
    assert isinstance(model, MMoE)
    with torch.no_grad():
        found = model(*rows(6)).numpy()
        inputs = model.fields.flat(*rows(6)).numpy()
    weights = {name: value.numpy() for name, value in model.state_dict().items()}

    def layer(name: str, x: np.ndarray) -> np.ndarray:
        return weights[f"{name}.weight"] @ x + weights.get(f"{name}.bias", 0)

    for row, x in enumerate(inputs):
        experts = [np.maximum(layer(f"experts.{i}.0", x), 0) for i in range(3)]
        for task in range(3):
            gate = np.exp(layer(f"gates.{task}", x))
            mixed = sum(g * expert for g, expert in zip(gate / gate.sum(), experts, strict=True))
            hidden = np.maximum(layer(f"towers.{task}.0.0", mixed), 0)
            logit = layer(f"towers.{task}.1", hidden)
            assert found[row, task] == pytest.approx(float(logit[0]), abs=1e-5)
