"""Baselines against cases worked out by hand, and against dense arithmetic."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from cascade.data.seen import Events
from cascade.evaluation import metrics
from cascade.evaluation.baselines import lists, rows
from cascade.evaluation.baselines.lists import Histories
from cascade.schema import Feature, Schema


def histories(*items: list[int]) -> Histories:
    offsets = np.cumsum([0, *map(len, items)])
    return Histories(offsets, np.array([i for line in items for i in line], np.int64))


def events(*of_users: list[int]) -> Events:
    """Positives, in the order of time."""
    user = np.repeat(np.arange(len(of_users)), [len(line) for line in of_users])
    item = np.array([i for line in of_users for i in line])
    return Events(user, item, np.ones(len(user)), np.arange(len(user), dtype=float))


LOG = Events(
    user=np.array([0, 0, 1, 1, 2, 0, 2]),
    item=np.array([3, 1, 3, 2, 3, 2, 1]),
    label=np.array([1, 1, 1, 1, 0, 1, 1.0]),
    time=np.array([0, 1, 2, 3, 4, 95, 100.0]),
)


def test_popularity_counts_positives_and_leaves_out_what_was_seen() -> None:
    counts = lists.popularity(LOG, 5)
    assert counts.tolist() == [0, 2, 2, 2, 0]
    found = lists.popular_lists(counts, histories([], [1], [3, 2], [1, 2, 3]), 4)
    assert found.tolist() == [[1, 2, 3, -1], [2, 3, -1, -1], [1, -1, -1, -1], [-1] * 4]


def test_recent_popularity_counts_the_last_tenth_of_the_time() -> None:
    counts = lists.recent_popularity(LOG, 5)
    assert np.argsort(-counts, kind="stable")[:3].tolist() == [1, 2, 3]
    assert np.floor(counts).tolist() == [0, 1, 1, 0, 0]
    assert counts[3] > counts[0]  # behind the recent ones, but not unknown


def test_histories_are_taken_and_searched_by_query() -> None:
    found = histories([], [3], [2, 1, 3], [1])
    some = found.take(np.array([3, 2]))
    assert [some.of(query).tolist() for query in (0, 1)] == [[1], [2, 1, 3]]
    assert some.hold(np.array([[1, -1, 3], [1, 3, 9]])).tolist() == [
        [True, False, False],
        [True, True, False],
    ]


@pytest.mark.parametrize("block", [2, 64])
def test_neighbours_are_cosines(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "USERS_PER_BLOCK", block)
    random = np.random.default_rng(0)
    taken = random.random((30, 12)) < 0.3
    taken[:, 11] = False  # nobody's
    log = events(*[np.flatnonzero(line).tolist() for line in taken])
    model = lists.neighbours(log, 12, most=12)
    similar = cosine_similarity(taken.T[:11])
    np.fill_diagonal(similar, 0)
    np.testing.assert_allclose(model.weights.toarray(), similar, atol=1e-6)
    liked = histories([0, 1], [5], [])
    found = model.lists(liked, liked, 12)
    scores = similar[0] + similar[1]
    scores[:2] = -1
    assert found[0, :9].tolist() == np.argsort(-scores, kind="stable")[:9].tolist()
    popular = lists.popular_lists(lists.popularity(log, 12), histories([]), 12)
    assert found[2].tolist() == popular[0].tolist()  # nothing is known of this user
    assert not (found == 11).any()
    nearest = lists.neighbours(log, 12, most=1).weights.toarray()
    assert ((nearest > 0).sum(axis=0) == 1).all()
    np.testing.assert_allclose(nearest.max(axis=0), similar.max(axis=0), atol=1e-6)


def test_ease_is_the_least_squares_solution_without_a_diagonal() -> None:
    random = np.random.default_rng(1)
    taken = (random.random((40, 6)) < 0.4).astype(float)
    model = lists.ease(events(*[np.flatnonzero(line).tolist() for line in taken]), 6, l2=2.0)
    for item in range(6):  # each column is a ridge regression on the other items
        others = [i for i in range(6) if i != item]
        x = taken[:, others]
        weights = np.linalg.solve(x.T @ x + 2 * np.eye(5), x.T @ taken[:, item])
        np.testing.assert_allclose(model.weights[others, item], weights, atol=1e-5)
        assert model.weights[item, item] == 0


def test_ease_refuses_a_large_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "EASE_ITEMS", 2)
    with pytest.raises(lists.TooManyItems, match=r"3 have a positive, and at most 2 are tried"):
        lists.ease(LOG, 5, 1.0)


def test_the_setting_is_the_best_on_validation() -> None:
    liked, wanted = histories([0], [3]), np.array([[1], [4]])
    log = events([0, 1], [0, 1], [3, 4], [3, 4], [0, 3, 2], [2, 5], [2, 5])

    def judge(model: lists.ItemModel) -> float:
        return metrics.recall_at(model.lists(liked, liked, 1), wanted, 1)

    value, model = lists.chosen([1, 2, 3], lambda most: lists.neighbours(log, 6, int(most)), judge)
    assert (value, judge(model)) == (1, 1.0)


SCHEMA = Schema(
    "small",
    (
        Feature("age", "user", "dense", "identity"),
        Feature("city", "user", "categorical", "vocabulary", cardinality=5),
        Feature("price", "item", "dense", "identity"),
        Feature("genres", "item", "bag", "vocabulary", length=3, cardinality=6),
    ),
)


def drawn(size: int, seed: int) -> rows.Rows:
    """City 2 likes genre 3, city 4 likes the rest; nothing else matters."""
    random = np.random.default_rng(seed)
    city = random.integers(2, 5, (size, 1))
    genres = np.stack([random.permutation(np.arange(2, 6))[:3] for _ in range(size)])
    genres[::2, 2] = 0
    likes = (city[:, 0] == 2) == (genres == 3).any(axis=1)
    label = (random.random(size) < np.where(likes, 0.8, 0.2)).astype(np.float32)
    dense = random.standard_normal((2, size, 1)).astype(np.float32)
    return rows.Rows(label, dense[0], city, dense[1], genres)


def test_features_are_one_hot_and_bags_are_sets() -> None:
    two = rows.Rows(
        np.array([1.0, 0.0]),
        np.array([[0.5], [0.0]]),
        np.array([[2], [0]]),
        np.array([[7.0], [8.0]]),
        np.array([[3, 3, 0], [5, 4, 2]]),
    )
    city, genres = [0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0]
    first, second = rows.one_hot(SCHEMA, two).toarray().tolist()
    assert first == [0.5, 7, *city, *genres]
    third = pytest.approx(1 / 3)
    assert second == [0, 8, 1, 0, 0, 0, 0, 0, 0, third, 0, third, third]
    matrix, categories = rows.columns(SCHEMA, two)
    assert categories == [2]
    assert matrix.toarray().tolist()[0] == [0.5, 7, 2, *genres]


def test_both_models_learn_what_they_can() -> None:
    pytest.importorskip("lightgbm", exc_type=(ImportError, OSError))
    test = drawn(1000, 2)
    found = rows.fit(SCHEMA, drawn(4000, 0), drawn(1000, 1), test)
    assert [note.split(":")[0] for note in found.notes] == ["logistic regression", "LightGBM"]
    auc = {name: metrics.auc(test.label, p) for name, p in found.probabilities.items()}
    assert auc["lightgbm"] > 0.75  # sees the city and the genre together
    assert 0.5 < auc["logistic_regression"] < 0.7  # sees each alone


def test_what_cannot_be_fitted_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    one = drawn(50, 0)._replace(label=np.ones(50))
    found = rows.fit(SCHEMA, one, drawn(50, 1), drawn(50, 2))
    assert (found.probabilities, len(found.notes)) == ({}, 1)
    imported = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "lightgbm":
            raise ImportError("No module named 'lightgbm'")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    found = rows.fit(SCHEMA, drawn(200, 0), drawn(100, 1), drawn(100, 2))
    assert [*found.probabilities] == ["logistic_regression"]
    assert "pip install 'cascade[dev]'" in found.notes[-1]
