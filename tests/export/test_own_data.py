"""A shop's own tables on their whole way: prepared, trained on, exported, evaluated and asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cascade.encoding import Encoder
from cascade.evaluation.__main__ import main as evaluate
from cascade.layout import RequestLayout
from cascade.stages.pipeline import Pipeline
from cascade.training.__main__ import main as train
from export.__main__ import main as export
from tests.own_tables import FIRST_ITEM, ITEMS, SCHEMA, write_shop

RECIPE = ("--recipe", "retrieve=two_tower:tiny", "prerank=dlrm:tiny", "rank=dlrm:tiny")


def test_from_tables_to_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A log without labels."""
    schema = write_shop(tmp_path, SCHEMA.replace("label: clicked\n", ""))
    checkpoints, repository = str(tmp_path / "checkpoints"), str(tmp_path / "repository")
    source = ("--data", "table", "--schema", str(schema))
    train([*source, "--out", checkpoints, *RECIPE, "--epochs", "1", "--device", "cpu"])
    export(["build", "--checkpoints", checkpoints, "--repository", repository, "--untuned"])
    pipeline = Pipeline.load(Path(repository))
    layout = RequestLayout.of(Encoder.load(Path(checkpoints)).schema)
    users = [json.loads(line) for line in (tmp_path / "checkpoints/users.jsonl").open()]
    item_ids, scores = pipeline(*layout.arrays([*users[:3], {}]))
    assert item_ids.shape == (4, 10)
    assert {*((item_ids - FIRST_ITEM) % 7).ravel()} == {0}  # to the last bit
    assert item_ids.max() < FIRST_ITEM + 7 * ITEMS
    assert np.isfinite(scores).all()
    made = ("--checkpoints", checkpoints, "--repository", repository)
    capsys.readouterr()
    data = f"{checkpoints}/data"
    evaluate(["--data", data, *made, "--out", str(tmp_path / "out"), "--device", "cpu"])
    said = capsys.readouterr().out
    assert "nan" not in said
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert None not in found.values()
    assert "of which 240 are sampled negatives: the log has positives only" in said
    assert found["test_rows"] == 300
