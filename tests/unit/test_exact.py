"""Exact retrieval against a sort in NumPy, on the CPU, whatever the sizes; and its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cascade import index as ann
from cascade.artifact import ArtifactError
from cascade.config import Serving
from cascade.index import exact
from cascade.runtime.load import load_graph
from cascade.spec import RETRIEVE
from cascade.stages.pipeline import Pipeline

SCHEMA = "0123456789abcdef"
ONE = Serving(threads=1)
N, D, B = 5000, 16, 9


def drawn(rows: int, seed: int) -> Any:
    """Unit vectors that float16 holds without rounding, so that NumPy can be the judge."""
    x = np.random.default_rng(seed).standard_normal((rows, D))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)


def check(found: Any, vectors: Any, queries: Any, k: int) -> None:
    """The k best; items of equal score may stand in for each other."""
    real = min(k, len(vectors))
    assert found.dtype == np.int64
    assert found.shape == (len(queries), k)
    assert (found[:, real:] == -1).all()
    scores = queries @ vectors.T
    reached = np.take_along_axis(scores, found[:, :real], 1)
    np.testing.assert_allclose(reached, -np.sort(-scores, axis=1)[:, :real], atol=1e-5)
    assert all(len(set(rows)) == real for rows in found[:, :real].tolist())


@pytest.fixture
def open_exact(tmp_path: Path) -> Callable[..., exact.ExactIndex]:
    def load(vectors: Any, **options: Any) -> exact.ExactIndex:
        exact.save(vectors, tmp_path, SCHEMA)
        return exact.load(tmp_path, SCHEMA, replace(ONE, **options))

    return load


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(("items", "k"), [(N, 50), (N, 1), (4097, 1000), (300, 300), (7, 50)])
def test_the_best_items_are_found(
    open_exact: Callable[..., exact.ExactIndex], items: int, k: int, recorded: bool
) -> None:
    vectors, queries = drawn(items, 0), drawn(B, 1)
    vectors[items // 2 :] = vectors[: items - items // 2]  # every score comes twice
    found = open_exact(vectors, cuda_graphs=recorded)
    assert len(found) == items
    assert found.facts == {"kind": "exact", "items": items, "width": D, "device": "cpu"}
    for batch in (1, B):
        check(found.search(queries[:batch], k), vectors, queries[:batch], k)


def test_scores_that_do_not_fit_at_once(
    open_exact: Callable[..., exact.ExactIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, queries = drawn(N, 0), drawn(B, 1)
    found = open_exact(vectors)
    monkeypatch.setattr(exact, "SCORES_BYTES", 4 * B * 700)
    monkeypatch.setattr(exact, "CPU_BLOCK_ITEMS", 300)
    for k in (50, 699, 2000):
        check(found.search(queries, k), vectors, queries, k)
    assert found.search(queries, N + 1)[:, -1].tolist() == [-1] * B


@pytest.mark.parametrize("items", [1, 2, 63, 64, 1000, 1023, 40_001])
@pytest.mark.parametrize("k", [1, 2, 60])
def test_the_largest_by_groups_are_the_largest(items: int, k: int) -> None:
    k = min(k, items)
    scores = torch.randn((3, items), generator=torch.Generator().manual_seed(items))
    scores[1] = scores[1].round()  # a few values, many times
    scores[2, -1] = 9  # beyond the last whole group
    values, places = exact.top_k(scores, k)
    torch.testing.assert_close(values, scores.topk(k, dim=1).values, rtol=0, atol=0)
    torch.testing.assert_close(scores.gather(1, places), values, rtol=0, atol=0)
    assert all(len(set(row)) == k for row in places.tolist())


def test_more_users_than_the_largest_bucket(open_exact: Callable[..., exact.ExactIndex]) -> None:
    vectors, queries = drawn(500, 0), drawn(150, 1)
    check(open_exact(vectors, cuda_graphs=True).search(queries, 20), vectors, queries, 20)


def test_a_tower_is_searched_after_on_the_device(
    open_exact: Callable[..., exact.ExactIndex],
) -> None:
    vectors, queries = drawn(N, 0), drawn(B, 1)
    turned = open_exact(vectors).after(lambda a, b: (a[:, :, 0] + b,), 30)
    halves = queries[:, :, None] / 2, queries / 2
    check(turned(*halves), vectors, queries, 30)


def test_bad_questions_are_refused(open_exact: Callable[..., exact.ExactIndex]) -> None:
    found = open_exact(drawn(N, 0))
    with pytest.raises(ValueError, match=r"shape \[9, 15\]; expected \[B, 16\]"):
        found.search(drawn(B, 1)[:, 1:], 5)
    with pytest.raises(ValueError, match="k is 0"):
        found.search(drawn(B, 1), 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_vectors_that_half_precision_does_not_hold_are_refused(
    tmp_path: Path, value: float
) -> None:
    vectors = drawn(5, 0)
    vectors[3, 2] = value
    with pytest.raises(ValueError, match="not finite in float16"):
        exact.save(vectors, tmp_path, SCHEMA)
    with pytest.raises(ValueError, match=r"shape \[0, 16\]; expected"):
        exact.save(vectors[:0], tmp_path, SCHEMA)


def spoiled(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no vectors": (lambda f: (f / exact.FILE).unlink(), "item_vectors.bin is missing; 160 bytes"),
    "half of them": (lambda f: (f / exact.FILE).write_bytes(b"x" * 80), "has 80 bytes; 160"),
    "another byte": (lambda f: spoiled(f / exact.FILE), "sha256 differs.*export again"),
    "no facts": (lambda f: (f / exact.FACTS).unlink(), "item_vectors.json is missing"),
    "half of the facts": (
        lambda f: (f / exact.FACTS).write_text("{"),
        "item_vectors.json is damaged",
    ),
    "facts without a size": (
        lambda f: (f / exact.FACTS).write_text(json.dumps({"schema_hash": SCHEMA, "sha256": ""})),
        "item_vectors.json is damaged: .*items",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    exact.save(drawn(5, 0), tmp_path, SCHEMA)
    assert sorted(p.name for p in tmp_path.iterdir()) == [exact.FILE, exact.FACTS]
    damage, message = DAMAGE[name]
    damage(tmp_path)
    with pytest.raises(ArtifactError, match=message):
        exact.load(tmp_path, SCHEMA, ONE)


def test_another_schema_or_a_missing_gpu_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact.save(drawn(5, 0), tmp_path, SCHEMA)
    with pytest.raises(ArtifactError, match=f"schema {SCHEMA}, but .* is other"):
        exact.load(tmp_path, "other", ONE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ArtifactError, match="torch finds no GPU"):
        exact.load(tmp_path, SCHEMA, replace(ONE, device="cuda"))


@pytest.mark.parametrize("runtime", ["onnx", "torchscript"])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_cascade_retrieves_exactly(
    criteo: Any, tmp_path: Path, runtime: Any, cuda_graphs: bool
) -> None:
    repository = Path(shutil.copytree(criteo.repository, tmp_path / "repository"))
    folder = repository / RETRIEVE / "1"
    width = ann.load(folder, criteo.schema.hash).facts.width
    vectors = np.random.default_rng(0).standard_normal((1500, width)).astype(np.float16)
    exact.save(vectors.astype(np.float32), folder, criteo.schema.hash)
    assert exact.present(folder)
    serving = Serving(threads=1, runtime=runtime, cuda_graphs=cuda_graphs)
    pipeline = Pipeline.load(repository, serving=serving)
    users = criteo.dense[:5], criteo.categorical[:5]
    user_dense, user_ids, found = pipeline.retrieve(*users)
    (queries,) = load_graph(folder, criteo.schema, ONE)[1](user_dense, user_ids)
    check(found, vectors.astype(np.float32), queries, 1000)
    assert pipeline(*users)[0].shape == (5, 10)
    exact.remove(folder)
    assert not exact.present(folder)
    plain = Pipeline.load(repository, serving=serving).retrieve(*users)[2]
    np.testing.assert_array_equal(plain, criteo.pipeline().retrieve(*users)[2])
