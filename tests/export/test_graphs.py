"""Eager = ONNX = TorchScript, for every model and mix of features, after a reload from disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from cascade.artifact import ONNX_FILE, Description
from cascade.config import Serving
from cascade.data.criteo import SCHEMA as CRITEO
from cascade.runtime.load import load_graph
from cascade.schema import Schema, SchemaError
from cascade.spec import NOT_FINITE, RANK, RETRIEVE
from export.artifacts import onnx_file
from export.artifacts.stage_files import Variant, write_tower
from tests.export.exported import (
    BAGS,
    CASES,
    ITEMS,
    MAX_BATCH,
    NUMBERS,
    RUNTIMES,
    TORCHSCRIPT,
    Case,
    Exported,
    drawn_rows,
    drawn_scorer,
    drawn_users,
    export_case,
    fitted,
)
from tests.schemas import schemas


@pytest.fixture(scope="module")
def export_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    done: dict[str, Exported] = {}

    def get(name: str) -> Exported:
        if name not in done:
            done[name] = export_case(CASES[name], tmp_path_factory.mktemp("stage"))
        return done[name]

    return get


@pytest.fixture(params=CASES)
def exported(request: pytest.FixtureRequest, export_once: Callable[[str], Exported]) -> Exported:
    return export_once(request.param)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_best_candidates_are_chosen_at_any_batch_and_width(
    exported: Exported, runtime: str
) -> None:
    graph = exported.load(runtime)
    for batch in (1, 3, MAX_BATCH):
        for width in {exported.keep, exported.keep + 3, exported.width, 2 * exported.width + 1}:
            users = drawn_users(exported.schema, batch)
            exported.check(graph, users, drawn_rows(batch, width))


def test_the_file_names_no_folder_of_this_machine(exported: Exported) -> None:
    """The exporter notes the source line of each node, with its path."""
    content = (exported.folder / ONNX_FILE).read_bytes()
    root = Path(__file__).parents[2]
    for place in ("site-packages", str(root), str(exported.folder.parent)):
        assert place.encode() not in content
    for node in onnx.load(str(exported.folder / ONNX_FILE), load_external_data=False).graph.node:
        assert not node.doc_string
        assert not node.metadata_props


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_pads_lose_against_every_item(exported: Exported, runtime: str) -> None:
    graph = exported.load(runtime)
    users = drawn_users(exported.schema, 3)
    rows = np.full((3, exported.width), -1)
    rows[1, -1], rows[2, ::2] = 7, np.arange(len(rows[2, ::2]))
    exported.check(graph, users, rows)
    nothing = graph(*users, np.full((3, exported.width), -1))
    assert (nothing[0] == -1).all()
    for scores in nothing[1:]:
        assert (scores == 0).all()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("case", "value"),
    [
        ("DLRM ranks Criteo", np.nan),
        ("DLRM preranks bags", np.nan),
        ("logistic regression preranks bags", np.inf),
        ("logistic regression ranks numbers", -np.inf),
        ("bent logistic regression ranks numbers", np.nan),
    ],
)
def test_an_item_without_a_finite_score_comes_last_and_is_counted(
    export_once: Callable[[str], Exported], case: str, runtime: Any, value: float, tmp_path: Path
) -> None:
    exported = export_once(case)
    folder = Path(shutil.copytree(exported.folder, tmp_path / "stage"))
    state = Description.load(folder).mapped["item_state"]
    rows = np.full((3, exported.width), -1)
    rows[:, : exported.keep] = np.arange(exported.keep)
    rows[1, 0], rows[2, : exported.keep - 1] = -1, -1
    graph: Any = load_graph(folder, exported.schema, Serving(runtime=runtime, threads=1))[1]
    users = drawn_users(exported.schema, 3)
    bad = exported.keep - 1
    wanted = graph(*users, np.where(rows == bad, -1, rows))
    values = np.fromfile(folder / state.file, state.dtype).reshape(state.shape)
    values[bad] = value
    values.tofile(folder / state.file)
    graph = load_graph(folder, exported.schema, Serving(runtime=runtime, threads=1))[1]
    found = graph(*users, rows)
    assert graph.not_finite == 3
    name = exported.items.item_ids[bad] if exported.module.with_ids else bad
    for user, real in enumerate((rows >= 0).sum(axis=1)):
        assert set(found[0][user, : real - 1]) == set(wanted[0][user, : real - 1])
        assert found[0][user, real - 1] == name
        assert (found[0][user, real:] == -1).all()
    for scores in found[1:]:
        assert np.isfinite(scores).all()


def test_the_signature_is_the_specification(exported: Exported) -> None:
    model = onnx.load(str(exported.folder / "model.onnx"), load_external_data=False)
    onnx.checker.check_model(str(exported.folder / "model.onnx"), full_check=True)
    assert {o.domain: o.version for o in model.opset_import}[""] <= 21  # ONNX Runtime 1.19
    assert model.ir_version <= 10
    assert {o.domain for o in model.opset_import} <= {""}
    kinds = {"FP32": "tensor(float)", "INT64": "tensor(int64)"}
    session = onnxruntime.InferenceSession(str(exported.folder / "model.onnx"))
    for found, declared in (
        (session.get_inputs(), exported.stage.inputs),
        (session.get_outputs(), (*exported.stage.outputs, NOT_FINITE)),
    ):
        assert [(t.name, t.type) for t in found] == [(t.name, kinds[t.dtype]) for t in declared]
        for tensor, wanted in zip(found, declared, strict=True):
            assert isinstance(tensor.shape[0], str)  # the batch, whatever its size
            free = wanted.name == exported.stage.inputs[-1].name
            assert isinstance(tensor.shape[1], str) if free else tensor.shape[1] == wanted.dims[0]


def test_what_depends_on_the_catalogue_lies_in_files_of_its_own(exported: Exported) -> None:
    model = onnx.load(str(exported.folder / "model.onnx"), load_external_data=False)
    outside = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}["location"]
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }
    wanted = {"item_state": "item_state.bin"}
    if exported.module.with_ids:
        wanted["catalogue_ids"] = "catalogue_ids.bin"
    assert outside == wanted
    for name, file in wanted.items():
        shape = tuple(next(t.dims for t in model.graph.initializer if t.name == name))
        assert shape[0] == ITEMS
        size = (exported.folder / file).stat().st_size
        assert size == np.prod(shape) * (4 if name == "item_state" else 8)
    # Another catalogue is another file beside the same graph.
    description = json.loads((exported.folder / "stage.json").read_text())
    assert set(description["mapped"]) == set(wanted)


@pytest.mark.parametrize("schema", [fitted(CRITEO), BAGS, NUMBERS], ids=lambda s: s.name)
def test_the_user_tower(schema: Schema, tmp_path: Path) -> None:
    retriever = drawn_scorer("two_tower", "tiny", schema)
    write_tower(retriever, schema, tmp_path, TORCHSCRIPT)
    for runtime in RUNTIMES:
        description, graph = load_graph(tmp_path, schema, Serving(runtime=runtime, threads=1))
        assert description.stage == RETRIEVE
        for batch in (1, 3, MAX_BATCH):
            users = drawn_users(schema, batch)
            with torch.inference_mode():
                expected = retriever.user(*map(torch.from_numpy, users)).numpy()
            np.testing.assert_allclose(graph(*users)[0], expected, rtol=0, atol=1e-5)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [t.name for t in session.get_inputs()] == ["user_dense", "user_ids"]
    assert [t.name for t in session.get_outputs()] == ["user_vector"]


@settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(schemas())
def test_schemas_drawn_at_random(tmp_path_factory: pytest.TempPathFactory, schema: Schema) -> None:
    exported = export_case(Case("dlrm", "tiny", schema, RANK), tmp_path_factory.mktemp("drawn"))
    for runtime in RUNTIMES:
        graph = exported.load(runtime)
        for batch in (1, 3, MAX_BATCH):
            rows = drawn_rows(batch, exported.width)
            exported.check(graph, drawn_users(schema, batch), rows)


def test_eight_bits_are_for_the_layers_that_see_every_candidate(tmp_path: Path) -> None:
    case = Case("dlrm", "criteo", fitted(CRITEO), RANK)
    exported = export_case(case, tmp_path, Variant("float16", "int8"))
    graph = onnx.load(str(tmp_path / ONNX_FILE)).graph
    weights = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.INT8}
    made = ("weight_quantized", "weight_zero_point")
    assert weights == {f"scorer.top.{layer}.{name}" for layer in range(2) for name in made}
    as_they_were = {node.input[1] for node in graph.node if node.op_type == "Gemm"}
    user = {f"scorer.user_bottom.{layer}.weight" for layer in range(4)}
    assert as_they_were == {*user, "scorer.top.2.weight"}
    users, rows = drawn_users(case.schema, 1), np.arange(exported.width)[None]
    scores = exported.load("onnx")(*users, rows)[1]
    best = np.sort(1 / (1 + np.exp(-exported.logits(users)[:, : exported.width])))[:, ::-1]
    np.testing.assert_allclose(scores, best[:, : exported.keep], rtol=0, atol=0.02)


def test_weights_that_were_outside_may_all_fit_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tensor is more than a graph should hold, and in 8 bits it is not."""
    case = Case("tests.example_models:Textbook", "wide", BAGS, RANK)
    monkeypatch.setattr(onnx_file, "EXTERNAL_BYTES", 1000)
    (tmp_path / "plain").mkdir()
    export_case(case, tmp_path / "plain")
    assert (tmp_path / "plain" / onnx_file.WEIGHTS_FILE).exists()
    exported = export_case(case, tmp_path, Variant(weights="int8"))
    assert not (tmp_path / onnx_file.WEIGHTS_FILE).exists()
    scores = exported.load("onnx")(*drawn_users(case.schema, 1), np.arange(exported.width)[None])[1]
    assert (np.diff(scores) <= 0).all()


def test_a_graph_of_another_schema_is_refused(
    export_once: Callable[[str], Exported],
) -> None:
    exported = export_once("DLRM preranks bags")
    other = replace(exported.schema, name="another")
    with pytest.raises(SchemaError, match=f"{exported.schema.hash}.*{other.hash}.*one prepared"):
        load_graph(exported.folder, other, Serving(threads=1))
