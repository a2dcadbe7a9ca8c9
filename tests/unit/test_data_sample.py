"""Rows drawn over the users of a split."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cascade.data import DataError, Dataset, distinct_users, prepare
from cascade.data.sample import over_users
from cascade.training import bundle
from cascade.training.negatives import validation
from tests.own_tables import SCHEMA, write_shop

REAL = Path(__file__).parents[3] / "shared" / "data" / "ml-latest-small"


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """1,000 rows of no user, in row groups of 64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cascade.data.parts.ROW_GROUP", 64)
        return prepare("synthetic:rows=7000,items=50", tmp_path_factory.mktemp("clicks") / "data")


@pytest.fixture(scope="module")
def bought(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """480 rows of 30 users in row groups of 64, each row told apart by its time."""
    folder = tmp_path_factory.mktemp("shop")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cascade.data.parts.ROW_GROUP", 64)
        return prepare("table", folder / "data", schema_file=write_shop(folder, SCHEMA))


def test_users_come_in_turns() -> None:
    user = np.repeat([5, 7, 9, -1, -1], [100, 2, 1, 1, 1])
    for seed in range(20):
        chosen = over_users(user, 9, np.random.default_rng(seed))
        assert len(set(chosen.tolist())) == 9
        first = set(chosen[:5].tolist())
        assert {103, 104} < first  # a row of nobody is of a user of its own
        assert Counter(user[chosen[:5]].tolist()) == {5: 1, 7: 1, 9: 1, -1: 2}
        assert sorted(user[chosen[5:7]].tolist()) == [5, 7]
        assert user[chosen[7:]].tolist() == [5, 5]
    assert sorted(over_users(user, 1000, np.random.default_rng(0))) == [*range(105)]
    assert len(over_users(user[:0], 5, np.random.default_rng(0))) == 0


def test_every_user_and_every_row_of_a_user_is_as_likely() -> None:
    user = np.repeat([0, 1], [20, 4])
    drawn = [over_users(user, 1, np.random.default_rng(seed))[0] for seed in range(2000)]
    counts = np.bincount(drawn, minlength=24)
    assert abs(counts[:20].sum() - 1000) < 150
    assert abs(counts[20:] - 250).max() < 75
    assert counts.min() > 20  # of 50 expected


def test_a_sample_has_whole_rows_of_many_users(bought: Dataset) -> None:
    whole = bought.read("train")
    place = {time: row for row, time in enumerate(whole.time.tolist())}  # type: ignore[union-attr]
    batch = bought.sample("train", 25, seed=3)
    assert (len(batch), distinct_users(batch)) == (25, 25)
    assert distinct_users(bought.sample("train", 100)) == 30
    rows = [place[time] for time in batch.time.tolist()]  # type: ignore[union-attr]
    assert max(rows) > 400
    for name in ("label", "item", "user_dense", "user_ids", "user"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(whole, name)[rows])
    longer = bought.sample("train", 30, seed=3)
    np.testing.assert_array_equal(longer.time[:25], batch.time)  # type: ignore[index]
    other = bought.sample("train", 25, seed=4)
    assert not np.array_equal(other.time, batch.time)  # type: ignore[arg-type]
    everything = bought.sample("train", 1000)
    assert sorted(everything.time) == sorted(place)  # type: ignore[arg-type]
    assert len(bought.sample("train", 0)) == 0


def test_rows_without_users_come_from_everywhere(
    clicks: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = clicks.read("train").probability.tolist()  # type: ignore[union-attr]
    batch = clicks.sample("train", 300)
    assert batch.user is None
    assert (len(batch), distinct_users(batch)) == (300, 300)
    rows = [whole.index(value) for value in batch.probability.tolist()]  # type: ignore[union-attr]
    assert len(set(rows)) == 300
    assert (np.diff(np.unique(np.array(rows) // 64)) == 1).mean() < 0.9  # not of every group
    assert max(rows) > 4000
    monkeypatch.setattr("cascade.data.sample.GROUPS", 2)
    few = clicks.sample("train", 100)
    rows = [whole.index(value) for value in few.probability.tolist()]  # type: ignore[union-attr]
    assert len({row // 64 for row in rows}) == 2
    assert len(clicks.sample("train", 200)) == 200  # two groups have not as many rows


def test_raw_users_of_a_sample(bought: Dataset, clicks: Dataset) -> None:
    for dataset in (bought, clicks):
        raw, batch = dataset.raw_sample("test", 40, seed=1), dataset.sample("test", 40, seed=1)
        dense, ids = dataset.encoder.encode("user", raw.dense, raw.categorical)
        np.testing.assert_array_equal(dense, batch.user_dense)
        np.testing.assert_array_equal(ids, batch.user_ids)
        for name in ("item", "label", "user", "time"):
            np.testing.assert_array_equal(getattr(raw, name), getattr(batch, name))
        liked = dataset.raw_sample("validation", 10**6, positives=True)
        assert len(liked.label) == dataset.source["positives"]["validation"]
        assert (liked.label == 1).all()
        with pytest.raises(DataError, match="validation and test only"):
            dataset.raw_sample("train", 5)
    liked = bought.raw_sample("test", 10, positives=True)
    assert distinct_users(liked) == 10


def test_checkpoints_get_rows_of_many_users(
    bought: Dataset,
    clicks: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bundle, "USERS", 80)
    bundle.write(bought, tmp_path / "bought")
    both = (bought.read("validation").user, bought.read("test").user)
    several = len(np.unique(np.concatenate(both)))  # type: ignore[arg-type]
    assert capsys.readouterr().out == f"users.parquet: 80 rows of {several} users\n"
    users = pq.read_table(tmp_path / "bought" / "users.parquet")
    first = bought.raw_sample("validation", 60)
    assert users["user"].to_pylist()[:60] == [name.decode() for name in first.categorical[:, 0]]
    assert len(set(users["user"].to_pylist()[:20])) == 20
    bundle.write(clicks, tmp_path / "clicks")
    assert capsys.readouterr().out == "users.parquet: 80 rows\n"
    assert distinct_users(validation(bought, 20, None)) == 20


@pytest.mark.skipif(not REAL.exists(), reason="the real ratings are not here")
def test_real_ratings(tmp_path: Path) -> None:
    dataset = prepare(f"movielens:{REAL}", tmp_path / "out")
    first, drawn = dataset.read("train", 4096), dataset.sample("train", 4096)
    assert distinct_users(first) < 80
    assert distinct_users(drawn) == len(np.unique(dataset.read("train").user))  # type: ignore[arg-type]
