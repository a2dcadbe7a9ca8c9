"""Diversity and exploration by the book, and as a stage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

from cascade.artifact import ArtifactError
from cascade.client import Recommender
from cascade.config import Product, Serving
from cascade.server.launcher import Server
from cascade.spec import RANK, RERANK, RETRIEVE, Sizes
from cascade.stages import rerank
from cascade.stages.load import load_stage
from cascade.stages.rerank import Reranked
from cascade.stages.scoring import Score
from cascade.training import checkpoint
from export.context import read_catalogue
from tests.cascades import BAGS
from tests.filter_cases import intra_list_similarity

POOL, RESULTS, DIVERSITY = 30, 10, 0.4
ONE = Serving(threads=1)


def unit(*rows: tuple[float, float]) -> Any:
    found = np.array(rows)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_mmr_takes_the_best_and_then_what_is_unlike_it() -> None:
    """Two near copies in front, something else behind: worked out by hand."""
    vectors = unit((1, 0), (1, 0.01), (0, 1))
    relevances = np.array([1.0, 0.9, 0.5])
    assert rerank.mmr(relevances, vectors, 3, 0.0).tolist() == [0, 1, 2]
    # 0.5 * 0.9 - 0.5 * 1.0 < 0.5 * 0.5 - 0.5 * 0
    assert rerank.mmr(relevances, vectors, 2, 0.5).tolist() == [0, 2]
    assert rerank.mmr(relevances, vectors, 9, 0.5).tolist() == [0, 2, 1]
    # 0.9 * 0.9 - 0.1 * 1.0 > 0.9 * 0.5
    assert rerank.mmr(relevances, vectors, 2, 0.1).tolist() == [0, 1]
    assert rerank.mmr(relevances[:0], vectors[:0], 2, 0.5).tolist() == []


def test_mmr_is_greedy_on_its_formula() -> None:
    random = np.random.default_rng(0)
    vectors = unit(*random.standard_normal((12, 2)))
    relevances = rerank.relevance(random.random(12))
    taken: list[int] = []
    for _ in range(6):

        def worth(item: int) -> float:
            likeness = max((vectors[item] @ vectors[other] for other in taken), default=0.0)
            return float(0.6 * relevances[item] - 0.4 * likeness)

        taken.append(max((i for i in range(12) if i not in taken), key=worth))
    assert rerank.mmr(relevances, vectors, 6, 0.4).tolist() == taken


def test_relevance_spans_0_to_1() -> None:
    assert rerank.relevance(np.array([0.2, 0.6, 0.4])).tolist() == pytest.approx([0, 1, 0.5])
    assert rerank.relevance(np.array([0.3, 0.3])).tolist() == [1, 1]
    assert rerank.relevance(np.array([])).tolist() == []


def test_draws_have_the_probabilities_of_plackett_and_luce() -> None:
    scores, random = np.array([0.9, 0.5, 0.2, 0.1]), np.random.default_rng(1)
    weights = (scores / (1 - scores)) ** 2  # a temperature of a half
    seen: dict[tuple[int, ...], int] = {}
    draws = 20_000
    for _ in range(draws):
        found, propensities = rerank.explore(scores, np.array([0, 1, 2]), 2, 0.5, random)
        left = [1, 2, 3]
        assert found[0] == 0
        assert propensities[0] == 1
        for place in (1, 2):
            expected = weights[found[place]] / weights[left].sum()
            assert propensities[place] == pytest.approx(expected)
            left.remove(int(found[place]))
        seen[tuple(found[1:].tolist())] = seen.get(tuple(found[1:].tolist()), 0) + 1
    for first, second in permutations((1, 2, 3), 2):
        chance = weights[first] / weights[1:].sum()
        chance *= weights[second] / (weights[1:].sum() - weights[first])
        assert seen.get((first, second), 0) / draws == pytest.approx(chance, abs=0.01)


def test_nothing_is_drawn_where_nothing_is_asked_for() -> None:
    listed = np.array([2, 0])
    found, propensities = rerank.explore(
        np.array([0.3, 0.2, 0.9]), listed, 0, 1.0, np.random.default_rng(2)
    )
    assert found.tolist() == [2, 0]
    assert propensities.tolist() == [1, 1]


def test_a_certain_score_can_be_drawn() -> None:
    """Float32 probabilities reach 0 and 1."""
    scores = np.array([1.0, 0.0, 0.5], np.float32)
    found, propensities = rerank.explore(scores, np.arange(3), 3, 1.0, np.random.default_rng(3))
    assert sorted(found) == [0, 1, 2]
    assert np.isfinite(propensities).all()


def test_similarity_of_a_list() -> None:
    assert intra_list_similarity(unit((1, 0), (1, 0), (0, 1))) == pytest.approx(1 / 3)
    assert intra_list_similarity(unit((1, 0))) == 0


# --- the stage


@pytest.fixture(scope="module")
def diverse(make_cascade: Callable[..., Any]) -> Any:
    return make_cascade(
        schema=BAGS,
        items=500,
        users=20,
        sizes=Sizes(200, 60, RESULTS),
        serving=Serving(max_batch_size=32),
        product=Product(pool=POOL, diversity=DIVERSITY),
    )


@pytest.fixture(scope="module")
def explored(make_cascade: Callable[..., Any]) -> Any:
    return make_cascade(
        schema=BAGS,
        items=500,
        users=20,
        sizes=Sizes(200, 60, RESULTS),
        serving=Serving(max_batch_size=32),
        product=Product(pool=POOL, explored=3, temperature=0.5),
    )


def pooled(cascade: Any) -> tuple[Any, Any, Any]:
    """The ranker's inputs, and the ids and scores [B, POOL] that its graph hands on."""
    pipeline = cascade.pipeline()
    users = pipeline.retrieve(cascade.dense, cascade.categorical)
    inputs = (*users[:2], pipeline.prerank(*users))
    return inputs, *Score(cascade.repository / RANK / "1", ONE)(*inputs)


def vectors_of(cascade: Any) -> dict[int, Any]:
    """The retriever's vector of every item, of length 1, by id."""
    items = read_catalogue(cascade.checkpoints)
    retriever = checkpoint.load(cascade.checkpoints / RETRIEVE, cascade.schema)
    with torch.inference_mode():
        found = retriever.item(torch.from_numpy(items.dense), torch.from_numpy(items.ids)).numpy()
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return dict(zip(items.item_ids.tolist(), found, strict=True))


def test_the_stage_lists_what_mmr_takes_from_the_pool(diverse: Any) -> None:
    _, pool, chances = pooled(diverse)
    assert pool.shape == (20, POOL)
    vectors = vectors_of(diverse)
    ids, scores = diverse.ask(diverse.pipeline())
    assert ids.shape == scores.shape == (20, RESULTS)
    before, after = [], []
    for row in range(20):
        mine = np.stack([vectors[item] for item in pool[row].tolist()])
        taken = rerank.mmr(rerank.relevance(chances[row]), mine, RESULTS, DIVERSITY)
        assert ids[row].tolist() == pool[row][taken].tolist()
        np.testing.assert_allclose(scores[row], chances[row][taken], atol=1e-6)
        before.append(intra_list_similarity(mine[:RESULTS]))
        after.append(intra_list_similarity(mine[taken]))
    assert np.mean(after) < np.mean(before)


def test_the_stage_draws_the_last_places(explored: Any) -> None:
    inputs, pool, chances = pooled(explored)
    stage = load_stage(RANK, explored.repository / RANK / "1", ONE, 200)
    assert isinstance(stage, Reranked)
    ids, scores, propensities = stage(*inputs)
    np.testing.assert_array_equal(ids[:, :7], pool[:, :7])
    assert (propensities[:, :7] == 1).all()
    assert ((propensities[:, 7:] > 0) & (propensities[:, 7:] < 1)).all()
    assert (stage(*inputs)[0] != ids).any()
    for row in range(20):
        assert len(set(ids[row])) == RESULTS
        known = dict(zip(pool[row].tolist(), chances[row].tolist(), strict=True))
        assert [known[item] for item in ids[row].tolist()] == pytest.approx(scores[row].tolist())


def test_a_pool_of_pads_and_of_few_items(diverse: Any, explored: Any) -> None:
    for cascade in (diverse, explored):
        stage = load_stage(RANK, cascade.repository / RANK / "1", ONE, 200)
        (dense, user_ids, rows), *_ = pooled(cascade)
        rows = rows.copy()
        rows[0] = -1
        rows[1, 4:] = -1
        ids, scores, *propensities = stage(dense, user_ids, rows)
        assert (ids[0] == -1).all()
        assert (ids[1] >= 0).sum() == len(set(ids[1])) - 1 == 4
        assert (scores[ids < 0] == 0).all()
        assert all((drawn[ids < 0] == 0).all() for drawn in propensities)
        assert stage(dense[:0], user_ids[:0], rows[:0])[0].shape == (0, RESULTS)


def test_a_damaged_description_is_named(explored: Any, tmp_path: Any) -> None:
    folder = shutil.copytree(explored.repository / RANK / "1", tmp_path / "1")
    (folder / RERANK).write_text("{}")
    with pytest.raises(ArtifactError, match=r"rerank.json is damaged"):
        load_stage(RANK, folder, ONE, 200)


def test_the_server_hands_out_propensities(explored: Any) -> None:
    with Server(explored.repository) as server, Recommender(server.url, deadline_s=30) as client:
        found = client.recommend_many(explored.users[:3])
    _, pool, _ = pooled(explored)
    np.testing.assert_array_equal([one.item_ids[:7] for one in found], pool[:3, :7])
    for one in found:
        assert len(one.propensities) == len(one.item_ids) == RESULTS
        assert (one.propensities[:7] == 1).all()
        assert (one.propensities[7:] < 1).all()
