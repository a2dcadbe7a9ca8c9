"""What `python -m perf.fixture` writes is what export reads, and is as real as it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cascade import index
from cascade.data.source import DataError
from cascade.encoding import FIRST, Encoder
from cascade.evaluation.metrics import auc
from cascade.spec import STAGES
from cascade.training import checkpoint
from export.artifacts.guard import HeldOut
from export.build import read_catalogue
from perf import fixture, fixture_tables, fixture_users
from perf.fixture import Plan
from perf.fixture_models import CLICK_RATE, Rows, logits
from perf.fixture_world import World, fit

PLAN = Plan(items=2000, ranker="small", users=300)
ONE_ROW = "1\t" + "\t".join(map(str, range(13))) + "\t" + "\t".join(["68fd1e64"] * 26) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fixture")
    fixture.write(PLAN, path)
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder.load(folder)


def _users(folder: Path, encoder: Encoder) -> Any:
    return encoder.encode_table("user", pq.read_table(folder / "users.parquet"))


def _vectors(folder: Path, encoder: Encoder) -> tuple[Any, Any]:
    """Of users and items, [B, D] and [N, D]."""
    towers = checkpoint.load(folder / "retrieve", encoder.schema)
    items = read_catalogue(folder)
    with torch.inference_mode():
        users = towers.user(*map(torch.from_numpy, _users(folder, encoder)))
        return users.numpy(), towers.item(*map(torch.from_numpy, (items.dense, items.ids))).numpy()


def test_is_a_folder_of_checkpoints(folder: Path, encoder: Encoder) -> None:
    items = read_catalogue(folder)
    assert len(items) == len(set(items.item_ids.tolist())) == PLAN.items
    sizes = [feature.cardinality for feature in encoder.schema.ids("item")]
    assert (items.ids >= FIRST).all()
    assert (items.ids < sizes).all()
    for stage in STAGES:
        scorer = checkpoint.load(folder / stage, encoder.schema)
        states = scorer.item(torch.from_numpy(items.dense[:3]), torch.from_numpy(items.ids[:3]))
        assert states.shape == (3, scorer.item_width)


def test_users_are_different_and_known(folder: Path, encoder: Encoder) -> None:
    lines = (folder / "users.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines)) == PLAN.users
    assert set(json.loads(lines[0])) <= {f.name for f in encoder.schema.side("user")}
    dense, ids = _users(folder, encoder)
    assert len(dense) == len(ids) == PLAN.users
    missing = (ids == 0).mean()
    assert 0 < missing < 0.1


def test_the_same_seed_writes_the_same(folder: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    fixture.write(PLAN, again)
    fixture.write(replace(PLAN, seed=1), other)
    for stage in STAGES:
        weights = checkpoint.digest(folder / stage)
        assert checkpoint.digest(again / stage) == weights
        assert checkpoint.digest(other / stage) != weights
    for name in ("catalogue.parquet", "users.jsonl", "held_out.parquet"):
        content = (folder / name).read_bytes()
        assert (again / name).read_bytes() == content
        assert (other / name).read_bytes() != content


def test_clicks_follow_the_ranker(folder: Path, encoder: Encoder) -> None:
    held_out, items = HeldOut.load(folder / "held_out.parquet"), read_catalogue(folder)
    assert len(held_out.items) == fixture.HELD_OUT_ROWS
    assert abs(held_out.labels.mean() - CLICK_RATE) < 0.02
    rows = Rows(*held_out.users, items.dense[held_out.items], items.ids[held_out.items])
    found = logits(checkpoint.load(folder / "rank", encoder.schema), rows)
    assert 0.74 < auc(held_out.labels, found) < 0.86
    assert abs((1 / (1 + np.exp(-found))).mean() - CLICK_RATE) < 1e-3


def test_items_lie_in_clusters(folder: Path, encoder: Encoder) -> None:
    _, vectors = _vectors(folder, encoder)
    cluster = World.draw(PLAN.random(1), PLAN.items).of_item
    cosine = vectors @ vectors.T
    same = cluster[:, None] == cluster[None, :]
    np.fill_diagonal(same, False)
    apart = ~same
    np.fill_diagonal(apart, False)
    assert cosine[same].mean() > cosine[apart].mean() + 0.3
    assert abs(vectors.mean(0)).max() < 0.2  # not one narrow cone


def test_users_lie_among_the_items(folder: Path, encoder: Encoder) -> None:
    users, items = _vectors(folder, encoder)
    best = np.sort(users @ items.T, axis=1)[:, -1]
    assert np.median(best) > 0.6
    built = index.build(items, "ivf")
    built.set_effort(max(1, built.facts.parameters["lists"] // 2))
    assert index.recall_at(built.search(users, 100), items, users, 100) > 0.95


def test_ids_are_skewed(folder: Path) -> None:
    ids = read_catalogue(folder).ids
    largest = [np.bincount(column).max() / len(column) for column in ids.T]
    assert np.median(largest) > 0.05


def test_a_fit_finds_what_was_planted() -> None:
    random = np.random.default_rng(0)
    ids, planted = random.integers(0, 20, (4000, 3)), random.normal(size=(60, 4))
    places = sum(planted[ids[:, f] + 20 * f] for f in range(3)).astype(np.float32)
    found = fit(ids, places, [20, 20, 20])
    again = sum(found.vectors[np.searchsorted(found.rows, ids[:, f] + 20 * f)] for f in range(3))
    assert abs(again - places).max() < 0.1


def test_the_paper_s_tables() -> None:
    sizes = fixture_tables.sizes(paper=True)
    assert sum(sizes.values()) == 33_762_577
    schema = fixture_tables.fit(sizes, {}).schema
    features = {feature.name: feature for feature in schema.ids("user") + schema.ids("item")}
    assert {n: f.cardinality - FIRST for n, f in features.items()} == sizes
    hashed = {name for name, feature in features.items() if feature.encoding == "hash"}
    assert hashed == {n for n, size in sizes.items() if size > fixture_tables.LONGEST_VOCABULARY}


def test_skewed_codes_cover_their_range() -> None:
    random = np.random.default_rng(0)
    assert set(fixture_tables.skewed(random, 3, 1000).tolist()) == {0, 1, 2}
    codes = fixture_tables.skewed(random, 1_000_000, 10_000)
    assert codes.min() == 0
    assert codes.max() < 1_000_000
    assert (codes < 10).mean() > 10 * (codes > 999_990).mean()


def test_takes_the_users_of_real_rows(tmp_path: Path) -> None:
    rows = tmp_path / "train.txt"
    other = ONE_ROW.replace("68fd1e64", "", 1).replace("\t5\t", "\t\t")
    rows.write_text(ONE_ROW * 2 + other)
    users = fixture_users.read(rows)
    assert len(users) == 2
    assert users.categorical[:, 0].tolist() == [b"68fd1e64", b""]
    assert np.isnan(users.dense[1, 5])
    encoder = fixture_tables.fit(fixture_tables.sizes(paper=False), users.seen())
    _, ids = encoder.encode("user", users.dense, users.categorical)
    assert ids[0].tolist() == [FIRST] * 6
    assert ids[1].tolist() == [0] + [FIRST] * 5
    fixture.write(replace(PLAN, rows=rows), tmp_path / "out")
    assert len((tmp_path / "out" / "users.jsonl").read_text().splitlines()) == 2


def test_a_bad_file_of_rows_is_named(tmp_path: Path) -> None:
    rows = tmp_path / "rows.txt"
    rows.write_text(ONE_ROW + "not a row\n")
    with pytest.raises(DataError, match=r"rows\.txt:2"):
        fixture_users.read(rows)


def test_too_few_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    arguments = ["fixture", "--items", "5", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit):
        fixture.main()
    assert "at least 100" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
