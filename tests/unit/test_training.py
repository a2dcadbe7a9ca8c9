"""What the trainings learn: rankers on clicks, towers on what is liked."""

from __future__ import annotations

import json
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pytest
import torch

from cascade.data import Dataset
from cascade.data.dataset import FORMAT
from cascade.data.prepare import write
from cascade.models.embeddings import Embeddings
from cascade.schema import Feature, Schema
from cascade.training.loop import Hyperparameters, fit
from cascade.training.optimization.optimizers import make_optimizers
from cascade.training.tasks import RankTask, RetrievalTask
from tests.weights import fresh

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
OF_A_HUNDRED = Hyperparameters(batch_size=100)


class Tastes:
    """Users of five tastes, items of five kinds: nine of ten clicks are on one's own kind. Every
    kind is as popular as the others, so that only the pair of the two tells anything."""

    schema = Schema(
        "tastes",
        (
            Feature("taste", "user", "categorical", "vocabulary"),
            Feature("kind", "item", "categorical", "vocabulary"),
            Feature("weight", "item", "dense", "identity"),
        ),
    )
    fingerprint = MappingProxyType({})
    items = 300

    def chunks(self, split):
        rows = 3000 if split == "train" else 500
        random = np.random.default_rng(len(split))
        taste, item = random.integers(5, size=rows), random.integers(self.items, size=rows)
        chance = np.where(taste == item % 5, 0.9, 0.025)
        label = (random.random(rows) < chance).astype(np.float32)
        yield pa.table({"label": label, "item_id": item, "taste": taste.astype(str).tolist()})

    def catalogue(self):
        item = np.arange(self.items)
        kind, weight = (item % 5).astype(str).tolist(), np.ones(self.items, np.float32)
        return pa.table({"item_id": item, "kind": kind, "weight": weight})


@pytest.fixture(scope="module")
def tastes(tmp_path_factory):
    root = tmp_path_factory.mktemp("tastes")
    description = {
        "format": FORMAT,
        "bad_row_count": 0,
        "bad_row": "",
        **write(Tastes(), Tastes.schema, root),
    }
    (root / "source.json").write_text(json.dumps(description))
    return Dataset.open(root)


@pytest.mark.parametrize(
    ("optimizer", "lr", "embedding_lr"),
    [("adam", 0.01, 0.05), ("adagrad", 0.05, 0.3), ("sgd", 0.5, 5.0)],
)
def test_a_ranker_learns_with_every_optimizer(tastes, tmp_path, optimizer, lr, embedding_lr):
    hyper = Hyperparameters(
        batch_size=100, epochs=6, optimizer=optimizer, lr=lr, embedding_lr=embedding_lr, patience=9
    )
    task = RankTask(fresh(tastes.schema), tastes, hyper, CPU)
    with torch.inference_mode():
        before = task.validate()
    history = fit(task, hyper, tmp_path, "ranker")
    assert history[-1]["loss"] < history[0]["loss"]
    with torch.inference_mode():
        after = task.validate()
    assert before["validation_auc"] < 0.8
    assert after["validation_auc"] > 0.9
    assert after["validation_log_loss"] < 0.25 < before["validation_log_loss"]
    assert after["objective"] == min(record["objective"] for record in history)


def test_logistic_regression_cannot_learn_a_pair(tastes, tmp_path):
    hyper = Hyperparameters(batch_size=100, epochs=3, lr=0.01)
    task = RankTask(fresh(tastes.schema, "logistic", "default"), tastes, hyper, CPU)
    assert fit(task, hyper, tmp_path, "logistic")[-1]["validation_auc"] < 0.65


def test_towers_find_the_items_of_a_taste(tastes, tmp_path):
    """A kind has 60 items: all fit into the first hundred; a list by popularity has a third."""
    hyper = Hyperparameters(batch_size=100, epochs=4, embedding_lr=0.05)
    task = RetrievalTask(fresh(tastes.schema, "two_tower"), tastes, hyper, CPU)
    with torch.inference_mode():
        before = task.validate()["validation_recall_at_100"]
    fit(task, hyper, tmp_path, "towers")
    with torch.inference_mode():
        measures = task.validate()
    # One click in ten is on another kind and cannot be foreseen.
    assert measures["validation_recall_at_100"] > max(0.85, before)
    assert measures["objective"] == measures["validation_loss"]


def test_retrieval_corrects_for_how_often_an_item_is_shown(tastes):
    items = tastes.read("train").item
    counts = np.bincount(items, minlength=300)
    task = RetrievalTask(
        fresh(tastes.schema, "two_tower"), tastes, Hyperparameters(batch_size=100), CPU
    )
    expected = np.log(np.maximum(counts, 1) / len(items))  # one that is never shown: as if once
    np.testing.assert_allclose(task.log_q, expected, rtol=1e-6)


def test_a_batch_without_a_click_still_teaches_the_towers(tastes):
    task = RetrievalTask(
        fresh(tastes.schema, "two_tower"), tastes, Hyperparameters(batch_size=100), CPU
    )
    (*rows, label), items = next(task.batches(0, 0))
    loss = task.loss(((*rows, torch.zeros_like(label)), items), 0)
    assert torch.isfinite(loss)
    loss.backward()
    gradients = [p.grad.to_dense() for p in task.scorer.parameters() if p.grad is not None]
    assert any(gradient.count_nonzero() for gradient in gradients)


def test_a_model_without_tables_or_with_frozen_ones_has_one_optimizer():
    model = torch.nn.Sequential(torch.nn.Embedding(3, 2, sparse=True), torch.nn.Linear(2, 1))
    model[0].weight.requires_grad = False
    (optimizer,) = make_optimizers(model, Hyperparameters())
    assert len(optimizer.param_groups[0]["params"]) == 2
    (optimizer,) = make_optimizers(torch.nn.Embedding(3, 2, sparse=True), Hyperparameters())
    assert type(optimizer).__name__ == "SparseAdam"


def test_tables_and_the_rest_have_their_own_rates(tastes):
    model = fresh(tastes.schema)
    for optimizer in ("adam", "adagrad", "sgd"):
        hyper = Hyperparameters(optimizer=optimizer, lr=0.3, embedding_lr=0.7)
        sparse, dense = make_optimizers(model, hyper)
        tables = [m.table.weight for m in model.modules() if isinstance(m, Embeddings)]
        (group,) = sparse.param_groups
        assert group["lr"] == 0.7
        assert {id(p) for p in group["params"]} == {id(p) for p in tables}
        (group,) = dense.param_groups
        assert group["lr"] == 0.3
        assert len(group["params"]) == len(list(model.parameters())) - len(tables)
