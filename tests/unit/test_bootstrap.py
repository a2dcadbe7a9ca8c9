"""Intervals by bootstrap over users: those of the central limit theorem, and paired."""

from __future__ import annotations

from math import isnan, nan

import numpy as np
import pytest

from cascade.evaluation import bootstrap, metrics


def test_values_of_users_are_the_means_of_their_queries() -> None:
    values = np.array([[1.0, nan], [0.0, nan], [0.5, 2.0], [nan, 4.0]])
    found = bootstrap.of_users(values, np.array([9, 9, 4, 4]))
    assert found[0].tolist() == [0.5, 3.0]
    assert found[1, 0] == 0.5
    assert isnan(found[1, 1])


def test_the_interval_of_a_mean_is_that_of_the_central_limit_theorem() -> None:
    values = np.random.default_rng(3).normal(3, 2, (2000, 1))
    low, high = bootstrap.ends(bootstrap.means(values)[:, 0])
    half = 1.96 * values.std() / len(values) ** 0.5
    assert low == pytest.approx(values.mean() - half, abs=half / 6)
    assert high == pytest.approx(values.mean() + half, abs=half / 6)


def test_one_draw_is_the_metric_of_the_rows_drawn() -> None:
    random = np.random.default_rng(0)
    labels, user = random.integers(0, 2, 60).astype(float), random.integers(0, 8, 60)
    scores = np.round(random.random(60), 1).clip(0.05, 0.95)  # with equals
    found = bootstrap.row_draws(labels, scores, user)
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(found, 1000)
    for number, drawn in enumerate(bootstrap.draws(8, 3)):
        rows = np.repeat(np.arange(60), drawn[user])
        some = labels[rows], scores[rows]
        assert found["auc"][number] == pytest.approx(metrics.auc(*some))
        assert found["log_loss"][number] == pytest.approx(metrics.log_loss(*some))
        aucs, _ = metrics.user_aucs(labels, scores, user)
        weight = np.where(np.isnan(aucs), 0, drawn * np.bincount(user))
        expected = np.average(np.nan_to_num(aucs), weights=weight)
        assert found["gauc"][number] == pytest.approx(expected)


def test_a_small_but_steady_difference_is_no_tie() -> None:
    random = np.random.default_rng(1)
    users = random.random((300, 1))
    a, b, c = (
        bootstrap.means(users + shift)[:, 0]
        for shift in (0, 0.01 + random.normal(0, 0.01, (300, 1)), random.normal(0, 0.3, (300, 1)))
    )
    assert bootstrap.ends(b)[0] < bootstrap.ends(a)[1]  # their own intervals overlap
    assert not bootstrap.tie(a, b)
    assert bootstrap.difference(b, a)[0] > 0
    assert bootstrap.tie(a, c)
    assert bootstrap.tie(a, a)
    assert bootstrap.tie(a, np.full(1000, nan))


def test_differences_without_truth_are_ties_as_often_as_they_should_be() -> None:
    random = np.random.default_rng(2)
    ties = 0
    for _ in range(100):
        a, b = random.random((2, 100, 1))
        ties += bootstrap.tie(bootstrap.means(a)[:, 0], bootstrap.means(b)[:, 0])
    assert 88 <= ties <= 100  # 95, within three standard errors
