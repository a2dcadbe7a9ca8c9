"""Models of ours with `forward` alone are taken apart, and answer as they were trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cascade.artifact import ONNX_FILE, Description
from cascade.config import Serving
from cascade.models.dlrm import PRESETS
from cascade.release import read_release
from cascade.runtime.load import load_graph
from cascade.schema import Schema
from cascade.spec import PRERANK, RANK, Sizes, stages
from export.artifacts import parity
from export.artifacts.stage_files import ITEMS_FILE, PLAIN, Variant, write_scoring
from export.foreign.own import Own
from export.foreign.split import BOTH, USER, NotSplit
from tests.conftest import CRITEO as RAW_CRITEO
from tests.conftest import Cascade
from tests.example_models import TEXTBOOK
from tests.export.exported import (
    BAGS,
    ITEMS,
    NUMBERS,
    SIZES,
    Exported,
    drawn_items,
    drawn_rows,
    drawn_scorer,
    drawn_users,
    fitted,
)

OWN = "tests.example_models"
CRITEO = fitted(RAW_CRITEO)


def taken(model: str, schema: Schema, name: str) -> Own:
    stage = next(stage for stage in stages(schema, SIZES) if stage.name == name)
    return Own(drawn_scorer(f"{OWN}:{model}", "wide", schema), stage, drawn_items(schema))


@pytest.mark.parametrize(
    ("model", "schema", "name"),
    [("Textbook", BAGS, PRERANK), ("Deep", NUMBERS, RANK), ("TwoTasks", CRITEO, RANK)],
)
def test_the_best_are_those_of_the_trained_model(
    model: str, schema: Schema, name: str, tmp_path: Path
) -> None:
    own, items = taken(model, schema, name), drawn_items(schema)
    own.write(items, tmp_path)
    module = own.eager(items)
    written = Exported(tmp_path, own.stage, schema, own.scorer, module, items)
    for users in (1, 3, 33):
        rows = drawn_rows(users, written.width)
        written.check(written.load("onnx"), drawn_users(schema, users), rows)


@pytest.mark.parametrize("size", PRESETS)
@pytest.mark.parametrize("name", [PRERANK, RANK])
def test_a_derived_dlrm_takes_the_work_of_the_split_by_hand(size: str, name: str) -> None:
    """All presets, as preranker of 1000 and as ranker of 200, the folded ones among them."""
    stage = next(stage for stage in stages(CRITEO, Sizes()) if stage.name == name)
    scorer, width = drawn_scorer("dlrm", size, CRITEO), stage.inputs[-1].dims[0]
    derived = Own(scorer, stage, drawn_items(CRITEO)).derived
    scorer = scorer.arranged(width)
    users = [torch.from_numpy(values) for values in drawn_users(CRITEO, 1)]
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        scorer.cross(scorer.user(*users), torch.zeros(1, width, scorer.item_width))
    work = {side: cost.multiply_adds for side, cost in derived.costs.items()}
    assert work[USER] + width * work[BOTH] == counter.get_total_flops() // 2
    assert sum(part.size for part in derived.parts) == scorer.item_width


def logits(own: Own, folder: Path, variant: Variant = PLAIN) -> Any:
    """[3, N], of all items."""
    folder.mkdir()
    own.write(drawn_items(own.scorer.schema), folder, variant, logits=True)
    _, graph = load_graph(folder, own.scorer.schema, Serving(threads=1))
    return graph(*drawn_users(own.scorer.schema, 3), np.tile(np.arange(ITEMS), (3, 1)))[0]


def test_states_of_16_bits_and_layers_of_8(tmp_path: Path) -> None:
    own = taken("Deep", CRITEO, RANK)
    plain = logits(own, tmp_path / "plain")
    half = logits(own, tmp_path / "half", Variant("float16"))
    quantised = logits(own, tmp_path / "8 bits", Variant("float16", "int8"))
    assert 0 < np.abs(half - plain).max() < 0.02
    assert 0 < np.abs(quantised - half).max() < 0.2
    state = Description.load(tmp_path / "half").mapped["item_state"]
    assert (state.dtype, state.shape) == ("float16", (ITEMS, own.derived.parts[0].size))
    graph = onnx.load(str(tmp_path / "8 bits" / ONNX_FILE), load_external_data=False).graph
    # The layer that sees every candidate, and neither its slices before nor the one number after.
    assert sum(node.op_type == "MatMulInteger" for node in graph.node) == 1
    assert Description.load(tmp_path / "8 bits").one_by_one


def test_what_depends_on_no_item_is_not_taken_apart() -> None:
    with pytest.raises(NotSplit, match="nothing in it depends on the item"):
        taken("UserOnly", BAGS, RANK)


def test_what_differs_from_the_model_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "LARGEST_DIFFERENCE", -1.0)
    with pytest.raises(NotSplit, match="what was derived differs from the model by"):
        taken("Textbook", NUMBERS, RANK)


def test_an_export_of_another_kind_leaves_no_items_graph(tmp_path: Path) -> None:
    own, items = taken("Textbook", BAGS, RANK), drawn_items(BAGS)
    own.write(items, tmp_path)
    assert (tmp_path / ITEMS_FILE).exists()
    write_scoring(own.scorer, own.stage, BAGS, items, tmp_path)
    assert not (tmp_path / ITEMS_FILE).exists()


def test_a_release_chooses_among_variants_and_says_what_was_split(
    make_cascade: Callable[..., Cascade], capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"items": 300, "users": 60, "state": "auto", "weights": "auto"}
    cascade = make_cascade(fresh=True, models=TEXTBOOK, also=(), **small)
    release = read_release(cascade.repository, 1)
    printed = capsys.readouterr().out
    for stage, model in ((PRERANK, "Textbook"), (RANK, "Deep")):
        facts = release["stages"][stage]
        work = facts["split"]["multiply_adds"]
        assert work["candidate"] < work["flat"] / 2
        assert f"{stage}, {model}: multiply-adds" in printed
        verdicts = [v for v in release["variants"] if v["stage"] == stage]
        tried = {(v["variant"]["state"], v["variant"]["weights"]) for v in verdicts}
        assert tried == {(s, w) for s in ("float32", "float16") for w in ("float32", "int8")}
        folder = cascade.repository / stage / "1"
        state = Description.load(folder).mapped["item_state"]
        assert state.dtype == facts["variant"]["state"]
        assert state.nbytes / len(cascade.pipeline().item_ids) == facts["bytes_per_item"]


def test_another_form_is_served_flat(make_cascade: Callable[..., Cascade]) -> None:
    cascade = make_cascade(items=300, users=60, models=TEXTBOOK, also=("torchscript",))
    for stage in (PRERANK, RANK):
        assert "split" not in read_release(cascade.repository, 1)["stages"][stage]
        assert (cascade.repository / stage / "1" / "model.pt").exists()
