"""What `python -m perf.fixture` writes is what export reads, and is as real as it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cascade import index
from cascade.encoding import FIRST, Encoder
from cascade.evaluation.metrics import auc
from cascade.spec import STAGES
from cascade.training import checkpoint
from export.artifacts.guard import HeldOut
from export.context import read_catalogue
from perf import fixture
from perf.fixture import PAPER_BUCKETS

ITEMS, USERS = 2000, 300
PLAN: Any = {"items": ITEMS, "ranker": "small", "users": USERS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fixture")
    fixture.write(path, **PLAN)
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder.load(folder)


def _users(folder: Path, encoder: Encoder) -> Any:
    return encoder.encode_table("user", pq.read_table(folder / "users.parquet"))


def test_is_a_folder_of_checkpoints(folder: Path, encoder: Encoder) -> None:
    items = read_catalogue(folder)
    assert len(items) == len(set(items.item_ids.tolist())) == ITEMS
    sizes = [feature.cardinality for feature in encoder.schema.ids("item")]
    assert (items.ids < sizes).all()
    for stage in STAGES:
        scorer = checkpoint.load(folder / stage, encoder.schema)
        states = scorer.item(torch.from_numpy(items.dense[:3]), torch.from_numpy(items.ids[:3]))
        assert states.shape == (3, scorer.item_width)


def test_users_are_different_and_known(folder: Path, encoder: Encoder) -> None:
    lines = (folder / "users.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines)) == USERS
    assert set(json.loads(lines[0])) <= {f.name for f in encoder.schema.side("user")}
    dense, ids = _users(folder, encoder)
    assert len(dense) == len(ids) == USERS
    missing = (ids == 0).mean()
    assert 0 < missing < 0.1


def test_the_same_seed_writes_the_same(folder: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    fixture.write(again, **PLAN)
    fixture.write(other, seed=1, **PLAN)
    for stage in STAGES:
        weights = checkpoint.digest(folder / stage)
        assert checkpoint.digest(again / stage) == weights
        assert checkpoint.digest(other / stage) != weights
    for name in ("catalogue.parquet", "users.jsonl", "held_out.parquet"):
        content = (folder / name).read_bytes()
        assert (again / name).read_bytes() == content
        assert (other / name).read_bytes() != content


def test_clicks_follow_the_ranker(folder: Path, encoder: Encoder) -> None:
    items = read_catalogue(folder)
    held_out = HeldOut.load(folder / "held_out.parquet", np.arange(len(items)))
    assert len(held_out.items) == fixture.HELD_OUT_ROWS
    ranker = checkpoint.load(folder / "rank", encoder.schema)
    columns = (*held_out.users, items.dense[held_out.items], items.ids[held_out.items])
    with torch.inference_mode():
        chances = torch.sigmoid(ranker(*map(torch.from_numpy, columns))).numpy()
    assert abs(held_out.labels.mean() - chances.mean()) < 0.02
    assert auc(held_out.labels, chances) > 0.65


def test_items_have_prototypes_of_any_size() -> None:
    count = 4000
    columns = {f"C{n}": np.random.default_rng(n).permutation(count) for n in range(20)}
    table = fixture.clustered(pa.table({"item_id": np.arange(count), **columns}), seed=0)
    values = np.stack([table[name].to_numpy() for name in table.column_names[1:]])
    shared = [np.bincount(column).max() / count for column in values]
    assert 0.02 < np.median(shared) < 0.2  # a large cluster, and not the only one
    own = np.mean([values[n] == columns[f"C{n}"] for n in range(20)])
    assert own == pytest.approx(fixture.FOREIGN, abs=0.02)


def test_users_lie_among_the_items(folder: Path, encoder: Encoder) -> None:
    towers, catalogue = checkpoint.load(folder / "retrieve", encoder.schema), read_catalogue(folder)
    with torch.inference_mode():
        users = towers.user(*map(torch.from_numpy, _users(folder, encoder))).numpy()
        sides = (catalogue.dense, catalogue.ids)
        items = towers.item(*map(torch.from_numpy, sides)).numpy()
    scores = users @ items.T
    assert np.median(scores.max(axis=1)) > abs(scores.mean()) + 2 * scores.std()
    built = index.build(items, "ivf")
    built.set_effort(max(1, built.facts.parameters["lists"] // 2))
    assert index.recall_at(built.search(users, 100), items, users, 100) > 0.95


def test_the_paper_s_tables() -> None:
    rows = fixture.SCHEMA.side("user") + fixture.SCHEMA.side("item")
    table = pa.table({feature.name: ["a", "b", "a", ""] for feature in rows})
    schema = fixture.fit_encoder(True, table, table).schema
    hashed = {f.name: f.buckets for f in schema.features if f.encoding == "hash"}
    assert hashed == PAPER_BUCKETS
    assert sum(hashed.values()) == 33_715_179
    (known,) = {f.cardinality for f in schema.features if f.encoding == "vocabulary"}
    assert known == FIRST + 2


def test_too_few_items(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        fixture.main(["--items", "5", "--out", str(tmp_path / "out")])
    assert "at least 100" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
