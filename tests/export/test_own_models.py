"""Models of a user's own, trained, exported and served as any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from cascade.artifact import ONNX_FILE
from cascade.data import prepare
from cascade.models.registry import Recipe
from cascade.spec import RANK
from cascade.stages.pipeline import Pipeline
from cascade.training import checkpoint, trainer
from export import __main__ as export_command
from export.artifacts.stage_files import Variant
from tests.export.exported import BAGS, Case, export_case

USERS = 20
OWN = "tests.example_models"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preranker of any names and a textbook ranker, trained for a few steps and exported."""
    root = tmp_path_factory.mktemp("own")
    dataset = prepare("synthetic:rows=1400,items=300,seed=1", root / "data")
    recipe = Recipe("two_tower:tiny", f"{OWN}:AnyNames", f"{OWN}:Textbook:wide")
    changes = {"epochs": 0.5, "batch_size": 50}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "DISTILL_USERS", 200)
        out = root / "checkpoints"
        trainer.Trainer(dataset, out, torch.device("cpu"), recipe, changes).run()
    where = ("--checkpoints", out, "--repository", root / "repository")
    export_command.main(["build", *map(str, where), "--index", "flat", "--untuned"])
    return root


def test_served_scores_are_those_of_the_rows(folder: Path) -> None:
    """The ranker's `forward` of raw rows gives the scores that the cascade answers with."""
    dataset = prepare("synthetic:rows=1400,items=300,seed=1", folder / "data")
    dense, categorical, *_ = dataset.raw_users("test", USERS)
    ids, scores = Pipeline.load(folder / "repository")(dense, categorical)
    users = [torch.from_numpy(x) for x in dataset.encoder.encode("user", dense, categorical)]
    item_dense, item_ids = dataset.items()
    row_of = {int(item): row for row, item in enumerate(dataset.item_ids())}
    ranker = checkpoint.load(folder / "checkpoints" / "rank", dataset.schema)
    for user in range(USERS):
        rows = [row_of[int(item)] for item in ids[user]]
        repeated = (x[user].expand(len(rows), -1) for x in users)
        items = (torch.tensor(x[rows]) for x in (item_dense, item_ids))
        with torch.inference_mode():
            expected = torch.sigmoid(ranker(*repeated, *items)).numpy()
        np.testing.assert_allclose(scores[user], expected, rtol=0, atol=1e-5)
    assert len(np.unique(scores)) > USERS


def test_a_graph_holds_the_right_half_whatever_its_parts_are_called(tmp_path: Path) -> None:
    case = Case(f"{OWN}:AnyNames", "default", BAGS, RANK)
    export_case(case, tmp_path, Variant("float32", "int8"))
    graph = onnx.load(str(tmp_path / ONNX_FILE)).graph
    names = {tensor.name for tensor in graph.initializer}
    assert any("person" in name for name in names)
    assert not [name for name in names if "movie" in name]
    in_8_bits = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.INT8}
    assert {name.split(".weight")[0] for name in in_8_bits} == {"scorer.both"}


@pytest.mark.parametrize("variant", [Variant("float16"), Variant(weights="float16")])
def test_states_that_hold_ids_stay_float32(tmp_path: Path, variant: Variant) -> None:
    scorer = export_case(Case(f"{OWN}:Textbook", "default", BAGS, RANK), tmp_path).scorer
    assert not variant.fits(scorer)
    assert Variant(weights="int8").fits(scorer)
    other = export_case(Case(f"{OWN}:AnyNames", "default", BAGS, RANK), tmp_path).scorer
    assert variant.fits(other)
