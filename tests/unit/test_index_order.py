"""Rows in the order of the index's lists: another numbering, the same answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cascade import index as ann
from cascade.index.rows import list_ids
from cascade.index.search import base

N, D, B, K, CLUSTERS = 3000, 16, 20, 50, 30
FAST_SCAN = "IVF60,PQ8x4fs,RFlat"


def clustered(rows: int, seed: int) -> tuple[ann.Floats, ann.Ids]:
    """Unit vectors and the cluster of each."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((CLUSTERS, D))
    member = random.integers(0, CLUSTERS, rows)
    x = centres[member] + 0.3 * random.standard_normal((rows, D))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), member


@pytest.mark.parametrize("kind", [*ann.KINDS, FAST_SCAN, "HNSW32,SQ8"])
def test_renumbered_index_answers_the_same_items(kind: ann.Kind, tmp_path: Path) -> None:
    vectors, queries = clustered(N, 0)[0], clustered(B, 1)[0]
    index = ann.build(vectors, kind)
    rows, scores = index.search(queries, K), index.raw.search(queries, K)[0]
    order = ann.order(index)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(N))
    ann.save(ann.renumber(index, order), tmp_path, "s")
    again = ann.load(tmp_path, "s")  # what is served
    new_rows, new_scores = again.search(queries, K), again.raw.search(queries, K)[0]
    np.testing.assert_array_equal(np.sort(order[new_rows]), np.sort(rows))
    np.testing.assert_array_equal(new_scores, scores)
    recalls = [ann.recall_at(new_rows, vectors[order], queries, K)]
    assert recalls == [ann.recall_at(rows, vectors, queries, K)]


@pytest.mark.parametrize("kind", ["flat", "ivf", FAST_SCAN, "HNSW32,Flat"])
def test_neighbours_in_the_new_order_are_near(kind: ann.Kind) -> None:
    vectors, member = clustered(N, 0)
    order = ann.order(ann.build(vectors, kind))
    moves = (np.diff(member[order]) != 0).sum()
    assert moves < (np.diff(member) != 0).sum() / 4
    rows = ann.build(vectors, "flat").search(vectors[:B], K)
    place = np.argsort(order)
    pages = [np.mean([len(np.unique(r // 16)) for r in each]) for each in (rows, place[rows])]
    assert pages[1] < pages[0] / 2


@pytest.mark.parametrize("kind", ["ivf", FAST_SCAN])
def test_rows_of_a_list_follow_each_other(kind: ann.Kind) -> None:
    index = ann.build(clustered(N, 0)[0], kind)
    inner = base(ann.renumber(index, ann.order(index)).raw)
    lists = [np.sort(list_ids(inner, number)) for number in range(inner.nlist)]
    for rows in lists:
        assert (np.diff(rows) == 1).all()
    assert sum(map(len, lists)) == N


@pytest.mark.parametrize("items", [1, 5, 45])
@pytest.mark.parametrize("kind", ["flat", "ivf", "sq8", "HNSW32,Flat"])
def test_small_catalogues_have_an_order(kind: ann.Kind, items: int) -> None:
    vectors = clustered(items, 0)[0]
    index = ann.build(vectors, kind)
    order = ann.order(index)
    np.testing.assert_array_equal(np.sort(order), np.arange(items))
    rows = ann.renumber(index, order).search(vectors, 1)[:, 0]
    assert ann.recall_at(rows[:, None], vectors[order], vectors, 1) > 0


def test_what_is_no_order_is_refused(tmp_path: Path) -> None:
    index = ann.build(clustered(N, 0)[0], "ivf")
    for wrong in (np.arange(N - 1), np.zeros(N, np.int64), np.arange(1, N + 1)):
        with pytest.raises(ValueError, match=f"expected the {N} rows, each once"):
            ann.renumber(index, wrong)
    ann.save(index, tmp_path, "s")
    with pytest.raises(ValueError, match="mapped read-only"):
        ann.renumber(ann.load(tmp_path, "s"), np.arange(N))
    ann.renumber(ann.load(tmp_path, "s", mapped=False), np.arange(N))
