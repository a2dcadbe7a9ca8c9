"""Several labels per row: from a source and from tables to batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cascade.data import Dataset, prepare
from cascade.data.__main__ import main
from cascade.data.source import DataError
from cascade.schema import Task
from cascade.training.negatives import Negatives, Sampling
from tests.own_tables import SCHEMA, shop, write_shop

LABELS = """\
labels:
  click: clicked
  like: {column: liked, weight: 0.5}
  spent: {column: paid, kind: amount, weight: 0.3}
"""
SEVERAL = SCHEMA.replace("label: clicked\n", LABELS)


def with_labels(tables: dict[str, dict[str, list[Any]]]) -> None:
    """Of a row that was not clicked it is not known what else happened."""
    clicks = tables["clicks"]
    clicked = clicks["clicked"]
    clicks["liked"] = [n % 3 == 0 if click else "" for n, click in enumerate(clicked)]
    clicks["liked"] = [int(liked) if liked != "" else "" for liked in clicks["liked"]]
    clicks["paid"] = [n % 4 * 2.5 if click else "" for n, click in enumerate(clicked)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("tasks")
    schema = write_shop(folder, SEVERAL, with_labels)
    return prepare("table", folder / "out", schema_file=schema)


def expected() -> np.ndarray[Any, Any]:
    """Click, like and amount of all rows, which lie in the order of time."""
    tables = shop()
    with_labels(tables)
    columns = [tables["clicks"][name] for name in ("clicked", "liked", "paid")]
    return np.array([[np.nan if x == "" else x for x in column] for column in columns]).T


def test_labels_of_tables_come_with_the_rows(dataset: Dataset) -> None:
    tasks = (Task("click"), Task("like", weight=0.5), Task("spent", "amount", 0.3))
    assert Dataset.open(dataset.root).schema.tasks == tasks
    assert "past_positive_rate" in {feature.name for feature in dataset.schema.features}
    batch, wanted = dataset.read("train"), expected()[:480]
    assert batch.tasks is not None
    np.testing.assert_array_equal(batch.tasks, wanted)
    np.testing.assert_array_equal(batch.tasks[:, 0], batch.label)
    assert batch.truth is None
    taken = batch.take(np.array([5, 3]))
    np.testing.assert_array_equal(taken.tasks, wanted[[5, 3]])
    parts = [part.tasks for part in dataset.batches("train", 100, seed=1)]
    for column in range(3):  # the same rows in another order
        drawn = np.concatenate(parts)[:, column]
        np.testing.assert_array_equal(np.sort(drawn), np.sort(wanted[:, column]))
    sampled = dataset.sample("validation", 10)
    np.testing.assert_array_equal(sampled.tasks[:, 0], sampled.label)


def test_one_task_can_be_taken_alone(dataset: Dataset) -> None:
    wanted = expected()[:480]
    for column, name in enumerate(("click", "like", "spent")):
        alone = dataset.with_label(name)
        assert [task.name for task in alone.schema.tasks] == [name]
        batch = alone.read("train")
        assert batch.tasks is None
        np.testing.assert_array_equal(batch.label, wanted[:, column])
        assert alone.positives == np.nansum(wanted[:, column] > 0)
        np.testing.assert_array_equal(batch.item, dataset.read("train").item)
        np.testing.assert_array_equal(batch.item_past, dataset.read("train").item_past)
        assert alone.with_label(name) is alone
        raw = alone.raw_sample("validation", 60, positives=True)
        assert (raw.label > 0).all()
        assert len(raw.label) == np.nansum(alone.read("validation").label > 0)
    assert dataset.with_label("click").schema.hash == prepare_one(dataset).schema.hash
    assert dataset.with_label("like").schema.hash != dataset.with_label("click").schema.hash
    with pytest.raises(DataError, match="unknown task 'liked': did you mean 'like'"):
        dataset.with_label("liked")


def prepare_one(dataset: Dataset) -> Dataset:
    """The same shop with one label."""
    folder = dataset.root.with_name("one")
    folder.mkdir(exist_ok=True)
    return prepare("table", folder / "out", schema_file=write_shop(folder, SCHEMA, with_labels))


def test_a_folder_of_one_task_is_as_it_was(dataset: Dataset) -> None:
    one = prepare_one(dataset)
    source = json.loads((one.root / "source.json").read_text())
    assert source["format"] == 2
    assert "truth" not in source
    assert "tasks" not in source["schema"]
    stored, several = (pq.read_table(next((d.root / "train").iterdir())) for d in (one, dataset))
    assert {*several.column_names} - {*stored.column_names} == {"@task.like", "@task.spent"}
    assert several.select(stored.column_names).equals(stored)
    assert one.read("train").tasks is None


def test_one_label_by_another_name(tmp_path: Path) -> None:
    schema = SCHEMA.replace("label: clicked", "labels: {bought: clicked}")
    found = prepare("table", tmp_path / "out", schema_file=write_shop(tmp_path, schema))
    assert [task.name for task in found.schema.tasks] == ["bought"]
    np.testing.assert_array_equal(found.read("train").label, expected()[:480, 0])


def test_the_truth_of_all_tasks_is_kept(tmp_path: Path) -> None:
    found = prepare("synthetic:rows=700,items=50,tasks=3", tmp_path / "out")
    batch = found.read("test")
    assert batch.truth is not None
    assert batch.truth.shape == batch.tasks.shape == (50, 3)
    np.testing.assert_array_equal(batch.truth[:, 0], batch.probability)
    alone = found.with_label("revenue").read("test")
    np.testing.assert_array_equal(alone.probability, batch.truth[:, 2])
    np.testing.assert_array_equal(alone.label, batch.tasks[:, 2])


def test_nothing_is_known_of_drawn_negatives_but_that_they_are_none(dataset: Dataset) -> None:
    batch = dataset.read("train", 4)
    negatives = Negatives(dataset, Sampling(per_positive=2))
    found = negatives.beside(batch, np.random.default_rng(0))
    assert found.tasks is not None
    np.testing.assert_array_equal(found.tasks[:, 0], [1, 0, 0] * 4)
    np.testing.assert_array_equal(found.tasks[::3, 1:], batch.tasks[:, 1:])
    assert np.isnan(found.tasks[1::3, 1:]).all()
    assert np.isnan(found.tasks[2::3, 1:]).all()


def test_a_sequence_shares_the_ids_of_an_item_feature(tmp_path: Path) -> None:
    """A member of the list has the id that the same value has as a feature of the item."""
    shared = "shares: product, column: bought}"
    schema = f"{SCHEMA}- {{name: bought, side: user, kind: sequence, length: 2, {shared}\n"

    def change(tables: dict[str, dict[str, list[Any]]]) -> None:
        items = tables["items"]["item_id"]
        count = len(tables["clicks"]["clicked"])
        tables["clicks"]["bought"] = [f"{items[n % 40]}|0" for n in range(count)]

    found = prepare("table", tmp_path / "out", schema_file=write_shop(tmp_path, schema, change))
    bought = next(f for f in found.schema.features if f.name == "bought")
    product = found.schema.owner(bought)
    assert (bought.cardinality, bought.digest) == (product.cardinality, product.digest)
    first, of_item = found.schema.first_column(bought), found.schema.first_column(product)
    ids = found.read("train").user_ids[:40, first : first + 2]
    np.testing.assert_array_equal(ids[:, 0], found.items()[1][:, of_item])
    assert (ids[:, 1] == 1).all()  # no item is called 0: unknown


def test_labels_are_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"
    schema = write_shop(tmp_path, SEVERAL, with_labels)
    command = ["describe", "--data", "table", "--schema", str(schema), "--json", str(file)]
    main(command)
    said, found = capsys.readouterr().out, json.loads(file.read_text())
    for column, name in ((1, "like"), (2, "spent")):
        label = expected()[:, column]
        known = label[~np.isnan(label)]
        assert found["labels"][name] == {
            "known": len(known),
            "above_0": (known > 0).sum(),
            "mean": pytest.approx(known.mean()),
        }
        assert f"label {name}" in said
    assert found["warnings"] == []

    warnings = {
        0: "no row has a label spent above 0",
        5000: "the label spent is 5000 on average where it is not 0: count it in a larger unit",
    }
    for paid, warning in warnings.items():

        def change(tables: dict[str, dict[str, list[Any]]], paid: int = paid) -> None:
            with_labels(tables)
            tables["clicks"]["paid"] = [paid] * len(tables["clicks"]["paid"])

        write_shop(tmp_path, SEVERAL, change)
        main(command)
        assert warning in capsys.readouterr().out
