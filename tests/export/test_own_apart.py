"""Models of ours are taken apart, and answer as they were trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from cascade.artifact import ONNX_FILE, Description
from cascade.config import Serving
from cascade.data.criteo import SCHEMA as RAW_CRITEO
from cascade.models.scoring.dlrm import DLRM, PRESETS
from cascade.release import read_release
from cascade.runtime.load import load_graph
from cascade.schema import Schema
from cascade.spec import PRERANK, RANK, Sizes, stages
from cascade.training import checkpoint
from export.artifacts import parity
from export.artifacts.stage_files import ITEMS_FILE, PLAIN, Variant, write_scoring
from export.foreign.own import Own
from export.foreign.split import BOTH, USER, NotSplit
from export.foreign.split.dots import LANES
from tests.cascades import Cascade
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
    [("Textbook", BAGS, PRERANK), ("Deep", NUMBERS, RANK), ("Deep", CRITEO, RANK)],
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


@pytest.mark.parametrize("size", [size for size, c in PRESETS.items() if not c.crosses])
@pytest.mark.parametrize("name", [PRERANK, RANK])
def test_a_derived_dlrm_computes_nothing_per_candidate_but_pairs(size: str, name: str) -> None:
    """All presets, as preranker of 1000 and as ranker of 200. Of a candidate: the dot products of
    its vectors with the user's, their slice of the first top layer, and the layers behind; some
    take less, where the user is folded into that slice."""
    stage = next(stage for stage in stages(CRITEO, Sizes()) if stage.name == name)
    scorer, width = drawn_scorer("dlrm", size, CRITEO), stage.inputs[-1].dims[0]
    assert isinstance(scorer, DLRM)
    derived = Own(scorer, stage, drawn_items(CRITEO)).derived
    work = {side: cost.multiply_adds for side, cost in derived.costs.items()}
    of_user, of_item, vector = scorer.n_user, scorer.n_item, scorer.width
    first, *behind = (layer.weight for layer in scorer.top)
    bottom = sum(layer.weight.numel() for layer in scorer.user_bottom)
    slice_of_user = len(first) * (vector + of_user * (of_user - 1) // 2)
    once = bottom + of_user**2 * vector + slice_of_user
    lanes = -(-of_user // LANES) * LANES  # of the dot products, as a processor computes them
    slice_of_pairs = of_item * (lanes * vector + of_user * len(first))
    pairs = slice_of_pairs + sum(weight.numel() for weight in behind)
    assert work[USER] + width * work[BOTH] <= once + width * pairs
    assert sum(part.size for part in derived.parts) == of_item * vector + len(first)


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


def test_torch_forms_read_a_state_of_their_own(make_cascade: Callable[..., Cascade]) -> None:
    """Beside a model.onnx that was taken apart stands what the model's own methods say."""
    cascade = make_cascade(items=300, users=60, models=TEXTBOOK, also=("torchscript",))
    answers = [
        cascade.ask(cascade.pipeline(runtime=runtime)) for runtime in ("onnx", "torchscript")
    ]
    np.testing.assert_array_equal(answers[0][0], answers[1][0])
    np.testing.assert_allclose(answers[0][1], answers[1][1], atol=1e-5)
    for stage in (PRERANK, RANK):
        assert "split" in read_release(cascade.repository, 1)["stages"][stage]
        described = Description.load(cascade.repository / stage / "1")
        assert described.torch_state is not None
        scorer = checkpoint.load(cascade.checkpoints / stage, cascade.schema)
        assert described.torch_state.shape == (300, scorer.item_width)
        assert described.mapped["item_state"].shape[1] != scorer.item_width
