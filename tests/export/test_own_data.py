"""A shop's own tables on their whole way: prepared, trained on, exported, evaluated and asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cascade.encoding import Encoder
from cascade.evaluation.__main__ import main as evaluate
from cascade.layout import RequestLayout
from cascade.stages.pipeline import Pipeline
from cascade.training.__main__ import main as train
from export.__main__ import main as export
from export.context import read_catalogue
from export.releases.items import read_items
from export.releases.refresh import Refresh, change
from tests.own_tables import FIRST_ITEM, ITEMS, SCHEMA, write_shop

RECIPE = ("--recipe", "retrieve=two_tower:tiny", "prerank=dlrm:tiny", "rank=dlrm:tiny")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `checkpoints` and a `repository`, of a log without labels."""
    folder = tmp_path_factory.mktemp("shop")
    schema = write_shop(folder, SCHEMA.replace("label: clicked\n", ""))
    checkpoints, repository = str(folder / "checkpoints"), str(folder / "repository")
    source = ("--data", "table", "--schema", str(schema))
    train([*source, "--out", checkpoints, *RECIPE, "--epochs", "1", "--device", "cpu"])
    export(["build", "--checkpoints", checkpoints, "--repository", repository, "--untuned"])
    return folder


def test_from_tables_to_answers(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints, repository = str(made / "checkpoints"), str(made / "repository")
    pipeline = Pipeline.load(Path(repository))
    layout = RequestLayout.of(Encoder.load(Path(checkpoints)).schema)
    users = [json.loads(line) for line in (made / "checkpoints/users.jsonl").open()]
    item_ids, scores = pipeline(*layout.arrays([*users[:3], {}]))
    assert item_ids.shape == (4, 10)
    assert {*((item_ids - FIRST_ITEM) % 7).ravel()} == {0}  # to the last bit
    assert item_ids.max() < FIRST_ITEM + 7 * ITEMS
    assert np.isfinite(scores).all()
    release = ("--checkpoints", checkpoints, "--repository", repository)
    capsys.readouterr()
    data = f"{checkpoints}/data"
    evaluate(["--data", data, *release, "--out", str(tmp_path / "out"), "--device", "cpu"])
    said = capsys.readouterr().out
    assert "nan" not in said
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert None not in found.values()
    assert "of which 240 are sampled negatives: the log has positives only" in said
    assert found["test_rows"] == 300


def test_new_items_need_no_past(made: Path, tmp_path: Path) -> None:
    """Items of the catalogue keep theirs, others have none; what a file tells comes first."""
    checkpoints = made / "checkpoints"
    refresh = Refresh(made / "repository", 1, checkpoints)
    old = read_catalogue(checkpoints)
    ids = [int(old.item_ids[3]), FIRST_ITEM + 7 * ITEMS]
    table = pa.table({"item_id": ids, "product": ["x", "y"], "price": [2, 3], "tags": ["a", "b"]})
    pq.write_table(table, tmp_path / "new.parquet")
    added = read_items(tmp_path / "new.parquet", refresh.encoder, checkpoints)
    missing = [-3 / 2, -5 / 2]  # as `encode` has numbers that did not come
    np.testing.assert_allclose(added.dense[:, 1:], [old.dense[3, 1:], missing], rtol=1e-6)
    assert not np.allclose(old.dense[3, 1:], missing)
    refresh.write(tmp_path / "next", 2, change(refresh.item_ids, added, np.zeros(0, np.int64)))
    pipeline = Pipeline.load(tmp_path / "next", 2)
    layout = RequestLayout.of(refresh.schema)
    item_ids, scores = pipeline(*layout.arrays([{}]))
    assert len(np.unique(item_ids)) == 10
    assert np.isfinite(scores).all()
    told = table.append_column("past_item_events", pa.array([8.0, 9.0]))
    pq.write_table(told, tmp_path / "told.parquet")
    added = read_items(tmp_path / "told.parquet", refresh.encoder, checkpoints)
    np.testing.assert_allclose(added.dense[:, 1], (np.log1p([8, 9]) - 3) / 2, rtol=1e-6)
    np.testing.assert_allclose(added.dense[:, 2], [old.dense[3, 2], -5 / 2], rtol=1e-6)
