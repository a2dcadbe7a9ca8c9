"""Figures of each task of several: whose rows count, and against what is known by hand."""

from __future__ import annotations

from math import log
from pathlib import Path

import numpy as np
import pytest
import torch

from cascade.data import prepare
from cascade.evaluation import clicks, metrics, report
from cascade.evaluation.brute_force import Encoded
from cascade.evaluation.clicks import OfTask
from cascade.schema import Task
from tests.weights import fresh

NAN = float("nan")


def test_an_amount_is_judged_by_its_mean() -> None:
    amounts, predicted = np.array([0, 0, 4, 6.0]), np.array([1, 2, 1.5, 3.5])
    assert metrics.amount_metrics(amounts, predicted) == {
        "auc": 0.75,
        "calibration": 0.8,
        "mean_squared_error": (1 + 4 + 2.5**2 + 2.5**2) / 4,
    }
    found = metrics.amount_metrics(np.zeros(2), predicted[:2])
    assert np.isnan([found["auc"], found["calibration"]]).all()
    assert found["mean_squared_error"] == 2.5
    assert np.isnan([*metrics.amount_metrics(amounts[:0], predicted[:0]).values()]).all()


def test_rows_that_do_not_know_a_task_do_not_count() -> None:
    predicted = {"": np.array([0.5, 0.9, 0.5, 0.25]), "_prerank": np.array([0.1, 0.9, 0.1, 0.1])}
    like = OfTask(Task("like"), np.array([1, NAN, 0, 0]), predicted, np.full(4, 1 / 3))
    found = like.metrics()
    assert (found["test_rows_like"], found["test_rate_like"]) == (3, 1 / 3)
    assert found["auc_like"] == 0.75
    assert found["auc_like_prerank"] == 0.5
    assert found["log_loss_like"] == pytest.approx((2 * log(2) + log(4 / 3)) / 3)
    assert found["calibration_like"] == pytest.approx(1.25)
    assert found["calibration_like_prerank"] == pytest.approx(0.3)
    assert found["bayes_normalized_entropy_like"] == pytest.approx(1)
    nothing = OfTask(Task("spent", "amount"), np.full(4, NAN), predicted).metrics()
    assert nothing["test_rows_spent"] == 0
    assert np.isnan([nothing["auc_spent"], nothing["test_rate_spent"]]).all()


def test_the_test_rows_are_judged_by_task_and_told(tmp_path: Path) -> None:
    dataset = prepare("synthetic:rows=3000,items=120,seed=1,tasks=3", tmp_path / "data")
    models = {
        "": fresh(dataset.schema, "mmoe").eval(),
        "_prerank": fresh(dataset.schema, "shared_bottom").eval(),
        "_baseline": fresh(dataset.schema, "logistic", "default").eval(),
    }
    items = Encoded(*dataset.items())
    scored = clicks.score(models, dataset.batches("test", 100), items)
    found = scored.metrics()
    for suffix in ("", "_prerank"):
        assert found[f"auc_click{suffix}"] == found[f"auc{suffix}"]
        for name in ("engagement", "revenue"):
            assert 0 < found[f"auc_{name}{suffix}"] < 1
    assert "auc_click_baseline" not in found  # a model of one task
    assert found["bayes_auc_click"] == found["bayes_auc"]
    assert found["bayes_auc_revenue"] > 0.65
    assert found["test_rows_revenue"] == found["test_rows"] == dataset.rows("test")
    batch = dataset.read("test")
    users, of_rows = Encoded(batch.user_dense, batch.user_ids), items.take(batch.item)
    with torch.inference_mode():
        logits = models[""](*users.tensors("cpu"), *of_rows.tensors("cpu"))
        means = torch.nn.functional.softplus(logits[:, 2].double())
    assert found["calibration_revenue"] == pytest.approx(
        float(means.sum()) / float(batch.tasks[:, 2].sum(dtype=float))
    )
    text = "\n".join(report._tasks(found))
    assert text.count("| revenue ") == text.count("| engagement ") == 3  # and the best possible
    assert f"{found['mean_squared_error_revenue']:.4f}" in text
    assert report._tasks({"auc": 0.5, "test_rows": 3}) == []


def test_rows_of_one_task_have_no_figures_by_task(tmp_path: Path) -> None:
    dataset = prepare("synthetic:rows=700,items=50", tmp_path / "data")
    models = {"": fresh(dataset.schema, "shared_bottom").eval()}
    scored = clicks.score(models, dataset.batches("test", 100), Encoded(*dataset.items()))
    assert scored.tasks == []
    assert not [name for name in scored.metrics() if "click" in name]
