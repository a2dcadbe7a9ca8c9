"""The choice of an index by measurement. Which kind is fastest depends on the machine: the tests
assert only what must be true whichever kind wins."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from cascade import index as ann
from cascade.index import choice
from cascade.index.tuning import Truth

N, D, B, K, TARGET = 4000, 16, 64, 50, 0.9


def unit(rows: int, seed: int) -> ann.Floats:
    """Clustered unit vectors, as a trained tower gives them."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((40, D))
    x = centres[random.integers(0, 40, rows)] + 0.5 * random.standard_normal((rows, D))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def chosen() -> tuple[ann.Index, list[ann.Candidate]]:
    return ann.auto(unit(N, 0), unit(B, 1), K, TARGET)


def test_chosen_index_reaches_the_target_on_other_queries(
    chosen: tuple[ann.Index, list[ann.Candidate]],
) -> None:
    index, _ = chosen
    judged = unit(B, 1)[1::2]  # the half that nothing was tuned on
    reached = ann.recall_at(index.search(judged, K), unit(N, 0), judged, K)
    assert reached >= TARGET
    assert index.facts.recall == pytest.approx(reached, abs=1e-5)
    assert index.facts.recall_k == K
    assert index.facts.latency_us is not None
    assert index.facts.exact_us is not None
    assert min(index.facts.latency_us, index.facts.exact_us) > 0


def test_frontier_tells_of_every_kind_and_marks_one(
    chosen: tuple[ann.Index, list[ann.Candidate]],
) -> None:
    index, found = chosen
    [best] = [candidate for candidate in found if candidate.chosen]
    assert (best.kind, best.parameters) == (index.facts.kind, index.facts.parameters)
    assert best.latency_us == index.facts.latency_us
    assert {candidate.kind for candidate in found} == set(choice.CONTENDERS)
    for candidate in found:
        assert candidate.items == N
        assert 0 < candidate.recall <= 1
        assert candidate.latency_us > 0
        assert candidate.bytes_per_item >= D  # no kind stores less than half a byte a dimension


def test_bytes_per_item_are_those_of_the_file(tmp_path: Path) -> None:
    index, [best] = ann.auto(unit(100, 0), unit(B, 1), 100)
    ann.save(index, tmp_path, "s")
    assert best.bytes_per_item == pytest.approx((tmp_path / ann.FILE).stat().st_size / 100, abs=0.1)


@pytest.mark.parametrize("k", [100, 1000])
def test_catalogue_without_a_choice_is_searched_exactly(k: int) -> None:
    index, found = ann.auto(unit(100, 0), unit(B, 1), k)
    assert index.facts.kind == "flat"
    assert index.facts.recall == 1.0
    assert [candidate.kind for candidate in found] == ["flat"]
    assert found[0].chosen


@pytest.mark.parametrize("items", [2, 41, 700])
def test_small_catalogues_get_an_index(items: int) -> None:
    index, found = ann.auto(unit(items, 0), unit(B, 1), max(1, items // 10))
    assert index.facts.items == items
    assert index.facts.recall >= 0.95
    assert sum(candidate.chosen for candidate in found) == 1


def test_target_out_of_reach_is_searched_exactly() -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((2000, D)).astype(np.float32)
    index, found = ann.auto(vectors, vectors[:B], 10, 1.0, kinds=("sq8",))
    assert index.facts.kind == "flat"
    assert index.facts.recall == 1.0
    assert sum(candidate.chosen for candidate in found) == 1
    assert any("dropped" in c.note and c.kind == "sq8" for c in found)


def test_large_catalogue_is_screened_on_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "SAMPLE", 1000)
    kinds: tuple[ann.Kind, ...] = ("flat", "ivf", "ivfsq8")
    index, found = ann.auto(unit(N, 0), unit(B, 1), K, TARGET, kinds=kinds)
    assert index.facts.items == N
    dropped = [c for c in found if c.note]
    assert dropped
    assert all(c.items == 1000 and c.note.startswith("dropped on a sample") for c in dropped)
    assert all(c.items == N for c in found if not c.note)


def point(kind: ann.Kind, recall: float, latency_us: float) -> ann.Candidate:
    return ann.Candidate(kind, {}, N, recall, latency_us, 1.0, 1.0)


def test_fastest_that_reaches_wins() -> None:
    sq8, fast = point("ivfsq8", 0.96, 100), point("pcaivfsq8", 0.96, 90)
    assert choice._choose([sq8, fast, point("ivf", 0.94, 10)], 0.95) == 1
    assert choice._choose([sq8, replace(fast, latency_us=110)], 0.95) == 0
    assert choice._choose([replace(sq8, recall=0.94), fast], 0.95) == 1
    assert choice._choose([replace(sq8, recall=0.94)], 0.95) is None


def test_finalists_are_the_best_of_the_kinds_near_the_best() -> None:
    kinds: list[ann.Kind] = ["flat", "ivf", "ivf", "ivfsq8", "pcaivfsq8", "sq8"]
    assert choice.finalists(kinds, [900, 12, 11, 10, np.inf, 12.5]) == [3, 2, 5]
    assert choice.finalists(kinds, [np.inf] * 6) == []


def test_many_lists_are_tried_only_where_their_k_means_is_short() -> None:
    assert choice._contenders(["flat", "ivf"], 1_000_000) == [("flat", 0), ("ivf", 2), ("ivf", 4)]
    assert choice._contenders(["flat", "ivf"], 5_000_000) == [("flat", 0), ("ivf", 2)]


def test_one_query_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="1 queries cannot both tune"):
        ann.auto(unit(N, 0), unit(1, 1), K)


def test_timing_gives_a_figure_an_index_and_the_threads_back() -> None:
    vectors, queries = unit(N, 0), unit(8, 1)
    before = faiss.omp_get_max_threads()
    indexes = [ann.build(vectors, kind) for kind in ("flat", "ivf")]
    times_us = ann.timing(indexes, queries, K, rounds=2)
    assert len(times_us) == 2
    assert min(times_us) > 0
    assert ann.timing([], queries, 10 * N, rounds=1, exact_over=vectors)[0] > 0
    assert faiss.omp_get_max_threads() == before


def test_halves_share_no_query() -> None:
    truth = Truth.of(unit(N, 0), unit(7, 1), K)
    first, second = truth.halves()
    assert (len(first.queries), len(second.queries)) == (4, 3)
    for half in (first, second):
        assert half.share(half.best) == 1.0
        np.testing.assert_array_equal(half.best[0], truth.best[int(half is second)])
    assert not {tuple(q) for q in first.queries} & {tuple(q) for q in second.queries}


def test_frontier_is_saved(tmp_path: Path, chosen: tuple[ann.Index, list[ann.Candidate]]) -> None:
    index, found = chosen
    ann.save_frontier(tmp_path, index, TARGET, found)
    stored = json.loads((tmp_path / ann.FRONTIER).read_text())
    assert (stored["items"], stored["k"], stored["target"]) == (N, K, TARGET)
    assert stored["exact_us"] == index.facts.exact_us
    assert [ann.Candidate(**candidate) for candidate in stored["candidates"]] == found
