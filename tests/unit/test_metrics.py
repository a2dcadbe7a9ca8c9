"""Every metric against a case worked out by hand, and against its library where there is one."""

from __future__ import annotations

from math import isnan, log, log2

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from cascade.evaluation import metrics

LABELS = np.array([1, 0, 1, 0, 0], np.float32)
SCORES = np.array([0.9, 0.6, 0.4, 0.4, 0.1], np.float32)


def ids(*lists: list[int]) -> metrics.Ids:
    width = max(len(line) for line in lists)
    return np.array([line + [-1] * (width - len(line)) for line in lists], np.int64)


def test_row_metrics_by_hand() -> None:
    # Pairs (positive, negative): 0.9 beats all three; 0.4 loses to 0.6, ties 0.4, beats 0.1.
    assert metrics.auc(LABELS, SCORES) == pytest.approx((3 + 0 + 0.5 + 1) / 6)
    loss = -(log(0.9) + log(0.4) + log(0.4) + log(0.6) + log(0.9)) / 5
    assert metrics.log_loss(LABELS, SCORES) == pytest.approx(loss, abs=1e-6)
    entropy = -(0.4 * log(0.4) + 0.6 * log(0.6))
    assert metrics.normalized_entropy(LABELS, SCORES) == pytest.approx(loss / entropy, abs=1e-6)
    assert metrics.calibration(LABELS, SCORES) == pytest.approx(2.4 / 2)
    assert metrics.accuracy(LABELS, SCORES) == pytest.approx(3 / 5)  # 0.6 and the first 0.4 are off
    assert metrics.row_metrics(LABELS, SCORES) == {
        "auc": metrics.auc(LABELS, SCORES),
        "log_loss": metrics.log_loss(LABELS, SCORES),
        "normalized_entropy": metrics.normalized_entropy(LABELS, SCORES),
        "calibration": metrics.calibration(LABELS, SCORES),
        "accuracy": metrics.accuracy(LABELS, SCORES),
    }


def test_gauc_by_hand() -> None:
    labels = np.array([1, 0, 1, 0, 0, 1, 1, 0], np.float32)
    scores = np.array([0.9, 0.1, 0.2, 0.2, 0.5, 0.7, 0.8, 0.3])
    user = np.array([7, 7, 3, 3, 3, 5, 5, 7])
    # User 3: the positive ties one and loses to one, 0.25 of 3 rows; user 5 has one class; user 7:
    # all right, 1 of 3 rows.
    values, rows = metrics.user_aucs(labels, scores, user)
    assert values[[0, 2]].tolist() == [0.25, 1]
    assert isnan(values[1])
    assert rows.tolist() == [3, 2, 3]
    assert metrics.gauc(labels, scores, user) == pytest.approx((3 * 0.25 + 3 * 1) / 6)
    assert metrics.gauc(labels, scores, np.zeros(8)) == metrics.auc(labels, scores)
    assert isnan(metrics.gauc(labels[5:7], scores[5:7], user[5:7]))
    none = np.zeros(0)
    assert isnan(metrics.gauc(none, none, none.astype(int)))


def test_base_rate_has_normalized_entropy_one() -> None:
    labels = np.array([1, 0, 0, 0], np.float32)
    rate = np.full(4, 0.25, np.float32)
    assert metrics.normalized_entropy(labels, rate) == pytest.approx(1)
    assert metrics.calibration(labels, rate) == pytest.approx(1)
    assert metrics.auc(labels, rate) == 0.5


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_leaves_some_metrics_undefined(label: int) -> None:
    labels, p = np.full(3, label, np.float32), np.full(3, 0.75, np.float32)
    assert isnan(metrics.auc(labels, p))
    assert isnan(metrics.normalized_entropy(labels, p))
    assert metrics.log_loss(labels, p) == pytest.approx(-log(0.75 if label else 0.25))
    assert metrics.accuracy(labels, p) == label
    assert metrics.calibration(labels, p) == pytest.approx(
        0.75 if label else float("nan"), nan_ok=True
    )


def test_no_rows_leave_all_metrics_undefined() -> None:
    none = np.zeros(0, np.float32)
    assert all(isnan(value) for value in metrics.row_metrics(none, none).values())


def test_certain_predictions_have_a_finite_log_loss() -> None:
    assert 10 < metrics.log_loss(np.array([1.0]), np.array([0.0])) < 100
    assert metrics.log_loss(np.array([1.0]), np.array([1.0])) == pytest.approx(0, abs=1e-9)


def test_list_metrics_by_hand() -> None:
    lists, positives = ids([7, 3, 9, 5]), ids([3, 5, 8])  # hits at places 2 and 4, of 3 positives
    assert metrics.recall_at(lists, positives, 4) == pytest.approx(2 / 3)
    assert metrics.recall_at(lists, positives, 2) == pytest.approx(1 / 3)
    gain, ideal = 1 / log2(3) + 1 / log2(5), 1 / log2(2) + 1 / log2(3) + 1 / log2(4)
    assert metrics.ndcg_at(lists, positives, 4) == pytest.approx(gain / ideal)
    ideal_of_two = 1 / log2(2) + 1 / log2(3)  # a list of two can hold two positives, not three
    assert metrics.ndcg_at(lists, positives, 2) == pytest.approx((1 / log2(3)) / ideal_of_two)
    assert metrics.map_at(lists, positives, 4) == pytest.approx((1 / 2 + 2 / 4) / 3)
    assert metrics.map_at(lists, positives, 2) == pytest.approx((1 / 2) / 2)
    assert metrics.mrr_at(lists, positives, 4) == metrics.mrr_at(lists, positives, 2) == 1 / 2
    assert metrics.mrr_at(lists, positives, 1) == metrics.hit_rate_at(lists, positives, 1) == 0
    assert metrics.hit_rate_at(lists, positives, 2) == 1


LIST_METRICS = [
    metrics.recall_at,
    metrics.ndcg_at,
    metrics.map_at,
    metrics.mrr_at,
    metrics.hit_rate_at,
]


@pytest.mark.parametrize("metric", LIST_METRICS)
def test_list_metrics_at_their_ends(metric: object) -> None:
    assert callable(metric)
    assert metric(ids([4, 2, 1]), ids([2, 4]), 2) == pytest.approx(1)  # all positives first
    assert metric(ids([4, 2, 1]), ids([5]), 3) == 0
    assert metric(ids([-1, -1, -1]), ids([5]), 3) == 0  # an empty list
    assert isnan(metric(ids([1, 2]), ids([-1]), 2))  # nobody has a positive


@pytest.mark.parametrize("metric", LIST_METRICS)
def test_users_without_positives_are_left_out_of_the_mean(metric: object) -> None:
    assert callable(metric)
    alone = metric(ids([7, 3, 9]), ids([3]), 3)
    assert metric(ids([7, 3, 9], [3, 7, 9]), ids([3], [-1]), 3) == pytest.approx(alone)
    both = metric(ids([7, 3, 9], [5, 6, 7]), ids([3], [1]), 3)
    assert both == pytest.approx(alone / 2)


@pytest.mark.parametrize("metric", LIST_METRICS)
def test_duplicates_and_pads_change_nothing(metric: object) -> None:
    assert callable(metric)
    plain = metric(ids([7, 3, 9, 8]), ids([3, 1]), 4)
    assert metric(ids([7, 3, 3, 3]), ids([3, 1]), 4) == pytest.approx(plain)
    assert metric(ids([7, 3, 9, 8]), ids([3, 3, -1, 1]), 4) == pytest.approx(plain)
    assert metric(ids([7, 3, -1, -1]), ids([3, 1]), 4) == pytest.approx(plain)
    assert metric(ids([7, 3]), ids([3, 1]), 4) == pytest.approx(plain)  # a list shorter than k


def test_ndcg_equals_scikit_learn() -> None:
    random = np.random.default_rng(0)
    users, items, k = 20, 30, 10
    lists = np.stack([random.permutation(items) for _ in range(users)])
    relevant = random.random((users, items)) < 0.2
    positives = ids(*[np.flatnonzero(line).tolist() for line in relevant])
    scores = -np.argsort(lists, axis=1).astype(np.float64)  # an item's place in the list
    assert metrics.ndcg_at(lists, positives, k) == pytest.approx(ndcg_score(relevant, scores, k=k))


def test_values_of_users_and_their_mean() -> None:
    lists, positives = ids([7, 3, 9], [5, 6, 7], [1, 2, 3]), ids([9, 3], [4], [-1])
    ranks = metrics.reciprocal_ranks(lists, positives, 3)
    assert ranks.tolist()[:2] == [1 / 2, 0]
    assert isnan(ranks[2])
    recalls = metrics.recalls(lists, positives, 2)
    assert recalls.tolist()[:2] == [1 / 2, 0]
    assert metrics.recall_at(lists, positives, 2) == np.nanmean(recalls)


def test_the_interval_is_that_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(3, 2, (4000, 1))
    both = np.concatenate((values, np.full_like(values, np.nan)), axis=1)
    low, high = metrics.interval(lambda users: both[users].mean(axis=0), len(values))
    half = 1.96 * values.std() / len(values) ** 0.5  # by the central limit theorem
    assert low[0] == pytest.approx(values.mean() - half, abs=half / 3)
    assert high[0] == pytest.approx(values.mean() + half, abs=half / 3)
    assert isnan(low[1])
    assert isnan(high[1])
