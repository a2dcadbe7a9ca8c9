"""Eager = ONNX = TorchScript, for every model and mix of features, after a reload from disk.

The expected answers are computed here, from the model's three methods over the whole catalogue and
a sort in NumPy; the modules that are exported take no part in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from cascade.data.criteo import SCHEMA as CRITEO
from cascade.models import build, preset
from cascade.models.embeddings import Embeddings
from cascade.models.scorer import Scorer
from cascade.schema import Feature, Schema, SchemaError
from cascade.serving.runtime import Graph, load_graph
from cascade.spec import PRERANK, RANK, RETRIEVE, Serving, Sizes, Stage, stages
from export import parity
from export.graphs import TopCandidates
from export.stage_files import Catalogue, write_scoring, write_tower
from tests.schemas import draw_rows, schemas

ITEMS, MAX_BATCH = 60, 33
SIZES = Sizes(candidates=40, survivors=20, results=5)
RUNTIMES = ("onnx", "torchscript")
LARGEST_DIFFERENCE = 1e-4


def _fitted(schema: Schema) -> Schema:
    return schema.fitted({f.name: (9, f.name) for f in schema.features if f.kind != "dense"})


BAGS = _fitted(
    Schema(
        "bags, no numbers",
        (
            Feature("genres", "item", "bag", "vocabulary", length=3),
            Feature("city", "user", "categorical", "vocabulary"),
            Feature("history", "user", "bag", "vocabulary", length=4),
            Feature("brand", "item", "categorical", "vocabulary"),
            Feature("shop", "item", "categorical", "vocabulary"),
        ),
    )
)
NUMBERS = _fitted(
    Schema(
        "numbers on both sides",
        (
            Feature("age", "user", "dense", "identity"),
            Feature("price", "item", "dense", "identity"),
            Feature("tags", "user", "bag", "hash", length=2, buckets=7),
            Feature("weight", "item", "dense", "identity"),
        ),
    )
)


@dataclass(frozen=True)
class Case:
    """What is exported: a model over a schema, as a preranker or as a ranker."""

    model: str
    preset: str
    schema: Schema
    stage: str
    sizes: Sizes = SIZES


CASES = {
    "DLRM ranks Criteo": Case("dlrm", "small", _fitted(CRITEO), RANK),
    "DLRM preranks bags": Case("dlrm", "tiny", BAGS, PRERANK),
    "logistic regression preranks bags": Case("logistic", "default", BAGS, PRERANK),
    "logistic regression ranks numbers": Case("logistic", "default", NUMBERS, RANK),
    "the best of two, as many as come": Case("dlrm", "tiny", NUMBERS, PRERANK, Sizes(2, 2, 1)),
}


def drawn_scorer(model: str, size: str, schema: Schema) -> Scorer:
    """A model with weights wide enough that scores differ."""
    torch.manual_seed(0)
    scorer = build(model, preset(model, size), schema).eval()
    for module in scorer.modules():
        if isinstance(module, Embeddings):
            torch.nn.init.normal_(module.table.weight)
    return scorer


def drawn_items(schema: Schema) -> Catalogue:
    rows = draw_rows(schema, "item", ITEMS, seed=1)
    names = np.random.default_rng(2).permutation(10**12 + 7 * np.arange(ITEMS))
    return Catalogue(rows.dense.numpy(), rows.ids.numpy(), names)


def drawn_users(schema: Schema, count: int) -> tuple[Any, Any]:
    dense, ids = draw_rows(schema, "user", count, seed=3).both
    return dense.numpy(), ids.numpy()


def drawn_rows(count: int, width: int, pads: float = 0.2) -> Any:
    """[B, K] different catalogue rows in any order, about a fifth of them replaced by pads."""
    random = np.random.default_rng((count, width))
    rows = np.stack([random.permutation(max(ITEMS, width))[:width] for _ in range(count)])
    return np.where((random.random(rows.shape) < pads) | (rows >= ITEMS), -1, rows)


@dataclass(frozen=True, eq=False)
class Exported:
    """A stage on disk, and what it was made from."""

    folder: Path
    stage: Stage
    schema: Schema
    scorer: Scorer
    module: TopCandidates
    items: Catalogue

    @property
    def keep(self) -> int:
        return self.stage.outputs[0].dims[0]

    @property
    def width(self) -> int:
        """Candidates per user when the graph was traced."""
        return self.stage.inputs[-1].dims[0]

    def load(self, runtime: Any) -> Graph:
        return load_graph(self.folder, self.schema, Serving(runtime=runtime, threads=1))[1]

    def logits(self, users: tuple[Any, Any]) -> Any:
        """The trained model's [B, N], for all items of the catalogue."""
        with torch.inference_mode():
            items = map(torch.from_numpy, (self.items.dense, self.items.ids))
            user = self.scorer.user(*map(torch.from_numpy, users))
            states = self.scorer.item(*items).expand(len(user), -1, -1)
            return self.scorer.cross(user, states).numpy().astype(np.float64)

    def check(self, graph: Graph, users: tuple[Any, Any], rows: Any) -> None:
        """The graph's choice is as good as the best one, place by place, and pads come last."""
        answer = graph(*users, rows)
        assert [a.shape for a in answer] == [(len(rows), self.keep)] * len(self.stage.outputs)
        names = {int(name): row for row, name in enumerate(self.items.item_ids)}
        for user, logits in enumerate(self.logits(users)):
            wanted = np.sort(logits[rows[user][rows[user] >= 0]])[::-1][: self.keep]
            chosen = answer[0][user].tolist()
            assert chosen[len(wanted) :] == [-1] * (self.keep - len(wanted))
            chosen = chosen[: len(wanted)]
            if self.module.with_ids:
                chosen = [names[name] for name in chosen]
            assert len(set(chosen)) == len(chosen)
            assert set(chosen) <= set(rows[user].tolist())
            np.testing.assert_allclose(logits[chosen], wanted, rtol=0, atol=LARGEST_DIFFERENCE)
            if self.module.with_ids:
                self._check_scores(answer[1][user].astype(np.float64), logits[chosen])

    def _check_scores(self, scores: Any, logits: Any) -> None:
        """Probabilities of the chosen, descending, and 0 for every pad."""
        real = scores[: len(logits)]
        assert (np.diff(scores) <= 0).all()
        assert (scores[len(logits) :] == 0).all()
        np.testing.assert_allclose(real, 1 / (1 + np.exp(-logits)), rtol=0, atol=1e-6)
        certain = np.abs(logits) < 6  # float32 holds the odds of more certain ones less exactly
        odds = np.log(real[certain] / (1 - real[certain]))
        np.testing.assert_allclose(odds, logits[certain], rtol=0, atol=LARGEST_DIFFERENCE)


def export_case(case: Case, folder: Path) -> Exported:
    stage = next(s for s in stages(case.schema, case.sizes) if s.name == case.stage)
    scorer, items = drawn_scorer(case.model, case.preset, case.schema), drawn_items(case.schema)
    module = write_scoring(scorer, stage, case.schema, items, folder)
    return Exported(folder, stage, case.schema, scorer, module, items)


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


def test_the_parity_report_has_the_numbers(exported: Exported) -> None:
    cases = [
        (*drawn_users(exported.schema, batch), drawn_rows(batch, exported.width))
        for batch in (1, 3, MAX_BATCH)
    ]
    found = parity.compare(
        exported.stage.name, exported.module, exported.folder, exported.schema, cases
    )
    assert [(p.runtime, p.batch) for p in found] == [
        (runtime, batch) for runtime in RUNTIMES for batch in (1, 3, MAX_BATCH)
    ]
    assert all(0 <= p.max_abs <= LARGEST_DIFFERENCE and p.overlap == 1 for p in found)
    table = parity.report(found)
    assert len(table.splitlines()) == 1 + len(found)


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
        (session.get_outputs(), exported.stage.outputs),
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


@pytest.mark.parametrize("schema", [_fitted(CRITEO), BAGS, NUMBERS], ids=lambda s: s.name)
def test_the_user_tower(schema: Schema, tmp_path: Path) -> None:
    retriever = drawn_scorer("two_tower", "tiny", schema)
    write_tower(retriever, schema, tmp_path)
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


@pytest.mark.parametrize("weight", ["user_ids.table.weight", "top.1.bias"])
def test_weights_that_change_after_the_export_are_found_out(
    export_once: Callable[[str], Exported], weight: str
) -> None:
    exported = export_once("DLRM ranks Criteo")
    cases = [(*drawn_users(exported.schema, 3), drawn_rows(3, exported.width))]
    name, module = exported.stage.name, exported.module
    tampered = module.get_parameter(f"scorer.{weight}")
    kept = tampered.detach().clone()
    try:
        with torch.no_grad():
            tampered += 0.01 * (1 + torch.rand_like(tampered))
        found = parity.compare(name, module, exported.folder, exported.schema, cases)
        assert not any(p.holds for p in found)
        with pytest.raises(parity.ParityError, match=r"differ from the trained model.*'rank'"):
            parity.report(found)
    finally:
        with torch.no_grad():
            tampered.copy_(kept)
    found = parity.compare(name, module, exported.folder, exported.schema, cases)
    assert all(p.holds for p in found)


def test_an_answer_that_holds_an_item_twice_is_no_parity(
    export_once: Callable[[str], Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = export_once("DLRM preranks bags")
    cases = [(*drawn_users(exported.schema, 2), drawn_rows(2, exported.width))]
    description, graph = load_graph(exported.folder, exported.schema, Serving(threads=1))

    def doubled(*inputs: Any) -> list[Any]:
        (rows,) = graph(*inputs)
        return [np.repeat(rows[:, ::2], 2, axis=1)]

    monkeypatch.setattr(parity, "load_graph", lambda *_: (description, doubled))
    found = parity.compare("prerank", exported.module, exported.folder, exported.schema, cases)
    assert [p.overlap for p in found] == [0, 0]


def test_a_graph_of_another_schema_is_refused(
    export_once: Callable[[str], Exported],
) -> None:
    exported = export_once("DLRM preranks bags")
    other = replace(exported.schema, name="another")
    with pytest.raises(SchemaError, match=f"{exported.schema.hash}.*{other.hash}.*one prepared"):
        load_graph(exported.folder, other, Serving(threads=1))
