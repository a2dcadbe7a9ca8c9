"""Logs of positives only: negatives are drawn, and nothing is not-a-number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cascade.data import Dataset, prepare
from cascade.data.source import DataError
from cascade.evaluation.__main__ import _log as log_of_checkpoints
from cascade.models.registry import Recipe
from cascade.training import negatives, trainer
from cascade.training.__main__ import main
from cascade.training.log import log_of
from cascade.training.negatives import Negatives, Sampling
from tests.own_tables import ITEMS, SCHEMA, write_shop
from tests.programs import last_error, status

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = Recipe("two_tower:tiny", "dlrm:tiny", "dlrm:tiny")
UNLABELLED = SCHEMA.replace("label: clicked\n", "")


@pytest.fixture(scope="module")
def likes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A shop's log without labels."""
    folder = tmp_path_factory.mktemp("likes")
    return prepare("table", folder / "data", schema_file=write_shop(folder, UNLABELLED))


@pytest.mark.parametrize("by", negatives.BYS)
def test_how_often_an_item_is_drawn(likes: Dataset, by: negatives.By) -> None:
    drawing = Negatives(likes, Sampling(50, by))
    own = np.full(4000, 3)
    drawn = drawing.draw(own, np.random.default_rng(0))
    assert drawn.shape == (4000, 50)
    weight = np.ones(ITEMS)
    if by == "popularity":
        weight = (1 + np.bincount(likes.read("train").item, minlength=ITEMS)) ** 0.75
    weight[3] = 0  # its own item is no negative
    expected = weight / weight.sum() * drawn.size
    found = np.bincount(drawn.ravel(), minlength=ITEMS)
    assert found[3] == 0
    assert np.abs(found - expected).max() < 6 * np.sqrt(expected.max())


def test_the_first_and_the_last_item_have_others_beside_them(likes: Dataset) -> None:
    drawing = Negatives(likes, Sampling(100, "popularity"))
    own = np.array([0, ITEMS - 1])
    drawn = drawing.draw(own, np.random.default_rng(0))
    assert not (drawn == own[:, None]).any()
    assert (drawn.min(), drawn.max()) == (0, ITEMS - 1)


def test_every_positive_comes_before_its_negatives(likes: Dataset) -> None:
    batch = likes.read("test", 5)
    rows = Negatives(likes, Sampling(2)).beside(batch, np.random.default_rng(0))
    for part, repeated in ((batch.user, rows.user), (batch.time, rows.time)):
        assert part is None or np.array_equal(repeated, np.repeat(part, 3))
    assert rows.label.tolist() == [1, 0, 0] * 5
    assert rows.item[::3].tolist() == batch.item.tolist()
    np.testing.assert_array_equal(rows.user_ids, np.repeat(batch.user_ids, 3, axis=0))
    np.testing.assert_array_equal(rows.user_dense, np.repeat(batch.user_dense, 3, axis=0))


def test_what_is_held_out_is_the_same_each_time(likes: Dataset) -> None:
    drawing = Negatives(likes, Sampling())
    first, again = (negatives.validation(likes, 200, drawing) for _ in range(2))
    assert len(first) == 200
    assert first.item.tolist() == again.item.tolist()
    assert len(negatives.validation(likes, 20, None)) == 20


def test_one_item_has_no_negatives(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("item,city\n" + "7,Oslo\n" * 20)
    (tmp_path / "schema.yaml").write_text(
        "interactions: log.csv\nitem: item\nfeatures:\n"
        "- {name: city, side: user, kind: categorical}\n"
        "- {name: product, side: item, kind: categorical, column: item}\n"
    )
    dataset = prepare("table", tmp_path / "data", schema_file=tmp_path / "schema.yaml")
    with pytest.raises(DataError, match="the catalogue has one item, so no negative can be drawn"):
        Negatives(dataset, Sampling())


def test_a_cascade_is_trained_on_positives(
    likes: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(sampling: Sampling) -> None:
        changes = {"epochs": 1, "validations": 1}
        device = torch.device("cpu")
        trainer.Trainer(likes, tmp_path, device, TINY, changes, None, sampling).run()

    train(Sampling(2))
    said = capsys.readouterr().out
    assert "log: choices, because every row is a positive\n" in said
    assert "all 480 training rows are positives" in said
    assert "2 sampled negatives each (by uniform)" in said
    for name in trainer.TRAININGS:
        text = (tmp_path / name / "checkpoint.json").read_text()
        assert "NaN" not in text
        assert "Infinity" not in text
        found = json.loads(text)
        sampled = {"per_positive": 2, "by": "uniform"}
        on_rows = name in ("rank", "baseline", "prerank_labels")
        assert found.get("negatives") == (sampled if on_rows else None)
        assert ("validation_auc" in found["metrics"]) == on_rows
    label = pq.read_table(tmp_path / "held_out.parquet")["label"].to_numpy()
    assert label.tolist() == [1, 0, 0] * 60
    train(Sampling(2))
    assert capsys.readouterr().out.count("already trained") == len(trainer.TRAININGS)


CASES = {
    "--negatives 0": (UNLABELLED, "--negatives 0: expected 1 or more for a positive"),
    "--log impressions": (UNLABELLED, "every training row here is a positive; pass --log choices"),
    "--negatives 2": (SCHEMA, "training rows of label 0; leave --negatives away"),
    "--negatives-by uniform": (SCHEMA, "training rows of label 0; leave --negatives away"),
}


@pytest.mark.parametrize("options", CASES)
def test_a_mistake_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str
) -> None:
    schema, message = CASES[options]
    path = write_shop(tmp_path, schema)
    command = ["--data", "table", "--schema", str(path), "--out", str(tmp_path / "out")]
    assert status(main, [*command, "--device", "cpu", *options.split()]) == 1
    assert message in last_error(capsys.readouterr().err)


def test_nothing_is_learnt_without_a_positive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_shop(tmp_path, change=lambda tables: tables["clicks"].update(clicked=[0] * 600))
    command = ["--data", "table", "--schema", str(path), "--out", str(tmp_path / "out")]
    assert status(main, [*command, "--device", "cpu"]) == 1
    said = last_error(capsys.readouterr().err)
    assert "none of the 480 training rows has the label 1, so there is nothing to learn" in said


@pytest.mark.parametrize(
    ("changes", "log", "expected"),
    [
        ({}, None, ("impressions", "because there are rows of label 0")),
        ({}, "choices", ("choices", "as --log says")),
        ({"log": "choices"}, None, ("choices", "as the source says")),
        ({"log": "choices"}, "impressions", ("impressions", "as --log says")),
        ({"fingerprint": {"source": "movielens"}}, None, ("choices", "as movielens is known for")),
    ],
)
def test_how_the_items_were_chosen(
    synthetic: Dataset, changes: dict[str, object], log: str | None, expected: tuple[str, str]
) -> None:
    source = {**synthetic.source, "log": None, "fingerprint": {"source": "own"}, **changes}
    dataset = Dataset(synthetic.root, source, synthetic.encoder)
    found, why = log_of(dataset, log)  # type: ignore[arg-type]
    assert found == expected[0]
    assert why.startswith(expected[1])


def test_an_evaluation_knows_what_the_training_was_told(synthetic: Dataset, tmp_path: Path) -> None:
    assert log_of_checkpoints(synthetic, tmp_path) == "impressions"
    told = trainer.Trainer(
        synthetic, tmp_path, torch.device("cpu"), TINY, {"epochs": 0.1}, "choices"
    )
    told._trained(trainer.LABELS)
    assert log_of_checkpoints(synthetic, tmp_path) == "choices"
