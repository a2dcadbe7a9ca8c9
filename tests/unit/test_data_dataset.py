"""A prepared folder: written whole, reused, and read in every order exactly once."""

import doctest
import json
import shutil
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pytest

from cascade.data import DataError, Dataset, prepare
from cascade.data import source as source_module
from cascade.data.__main__ import main
from cascade.data.dataset import FORMAT
from cascade.data.prepare import write
from cascade.data.source import SPLITS
from cascade.data.synthetic import Synthetic
from cascade.encoding import FIRST, MISSING, UNKNOWN
from cascade.errors import run
from cascade.schema import Feature, Schema

SPEC = "synthetic:rows=3500,items=60,seed=3"
FIELDS = ("label", "item", "user_dense", "user_ids", "probability")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """3000 + 250 + 250 rows in row groups of 256 and parts of two groups: many of each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cascade.data.parts.ROW_GROUP", 256)
        patch.setattr("cascade.data.parts.GROUPS_PER_PART", 2)
        return prepare(SPEC, tmp_path_factory.mktemp("data") / "prepared")


def joined(batches):
    batches = list(batches)
    return {name: np.concatenate([getattr(b, name) for b in batches]) for name in FIELDS}


def test_prepared_rows_are_those_of_the_source(dataset):
    source = Synthetic.parse("rows=3500,items=60,seed=3")
    for split in SPLITS:
        raw = pa.concat_tables(source.chunks(split))
        batch = dataset.read(split)
        assert len(batch) == dataset.rows(split) == raw.num_rows
        np.testing.assert_array_equal(batch.label, raw["label"].to_numpy())
        np.testing.assert_array_equal(batch.probability, raw["probability"].to_numpy())
        np.testing.assert_array_equal(dataset.item_ids()[batch.item], raw["item_id"].to_numpy())
        dense, ids = dataset.encoder.encode_table("user", raw)
        np.testing.assert_array_equal(batch.user_dense, dense)
        np.testing.assert_array_equal(batch.user_ids, ids)
    dense, ids = dataset.items()
    expected = dataset.encoder.encode_table("item", source.catalogue())
    np.testing.assert_array_equal(dense, expected[0])
    np.testing.assert_array_equal(ids, expected[1])
    assert dataset.item_count == 60


def test_types_and_shapes(dataset):
    batch = next(dataset.batches("train", 10))
    assert {n: (getattr(batch, n).dtype.name, getattr(batch, n).shape) for n in FIELDS} == {
        "label": ("float32", (10,)),
        "item": ("int64", (10,)),
        "user_dense": ("float32", (10, 13)),
        "user_ids": ("int64", (10, 6)),
        "probability": ("float32", (10,)),
    }
    dense, ids = dataset.items()
    assert (dense.dtype, ids.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("batch_size", [1, 100, 256, 999, 5000])
def test_file_order_without_a_seed(dataset, batch_size):
    batches = list(dataset.batches("validation" if batch_size == 1 else "train", batch_size))
    whole = dataset.read("validation" if batch_size == 1 else "train")
    for name, values in joined(batches).items():
        np.testing.assert_array_equal(values, getattr(whole, name))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert 0 < len(batches[-1]) <= batch_size


def identity(columns):
    """Rows told apart by their numbers and probability."""
    rows = np.column_stack([columns["probability"], columns["item"], columns["user_dense"]])
    return rows[np.lexsort(rows.T)]


def test_shuffled_batches_have_every_row_once(dataset):
    whole = joined([dataset.read("train")])
    seen = joined(dataset.batches("train", 128, seed=1))
    assert len(seen["label"]) == 3000
    np.testing.assert_array_equal(identity(seen), identity(whole))
    # columns stay together: what encodes a row in one order encodes it in the other
    order = np.lexsort(np.column_stack([seen["probability"], seen["item"]]).T)
    other = np.lexsort(np.column_stack([whole["probability"], whole["item"]]).T)
    for name in FIELDS:
        np.testing.assert_array_equal(seen[name][order], whole[name][other])


def test_shuffle_is_a_function_of_seed_and_epoch(dataset):
    def items(seed, epoch):
        return joined(dataset.batches("train", 128, seed=seed, epoch=epoch))["probability"]

    first = items(1, 0)
    np.testing.assert_array_equal(first, items(1, 0))
    assert not np.array_equal(first, items(1, 1))
    assert not np.array_equal(first, items(2, 0))
    plain = dataset.read("train").probability
    moved = np.mean(first[:512] == plain[:512])
    assert moved < 0.1


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("batch_size", [100, 256, 700])
def test_skip_equals_dropping(dataset, seed, batch_size):
    everything = list(dataset.batches("train", batch_size, seed=seed, epoch=2))
    for skip in (0, 1, 3, len(everything) - 1, len(everything), len(everything) + 3):
        rest = list(dataset.batches("train", batch_size, seed=seed, epoch=2, skip=skip))
        assert len(rest) == max(0, len(everything) - skip)
        for batch, expected in zip(rest, everything[skip:], strict=True):
            for name in FIELDS:
                np.testing.assert_array_equal(getattr(batch, name), getattr(expected, name))


def test_skipped_row_groups_are_not_read(dataset, monkeypatch):
    from cascade.data import dataset as module

    read = []
    original = module.read_groups
    monkeypatch.setattr(
        module, "read_groups", lambda groups, names: read.append(1) or original(groups, names)
    )
    assert len(list(dataset.batches("train", 256, skip=10))) == 2
    assert len(read) == 2  # of twelve


def test_read_stops_at_the_limit(dataset):
    assert len(dataset.read("train", 300)) == 300
    assert len(dataset.read("train", 0)) == 0
    assert len(dataset.read("test", 10_000)) == 250
    np.testing.assert_array_equal(
        dataset.read("train", 300).user_ids, dataset.read("train").user_ids[:300]
    )


def test_raw_users_encode_to_the_stored_rows(dataset):
    for split in ("validation", "test"):
        dense, categorical, item, label = dataset.raw_users(split, 40)
        assert (dense.shape, categorical.shape, categorical.dtype) == ((40, 13), (40, 6), object)
        assert all(isinstance(value, bytes) for value in categorical.ravel())
        assert np.isnan(dense).any()
        assert (categorical == b"").any()
        batch = dataset.read(split, 40)
        encoded = dataset.encoder.encode("user", dense, categorical)
        np.testing.assert_array_equal(encoded[0], batch.user_dense)
        np.testing.assert_array_equal(encoded[1], batch.user_ids)
        np.testing.assert_array_equal(item, batch.item)
        np.testing.assert_array_equal(label, batch.label)
    assert len(dataset.raw_users("test", 10_000)[0]) == 250
    with pytest.raises(DataError, match="validation and test only"):
        dataset.raw_users("train", 5)


class Sideless:
    """A source whose users have no numbers and whose items have no categories."""

    schema = Schema(
        "sideless",
        (
            Feature("city", "user", "categorical", "hash", buckets=4),
            Feature("price", "item", "dense", "identity"),
        ),
    )
    fingerprint = MappingProxyType({})

    def chunks(self, split):
        yield pa.table(
            {
                "label": [1.0, 0.0],
                "city": [b"x".decode(), None],
                "price": pa.array([2, None], pa.float32()),
            }
        )

    def catalogue(self):
        return None


def test_a_side_may_lack_a_kind(tmp_path):
    counts = write(Sideless(), Sideless.schema, tmp_path)
    assert counts == {
        "rows": {"train": 2, "validation": 2, "test": 2},
        "positives": {"train": 1, "validation": 1, "test": 1},
        "items": 2,
        "users": 0,
        "times": False,
        "probability": False,
    }
    description = {"format": FORMAT, "bad_row_count": 0, "bad_row": "", **counts}
    (tmp_path / "source.json").write_text(json.dumps(description))
    dataset = Dataset.open(tmp_path)
    batch = dataset.read("test")
    assert (batch.user_dense.tolist(), batch.item.tolist()) == ([[0], [0]], [0, 1])
    assert (batch.probability, batch.user, batch.time) == (None, None, None)
    assert not dataset.has_users
    assert dataset.raw_users("test", 2)[0].tolist() == [[0], [0]]
    dense, ids = dataset.items()
    assert (dense.tolist(), ids.tolist()) == ([[2], [0]], [[0], [0]])


def test_example_of_a_source(tmp_path):
    found = doctest.testmod(source_module, extraglobs={"folder": tmp_path})
    assert (found.attempted > 0, found.failed) == (True, 0)


def modified(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_prepared_data_is_reused_until_its_input_changes(tmp_path):
    path = tmp_path / "train.txt"
    row = "\t".join(["1", *["3"] * 13, *["ab"] * 26]) + "\n"
    path.write_text(row * 40)
    root = tmp_path / "out"
    prepare(f"criteo:{path}", root)
    before = modified(root)
    prepare(f"criteo:{path}", root)
    assert modified(root) == before
    path.write_text(row * 80)
    assert sum(prepare(f"criteo:{path}", root).rows(split) for split in SPLITS) == 80
    assert sum(prepare("synthetic:rows=100", root).rows(split) for split in SPLITS) == 100
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "train.txt"]


def test_what_a_killed_run_left_is_not_taken_for_data(tmp_path):
    for left_over in ("out.partial", "out.old"):
        (tmp_path / left_over).mkdir()
        (tmp_path / left_over / "source.json").write_text("{}")
    dataset = prepare("synthetic:rows=100", tmp_path / "out")
    assert dataset.rows("train") == 86
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_folder_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="is not a prepared data set, so it is not overwritten"):
        prepare("synthetic:rows=100", tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_opening_what_is_no_data_set(dataset, tmp_path):
    with pytest.raises(DataError, match=r"no source\.json.*python -m cascade\.data"):
        Dataset.open(tmp_path)
    copy = shutil.copytree(dataset.root, tmp_path / "copy")
    (copy / "train" / "part-00000.parquet").unlink()
    with pytest.raises(DataError, match=r"has 2488 rows, and source\.json says 3000"):
        Dataset.open(copy).read("train")
    (copy / "source.json").write_text(json.dumps({**dataset.source, "format": 0}))
    with pytest.raises(DataError, match="format 0, and this version reads 2"):
        Dataset.open(copy)


@pytest.mark.parametrize("spec", ["criteo", "criteo:", "netflix", "movielens", ""])
def test_spec_that_is_not_understood(tmp_path, spec):
    with pytest.raises(DataError, match="is not understood; give criteo:PATH, movielens:PATH, syn"):
        prepare(spec, tmp_path / "out")


def test_command_line(tmp_path, capsys):
    main(["--data", "synthetic:rows=700,items=5", "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out == (
        f"{tmp_path / 'out'}: 600 train, 50 validation, 50 test rows; 5 items\n"
    )
    with pytest.raises(SystemExit, match=r"^error: nowhere does not exist$"):
        run(lambda: main(["--data", "criteo:nowhere", "--out", str(tmp_path / "other")]))


def test_categories_may_be_hashed_instead(tmp_path: Path) -> None:
    spec = "synthetic:rows=300,items=20"
    hashed = prepare(spec, tmp_path / "hashed", buckets=50)
    assert {f.cardinality for f in hashed.schema.features if f.kind != "dense"} == {FIRST + 50}
    assert not list((tmp_path / "hashed" / "vocabulary").iterdir())
    rare = prepare(spec, tmp_path / "rare", min_count=10**6)
    ids = rare.read("train").user_ids
    assert set(np.unique(ids)) == {MISSING, UNKNOWN}
    plain = prepare(spec, tmp_path / "plain")
    assert plain.schema.layout_hash == hashed.schema.layout_hash
    assert len({plain.schema.hash, hashed.schema.hash, rare.schema.hash}) == 3
