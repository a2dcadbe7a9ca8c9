"""Every kind of index against exact search written in NumPy, before and after a reload."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cascade import index as ann
from cascade.artifact import ArtifactError
from cascade.index.search import base, set_parameter

SCHEMA = "0123456789abcdef"
N, D, B, K = 2000, 16, 25, 50
FAST_SCAN, GRAPH = "IVF40,PQ8x4fs,RFlat", "HNSW32,SQ8"
KINDS = (*ann.KINDS, FAST_SCAN, GRAPH)


def unit(rows: int, seed: int, width: int = D) -> ann.Floats:
    """Clustered unit vectors, as a trained tower gives them."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((20, width))
    x = centres[random.integers(0, 20, rows)] + 0.5 * random.standard_normal((rows, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def exact(vectors: ann.Floats, queries: ann.Floats, k: int) -> tuple[ann.Ids, ann.Floats]:
    """The oracle: [B, k] rows and scores, best first."""
    scores = queries @ vectors.T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(scores, rows, 1)


def check_same(found: ann.Ids, vectors: ann.Floats, queries: ann.Floats, k: int) -> None:
    """`found` is the exact top k; items of equal score may stand in for each other."""
    _, best = exact(vectors, queries, k)
    reached = np.stack([vectors[rows] @ query for rows, query in zip(found, queries, strict=True)])
    np.testing.assert_allclose(reached, best, atol=1e-5)
    assert all(len(set(rows)) == k for rows in found.tolist())


def exhaust(index: ann.Index) -> None:
    """Raise the effort until nothing of the catalogue is left out."""
    if index.effort:
        index.set_effort(index.facts.parameters.get("lists", index.facts.items))


def knobs(index: ann.Index) -> dict[str, int]:
    """What FAISS itself holds of the values that can be set."""
    inner = base(index.raw)
    read = {
        "nprobe": lambda: inner.nprobe,
        "efSearch": lambda: inner.hnsw.efSearch,
        "refine_percent": lambda: round(100 * index.raw.k_factor),
    }
    return {name: read[name]() for name in read if name in index.facts.parameters}


@pytest.mark.parametrize("kind", ["flat", "ivf", "HNSW32,Flat"])
def test_kind_set_to_exhaustive_equals_exact_search(kind: ann.Kind) -> None:
    vectors, queries = unit(N, 0), unit(B, 1)
    vectors[100:110] = vectors[100]  # ten items that no score tells apart
    index = ann.build(vectors, kind)
    exhaust(index)
    rows, scores = index.search(queries, K), index.raw.search(queries, K)[0]
    assert rows.dtype == np.int64
    assert scores.dtype == np.float32
    check_same(rows, vectors, queries, K)
    np.testing.assert_allclose(scores, exact(vectors, queries, K)[1], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mapped", [True, False])
def test_reloaded_index_answers_as_before(kind: ann.Kind, mapped: bool, tmp_path: Path) -> None:
    vectors, queries = unit(N, 0), unit(B, 1)
    index = ann.build(vectors, kind)
    reached = ann.tune(index, vectors, queries, K, target=0.8)
    ann.save(index, tmp_path, SCHEMA)
    again = ann.load(tmp_path, SCHEMA, mapped=mapped)
    assert again.facts == index.facts
    assert knobs(again).items() <= index.facts.parameters.items()  # FAISS got the tuned values
    assert len(knobs(again)) == {FAST_SCAN: 2}.get(kind, int(index.effort is not None))
    np.testing.assert_array_equal(again.search(queries, K), index.search(queries, K))
    scores = index.raw.search(queries, K)[0]
    np.testing.assert_array_equal(again.raw.search(queries, K)[0], scores)
    stored = json.loads((tmp_path / "index.json").read_text())
    assert stored["recall"] == reached
    assert stored["recall_k"] == K
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["index.faiss", "index.json"]


@pytest.mark.parametrize("kind", KINDS)
def test_batch_equals_single(kind: ann.Kind) -> None:
    index, queries = ann.build(unit(N, 0), kind), unit(3, 1)
    together = index.search(queries, K)
    alone = np.concatenate([index.search(queries[i : i + 1], K) for i in range(3)])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("kind", [*ann.KINDS, GRAPH])
@pytest.mark.parametrize("items", [1, 7, 39, 45, 700])
def test_small_catalogues_pad_with_minus_one(kind: ann.Kind, items: int) -> None:
    vectors, queries = unit(items, 2), unit(4, 3)
    index = ann.build(vectors, kind)
    exhaust(index)
    rows = index.search(queries, 1000)
    assert rows.shape == (4, 1000)
    assert (np.sort(rows[:, :items], axis=1) == np.arange(items)).all()
    assert (rows[:, items:] == -1).all()
    assert ann.recall_at(rows, vectors, queries, 1000) == 1.0


@pytest.mark.parametrize("kind", ["sq8", "sqfp16", "ivfsq8", "ivfsq8u", FAST_SCAN, GRAPH])
def test_rounded_codes_find_nearly_what_exact_search_finds(kind: ann.Kind) -> None:
    vectors, queries = unit(N, 0), unit(B, 1)
    index = ann.build(vectors, kind)
    exhaust(index)
    if kind == FAST_SCAN:
        set_parameter(index.raw, "refine_percent", 400)
    rows, scores = index.search(queries, K), index.raw.search(queries, K)[0]
    assert ann.recall_at(rows, vectors, queries, K) > 0.95
    true = np.stack([vectors[r] @ q for r, q in zip(rows, queries, strict=True)])
    np.testing.assert_allclose(scores, true, atol=0.02)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_a_projection_loses_the_axes_that_it_drops_and_no_more() -> None:
    """All items lie in half of the axes, around a point far from the origin."""
    random = np.random.default_rng(0)
    plane = np.linalg.qr(random.normal(size=(D, D // 2)))[0]
    middle = 3 * plane @ random.normal(size=D // 2)
    vectors = (random.normal(size=(N, D // 2)) @ plane.T + middle).astype(np.float32)
    queries = unit(B, 1)
    index = ann.build(vectors, "pcaivfsq8")
    exhaust(index)
    assert index.facts.parameters["axes"] == D // 2
    rows, scores = index.search(queries, K), index.raw.search(queries, K)[0]
    assert ann.recall_at(rows, vectors, queries, K) > 0.95
    true = np.stack([vectors[r] @ q for r, q in zip(rows, queries, strict=True)])
    np.testing.assert_allclose(scores, true, atol=0.1)


def test_an_index_without_effort_has_none_to_set() -> None:
    with pytest.raises(ValueError, match="sq8 looks at every item"):
        ann.build(unit(N, 0), "sq8").set_effort(3)


@pytest.mark.parametrize(
    ("earlier", "kind"),
    [
        ("ivffs", "IVF40,PQ8x4fs,Refine(SQ8)"),
        ("ivfpq", "IVF40,PQ4x4"),
        ("hnsw", "HNSW32,Flat"),
        ("hnswsq8", "HNSW32,SQ8"),
    ],
)
def test_kinds_of_earlier_releases_load(earlier: str, kind: ann.Kind, tmp_path: Path) -> None:
    vectors, queries = unit(N, 0), unit(B, 1)
    index = ann.build(vectors, kind)
    ann.tune(index, vectors, queries, K, 0.8)
    ann.save(index, tmp_path, SCHEMA)
    path = tmp_path / ann.FACTS
    stored = json.loads(path.read_text())
    named = {"ivffs": {"quantizers": 8}, "ivfpq": {"quantizers": 4, "bits": 4}}
    stored["parameters"] |= named.get(earlier, {"links": 32})
    path.write_text(json.dumps({**stored, "kind": earlier}))
    again = ann.load(tmp_path, SCHEMA)
    assert again.facts.kind == earlier
    np.testing.assert_array_equal(again.search(queries, K), index.search(queries, K))
    allowed = np.arange(N) % 2 == 0
    found = again.search_among(queries, K, allowed)
    assert allowed[found[found >= 0]].all()
    loose = ann.load(tmp_path, SCHEMA, mapped=False)
    rows = ann.renumber(loose, ann.order(loose)).search(queries, K)
    assert ann.recall_at(rows, vectors[ann.order(index)], queries, K) > 0.3


def test_centroids_of_one_index_serve_the_next() -> None:
    vectors, queries = unit(N, 0), unit(B, 1)
    first = ann.build(vectors, "ivf", lists=12)
    centroids = base(first.raw).quantizer.reconstruct_n(0, 12)
    second = ann.build(vectors, "ivf", centroids=centroids)
    assert second.facts.parameters["lists"] == 12
    np.testing.assert_array_equal(second.search(queries, K), first.search(queries, K))


def test_facts_of_an_earlier_release_load(tmp_path: Path) -> None:
    index = ann.build(unit(N, 0), "ivf")
    ann.save(index, tmp_path, SCHEMA)
    path = tmp_path / "index.json"
    stored = json.loads(path.read_text())
    del stored["latency_us"], stored["exact_us"]  # they were not measured then
    path.write_text(json.dumps(stored))
    assert ann.load(tmp_path, SCHEMA).facts == index.facts
    del stored["recall"]
    path.write_text(json.dumps(stored))
    with pytest.raises(ArtifactError, match=r"is damaged: KeyError.*recall"):
        ann.load(tmp_path, SCHEMA)


def test_catalogue_too_small_for_a_kind_says_so() -> None:
    index = ann.build(unit(10, 0), "ivf")
    assert index.facts.kind == "flat"
    assert "ivf needs at least 40 items; 10" in index.facts.note
    assert ann.build(unit(40, 0), "ivf").facts.kind == "ivf"
    with pytest.raises(ann.IndexKindError, match=r"10 items cannot train 'IVF40,PQ8x4fs,RFlat'"):
        ann.build(unit(10, 0), FAST_SCAN)


def test_mapped_index_is_mapped_not_read(tmp_path: Path) -> None:
    for kind in KINDS:
        ann.save(ann.build(unit(N, 0), kind), tmp_path / kind, SCHEMA)
        index = ann.load(tmp_path / kind, SCHEMA)
        maps = [
            line
            for line in Path("/proc/self/maps").read_text().splitlines()
            if str(tmp_path) in line
        ]
        assert len(maps) == 1, kind
        assert " r--s " in maps[0]  # read-only and shared
        del index


@pytest.mark.parametrize("kind", ["ivf", "HNSW32,Flat"])
def test_tune_finds_the_least_effort(kind: ann.Kind) -> None:
    vectors, queries = unit(N, 0), unit(50, 1)
    index = ann.build(vectors, kind)
    reached = ann.tune(index, vectors, queries, 10, target=0.9)
    assert reached >= 0.9
    assert index.facts.recall == reached
    assert ann.recall_at(index.search(queries, 10), vectors, queries, 10) == reached
    least = 1 if kind == "ivf" else 10
    effort = index.facts.parameters[index.effort]
    if effort > least:
        index.set_effort(effort - 1)
        assert ann.recall_at(index.search(queries, 10), vectors, queries, 10) < 0.9


def test_tune_says_when_the_target_is_out_of_reach() -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((N, D)).astype(np.float32)  # no structure: codes lose much
    queries = random.standard_normal((50, D)).astype(np.float32)
    index = ann.build(vectors, "IVF40,PQ4x4")
    reached = ann.tune(index, vectors, queries, 10, target=0.999)
    assert 0.2 < reached < 0.999
    assert index.facts.parameters["nprobe"] == index.facts.parameters["lists"]
    assert f"recall@10 is {reached:.3f}" in index.facts.note


def test_recall_counts_ties_and_not_pads() -> None:
    vectors = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    query = np.array([[1, 0]], np.float32)
    assert ann.recall_at(np.array([[2, 0]]), vectors, query, 2) == 1.0  # any two of three equals
    assert ann.recall_at(np.array([[1, 3]]), vectors, query, 2) == 0.5
    assert ann.recall_at(np.array([[1, -1]]), vectors, query, 2) == 0.5
    assert ann.recall_at(np.array([[1, 1]]), vectors, query, 2) == 0.5  # one item, told twice
    assert ann.recall_at(np.array([[3, -1]]), vectors, query, 2) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_file_is_refused(kind: ann.Kind, tmp_path: Path) -> None:
    ann.save(ann.build(unit(N, 0), kind), tmp_path, SCHEMA)
    path = tmp_path / "index.faiss"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match=f"{len(whole) // 2} bytes; {len(whole)} bytes"):
        ann.load(tmp_path, SCHEMA)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="sha256 differs"):
        ann.load(tmp_path, SCHEMA)
    path.write_bytes(b"????" + whole[4:])
    with pytest.raises(ArtifactError, match=r"FAISS .* cannot read"):
        ann.load(tmp_path, SCHEMA, verify=False)
    path.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        ann.load(tmp_path, SCHEMA)


def test_other_schema_and_damaged_facts_are_refused(tmp_path: Path) -> None:
    ann.save(ann.build(unit(N, 0), "flat"), tmp_path, SCHEMA)
    with pytest.raises(ArtifactError, match=f"schema {SCHEMA}, but .* fedcba9876543210"):
        ann.load(tmp_path, "fedcba9876543210")
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(ArtifactError, match="is damaged"):
        ann.load(tmp_path, SCHEMA)
    (tmp_path / "index.json").unlink()
    with pytest.raises(ArtifactError, match=r"index\.json is missing"):
        ann.load(tmp_path, SCHEMA)


def test_bad_input_is_refused() -> None:
    vectors = unit(100, 0)
    index = ann.build(vectors, "flat")
    with pytest.raises(ValueError, match=r"shape \[2, 3\]; expected \[B, 16\]"):
        index.search(np.zeros((2, 3), np.float32), 5)
    with pytest.raises(ValueError, match="k is 0"):
        index.search(vectors[:1], 0)
    with pytest.raises(ValueError, match="no index kind 'annoy'"):
        ann.build(vectors, "annoy")
    with pytest.raises(ValueError, match="N > 0"):
        ann.build(vectors[:0], "flat")
    vectors[17, 3] = np.nan
    with pytest.raises(ValueError, match="item row 17 is not finite"):
        ann.build(vectors, "ivf")
