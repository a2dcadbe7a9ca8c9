"""What a sample need not meet is checked whole: items, held-out rows and states."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cascade.artifact import ArtifactError
from cascade.spec import RANK
from export import whole
from export.artifacts.guard import HeldOut
from export.context import Source
from tests.cascades import Cascade


@pytest.fixture
def checkpoints(criteo: Cascade, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(criteo.checkpoints, tmp_path / "checkpoints"))


def put(path: Path, name: str, row: int, value: Any) -> None:
    """Change one value of a Parquet file: a number, or the first of a list."""
    table = pq.read_table(path)
    column = table[name].to_pylist()
    column[row] = [value, *column[row][1:]] if isinstance(column[row], list) else value
    place = table.column_names.index(name)
    changed = pa.array(column, table.schema.field(name).type)
    pq.write_table(table.set_column(place, name, changed), path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dense", float("nan"), "row 1500: a number of the item is not finite"),
        ("ids", 10**6, r"row 1500: feature C7 has the id \[1000000\]; expected ids from 0 to"),
        ("ids", -1, r"row 1500: feature C7 has the id \[-1\]"),
        ("item_id", 5_000_000_000, "item 5000000000 is there more than once"),
        ("item_id", -7, "row 1500: an item_id is -7; expected an integer from 0 to"),
    ],
)
def test_every_item_of_a_catalogue_is_checked(
    checkpoints: Path, name: str, value: Any, message: str
) -> None:
    put(checkpoints / "catalogue.parquet", name, -1, value)
    with pytest.raises(ArtifactError, match=rf"catalogue\.parquet.*{message}"):
        Source.load(checkpoints)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("user_dense", float("inf"), "row 1000: a number of the user is not finite"),
        ("user_ids", 10**6, "row 1000: feature C1 has the id"),
        ("item", 1500, "row 1000: item is 1500; expected a row of the 1,500 items"),
        ("item", -1, "row 1000: item is -1"),
        ("label", 2.0, "row 1000: label is 2.0; expected a label, 0 or 1"),
        ("label", float("nan"), "row 1000: label is nan"),
    ],
)
def test_every_held_out_row_is_checked(
    checkpoints: Path, name: str, value: Any, message: str
) -> None:
    path = checkpoints / "held_out.parquet"
    put(path, name, -1, value)
    source = Source.load(checkpoints)
    with pytest.raises(ArtifactError, match=rf"held_out\.parquet, {message}"):
        HeldOut.load(path, source.places, source.schema)


def test_states_are_finite_in_the_type_in_which_they_are_stored() -> None:
    states = np.zeros((5, 3), np.float32)
    states[3, 1] = 1e6
    assert whole.check_states(states, 0, "x", "float32") is states
    with pytest.raises(whole.NotHeld, match="item 13 is not finite in float16: export with --st"):
        whole.check_states(states, 10, "x", "float16")
    states[3, 1] = np.nan
    with pytest.raises(ArtifactError, match="item 13 is not finite: its features, or the model"):
        whole.check_states(states, 10, "x", "float32")


def test_metrics_are_no_part_that_an_export_needs(checkpoints: Path) -> None:
    path = checkpoints / RANK / "checkpoint.json"
    content = json.loads(path.read_text())
    del content["metrics"]
    path.write_text(json.dumps(content))
    assert Source.load(checkpoints).facts(RANK)["metrics"] == {}
