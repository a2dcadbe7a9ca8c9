"""A release with the same models over another catalogue answers as a full export of it would."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cascade import index
from cascade.artifact import ArtifactError, Description
from cascade.config import Product, Serving
from cascade.encoding import Encoder
from cascade.index import RefreshError, refresh
from cascade.release import read_release
from cascade.stages import rerank
from cascade.stages.filters.items import FilterItems
from cascade.stages.pipeline import Pipeline
from cascade.training import checkpoint
from export.artifacts import filters
from export.context import Catalogue, Source, read_catalogue
from export.releases.items import read_ids, read_items
from export.releases.manifest import verify
from export.releases.refresh import Change, Refresh, change
from tests.cascades import Cascade, raw_rows, table_of
from tests.example_models import TEXTBOOK

ITEMS, NEW = 600, 40


@pytest.fixture(scope="module")
def small(make_cascade: Callable[..., Cascade]) -> Cascade:
    """So few items that all of them are candidates: then the answer does not depend on an index."""
    return make_cascade(items=ITEMS, state="float16")


@pytest.fixture(scope="module")
def textbook(make_cascade: Callable[..., Cascade]) -> Cascade:
    """The same, of models that were taken apart."""
    return make_cascade(items=ITEMS, models=TEXTBOOK, state="float16", also=())


def new_items(cascade: Cascade, path: Path) -> Path:
    """A Parquet file of raw items, one of which is there already."""
    random = np.random.default_rng(7)
    table = table_of(cascade.schema, "item", *raw_rows(cascade.schema, "item", NEW, random))
    ids = np.arange(10_000_000, 10_000_000 + NEW)
    ids[0] = read_catalogue(cascade.checkpoints).item_ids[3]
    pq.write_table(table.append_column("item_id", pa.array(ids)), path)
    return path


def changed(cascade: Cascade, folder: Path) -> tuple[Refresh, Change]:
    started = Refresh(cascade.repository, 1, cascade.checkpoints)
    added = read_items(
        new_items(cascade, folder / "new.parquet"), started.encoder, started.checkpoints
    )
    gone = folder / "gone.txt"
    old = read_catalogue(cascade.checkpoints).item_ids
    gone.write_text("\n".join(map(str, old[100:150])) + "\n")
    return started, change(started.item_ids, added, read_ids(gone))


def best_of_all(cascade: Cascade, items: Catalogue, users: int) -> Any:
    """The eager models over a whole catalogue: the preranker's 200, the ranker's 10 of them."""
    import torch

    encoder_users = Refresh(cascade.repository, 1, cascade.checkpoints).encoder.encode(
        "user", cascade.dense[:users], cascade.categorical[:users]
    )
    logits = []
    with torch.inference_mode():
        for stage in ("prerank", "rank"):
            scorer = checkpoint.load(cascade.checkpoints / stage, cascade.schema)
            states = scorer.item(torch.from_numpy(items.dense), torch.from_numpy(items.ids))
            user = scorer.user(*map(torch.from_numpy, encoder_users))
            logits.append(scorer.cross(user, states[None].expand(users, -1, -1)).numpy())
    survivors = np.argsort(-logits[0], axis=1)[:, : cascade.sizes.survivors]
    scores = np.take_along_axis(logits[1], survivors, 1)
    order = np.argsort(-scores, axis=1)[:, : cascade.sizes.results]
    rows = np.take_along_axis(survivors, order, 1)
    return items.item_ids[rows], 1 / (1 + np.exp(-np.take_along_axis(scores, order, 1)))


@pytest.mark.parametrize("models", ["small", "textbook"])
def test_a_refreshed_release_knows_the_new_items_and_forgets_the_old(
    models: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    assert_same_answers: Callable[..., None],
) -> None:
    small: Cascade = request.getfixturevalue(models)
    started, change_ = changed(small, tmp_path)
    assert (change_.items, (~change_.keep).sum()) == (ITEMS - 51 + NEW, 51)
    started.write(tmp_path / "next", 2, change_)
    release = verify(tmp_path / "next", 2)
    assert release["items"] == ITEMS - 51 + NEW
    assert release["made_of"] == {"release": 1, "kept": ITEMS - 51, "added": NEW}
    pipeline = Pipeline.load(tmp_path / "next", 2, Serving(threads=1))
    old = read_catalogue(small.checkpoints)
    kept = old.take(np.flatnonzero(np.isin(old.item_ids, started.item_ids[change_.keep])))
    items = Catalogue(
        *(
            np.concatenate((getattr(kept, name), getattr(change_.added, name)))
            for name in ("dense", "ids", "item_ids")
        )
    )
    answer = small.ask(pipeline, stop=64)
    assert_same_answers(answer, best_of_all(small, items, 64), slack=2e-3)  # float16 states
    assert set(change_.added.item_ids) & set(answer[0].ravel().tolist())
    # What does not know of items is not copied.
    twins = [folder / "rank" for folder in (small.repository, tmp_path / "next")]
    file = "model.pt" if models == "small" else "items.onnx"
    assert (twins[0] / "1" / file).samefile(twins[1] / "2" / file)
    # What is written again is not written through a link into the release that is served.
    assert not (twins[0] / "1" / "model.py").samefile(twins[1] / "2" / "model.py")


@pytest.mark.parametrize("raw", [True, False])
def test_filters_are_those_of_a_full_export(seven: Cascade, tmp_path: Path, raw: bool) -> None:
    """Values of hashed features can be told only where the raw ones are at hand."""
    encoder = Encoder.load(seven.checkpoints)
    random = np.random.default_rng(3)
    table = table_of(seven.schema, "item", *raw_rows(seven.schema, "item", 60, random))
    dense, ids = encoder.encode_table("item", table)
    everything = Catalogue(dense, ids, np.arange(60) * 3, table)
    keep = random.random(50) < 0.6
    old, added = everything.take(np.arange(50)), everything.take(np.arange(50, 60))

    def written(items: Catalogue, name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        columns = {c: items.raw[c] for c in table.column_names} if items.raw is not None else {}
        catalogue = pa.table({"item_id": items.item_ids, **columns})
        pq.write_table(catalogue, folder / "catalogue.parquet")
        rows = np.arange(len(items))
        filters.write(Source(folder, encoder, items, rows), folder, None)
        return folder

    left = everything.take(np.append(np.flatnonzero(keep), np.arange(50, 60)))
    expected = FilterItems(written(left, "full"), seven.schema.hash)
    (tmp_path / "next").mkdir()
    new = added if raw else replace(added, raw=None)
    source = written(old, "old")
    found = filters.refresh(source, tmp_path / "next", encoder, keep, new, left.item_ids)
    items = FilterItems(tmp_path / "next", seven.schema.hash)
    np.testing.assert_array_equal(items.rows(left.item_ids), np.arange(len(left)))
    assert not len(items.rows(old.item_ids[~keep]))
    features = {f.name for f in seven.schema.ids("item")}
    assert (set(found.features) == features) is raw
    for name in found.features:
        words = {w for text in table[name].to_pylist() for w in text.split("|")}
        for word in words:
            values = {name: [word.encode()]}
            np.testing.assert_array_equal(items.having(values), expected.having(values))


def test_a_refresh_may_be_refreshed(small: Cascade, tmp_path: Path) -> None:
    started, first = changed(small, tmp_path)
    started.write(tmp_path / "next", 2, first)
    again = Refresh(tmp_path / "next", 2, small.checkpoints)
    back = change(
        again.item_ids, read_items(None, again.encoder, again.checkpoints), first.added.item_ids[1:]
    )
    again.write(tmp_path / "last", 3, back)
    assert read_release(tmp_path / "last", 3)["items"] == ITEMS - 51 + 1
    verify(tmp_path / "last", 3)


def test_a_list_chosen_from_a_pool_is_refreshed_with_it(
    make_cascade: Callable[..., Cascade], tmp_path: Path
) -> None:
    product = Product(pool=30, diversity=0.5, explored=2)
    pooled = make_cascade(items=300, serving=Serving(max_batch_size=8), product=product)
    started = Refresh(pooled.repository, 1, pooled.checkpoints)
    items = read_catalogue(pooled.checkpoints)
    twin = Catalogue(items.dense[:5], items.ids[:5], items.item_ids.max() + 1 + np.arange(5))
    started.write(tmp_path / "next", 2, change(started.item_ids, twin, items.item_ids[5:20]))
    verify(tmp_path / "next", 2)
    folder = tmp_path / "next" / "rank" / "2"
    ids = Description.load(folder).mapped["catalogue_ids"].open(folder)[:, 0]
    place = {item: row for row, item in enumerate(ids.tolist())}
    vectors = rerank.vectors(folder)
    for item, other in zip(items.item_ids[:5].tolist(), twin.item_ids.tolist(), strict=True):
        np.testing.assert_allclose(vectors[place[item]], vectors[place[other]], atol=2e-3)


def test_other_checkpoints_are_refused(small: Cascade, criteo: Cascade, tmp_path: Path) -> None:
    other = Path(shutil.copytree(small.checkpoints, tmp_path / "other"))
    weights = other / "rank" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match="not the weights that rank of release 1"):
        Refresh(small.repository, 1, other)


def test_what_cannot_be_added_or_removed_is_named(small: Cascade, tmp_path: Path) -> None:
    started = Refresh(small.repository, 1, small.checkpoints)
    empty = read_items(None, started.encoder, started.checkpoints)
    with pytest.raises(ArtifactError, match=r"1 items to be removed are not.*: \[5\]"):
        change(started.item_ids, empty, np.array([5]))
    with pytest.raises(ArtifactError, match="nothing would be left"):
        change(started.item_ids, empty, started.item_ids)
    (tmp_path / "ids.txt").write_text("7\nx7\n")
    with pytest.raises(ArtifactError, match=r"ids\.txt:2: 'x7' is no item id"):
        read_ids(tmp_path / "ids.txt")
    (tmp_path / "ids.txt").write_text("7\n1,234\n")
    with pytest.raises(ArtifactError, match=r"ids\.txt:2: these may be several ids, or one with"):
        read_ids(tmp_path / "ids.txt")
    pq.write_table(pa.table({"item_id": [1]}), tmp_path / "narrow.parquet")
    with pytest.raises(ArtifactError, match=r"lacks the columns \['C7', 'C8'"):
        read_items(tmp_path / "narrow.parquet", started.encoder, started.checkpoints)


@pytest.mark.parametrize(
    "kind", ["flat", "sq8", "sqfp16", "ivf", "ivfsq8", "pcaivfsq8", "IVF80,PQ4x6"]
)
def test_an_index_lets_items_go_and_takes_others(kind: index.Kind) -> None:
    random = np.random.default_rng(0)
    axes = random.normal(size=(6, 16))  # what they have is in few of them, as in trained towers

    def draw(count: int) -> np.ndarray:
        return (random.normal(size=(count, 6)) @ axes).astype(np.float32)

    vectors = draw(3000)
    built = index.build(vectors, kind)
    keep = random.random(3000) < 0.7
    added = draw(50)
    found = refresh(built, keep, added)
    if "lists" in found.facts.parameters:
        found.set_effort(found.facts.parameters["lists"])
    left = np.concatenate((vectors[keep], added))
    assert found.raw.ntotal == found.facts.items == len(left)
    queries = draw(20)
    everything = found.search(queries, len(left))
    assert [sorted(rows) for rows in everything.tolist()] == [[*range(len(left))]] * 20
    exact = np.argsort(-queries @ left.T, axis=1)[:, :50]
    shared = [
        len({*a} & {*b}) / 50 for a, b in zip(everything[:, :50].tolist(), exact, strict=True)
    ]
    assert np.mean(shared) > (0.5 if kind.endswith("PQ4x6") else 0.95)


def test_an_index_that_cannot_drop_items_says_so() -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    built = index.build(vectors, "HNSW32,Flat")
    grown = refresh(built, np.ones(500, bool), vectors[:3])
    assert grown.facts.items == 503
    with pytest.raises(RefreshError, match="HNSW32,Flat cannot drop 500 items"):
        refresh(grown, np.arange(503) >= 500, vectors[:0])
