"""Training and the baselines read the items of training rows as they were before these rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cascade.data import Dataset
from cascade.evaluation.baselines.log import encoded
from cascade.training.choices.rank import ChoiceRankTask
from cascade.training.loop import Hyperparameters
from cascade.training.negatives import Negatives, Sampling
from cascade.training.tasks import RankTask, RetrievalTask
from tests.item_past import UNLABELLED, Floats, log_of, shop, slow
from tests.weights import fresh

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return shop(tmp_path_factory.mktemp("clicks"))


@pytest.fixture(scope="module")
def likes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Without labels."""
    return shop(tmp_path_factory.mktemp("likes"), UNLABELLED)


def seen_by_a_model(dataset: Dataset, rows: Any) -> Floats:
    """Dense features [B, F] of the items of training rows, with the rows' own past."""
    dense = dataset.items()[0][rows.item]
    width = rows.item_past.shape[1]
    return np.concatenate((dense[:, :-width], rows.item_past), axis=1)


@pytest.mark.parametrize(("task", "model"), [(RankTask, "dlrm"), (RetrievalTask, "two_tower")])
def test_a_training_row_is_learnt_with_its_own_past(clicks: Dataset, task: Any, model: str) -> None:
    made = task(fresh(clicks.schema, model), clicks, Hyperparameters(batch_size=50), CPU)
    batches = clicks.batches("train", 50, 0)
    for (rows, (dense, ids)), batch in zip(made.batches(0, 0), batches, strict=True):
        assert rows[2].tolist() == batch.item.tolist()
        np.testing.assert_array_equal(dense, seen_by_a_model(clicks, batch))
        np.testing.assert_array_equal(ids, clicks.items()[1][batch.item])
    np.testing.assert_array_equal(made.items.tensors[0], clicks.items()[0])
    assert torch.isfinite(made.loss((rows, (dense, ids)), 0))
    with torch.inference_mode():
        assert np.isfinite(made.validate()["objective"])


def test_the_labels_of_a_log_of_choices_are_learnt_with_it(likes: Dataset) -> None:
    ranker, towers = fresh(likes.schema), fresh(likes.schema, "two_tower")
    negatives = Negatives(likes, Sampling(2))
    task = ChoiceRankTask(ranker, towers, likes, Hyperparameters(batch_size=64), CPU, negatives)
    ((_, _, item, label), (dense, _)), *_ = next(task.batches(0, 0))
    read, _ = next(task.rows.batches(0, 0, 0))
    batch = read.take(slice(64))
    assert item[label > 0].tolist() == batch.item.tolist()
    np.testing.assert_array_equal(dense[label > 0], seen_by_a_model(likes, batch))


def test_drawn_negatives_are_as_old_as_the_row(likes: Dataset) -> None:
    """Values from the end of the log would tell them from the positive."""
    batch = likes.read("train", 200)
    rows = Negatives(likes, Sampling(3)).beside(batch, np.random.default_rng(0))
    assert rows.item_past is not None
    np.testing.assert_array_equal(rows.item_past[::4], batch.item_past)
    log, day = log_of(likes), likes.source["item_past"]["day"]
    numbers = np.zeros((len(rows), 3), np.float32)  # price, and two of the past
    asked = zip(rows.item.tolist(), rows.time.tolist(), strict=True)  # type: ignore[union-attr]
    numbers[:, 1:] = np.array([slow(log, item, time, day) for item, time in asked])[:, [0, 2]]
    expected = likes.encoder.encode_dense("item", numbers)[:, 1:]
    np.testing.assert_allclose(rows.item_past, expected, rtol=1e-4, atol=1e-5)
    held_out = Negatives(likes, Sampling(3)).beside(likes.read("test"), np.random.default_rng(0))
    assert held_out.item_past is None


def test_baselines_see_what_the_models_see(clicks: Dataset) -> None:
    train, test = [*clicks.batches("train", 100)], clicks.read("test")
    rows, held = encoded(train, *clicks.items()), encoded([test], *clicks.items())
    whole = clicks.read("train")
    np.testing.assert_array_equal(rows.item_dense, seen_by_a_model(clicks, whole))
    np.testing.assert_array_equal(rows.label, whole.label)
    np.testing.assert_array_equal(rows.user_ids, whole.user_ids)
    np.testing.assert_array_equal(held.item_dense, clicks.items()[0][test.item])
    np.testing.assert_array_equal(held.item_ids, clicks.items()[1][test.item])
