"""A third-party ONNX ranker behind the contract of the ranking stage, and its errors."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from cascade.artifact import ArtifactError, Description
from cascade.config import Serving
from cascade.encoding import Encoder
from cascade.models import build, preset
from cascade.runtime.load import load_graph
from cascade.schema import Feature, Schema
from cascade.spec import RANK, Sizes, Stage, stages
from cascade.stages.pipeline import Pipeline
from cascade.stages.scoring import Score
from cascade.training import checkpoint
from export import __main__ as export_command
from export.artifacts import parity
from export.artifacts.stage_files import write_scoring
from export.context import Catalogue
from export.foreign import flat, onnx_model, wrapper
from export.foreign.inputs import ForeignError
from export.foreign.onnx_model import NEWEST_OPSET, Foreign
from export.releases.refresh import Refresh, change

SIZES = Sizes(candidates=30, survivors=20, results=5)
SERVING = Serving(threads=1)
ITEMS = 60
FLOAT, DOUBLE, INT32, INT64 = (
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
    TensorProto.INT32,
    TensorProto.INT64,
)


def feature(name: str, side: Any, kind: Any = "categorical", length: int = 1) -> Feature:
    encoding: Any = "log1p" if kind == "dense" else "hash"
    buckets = 0 if kind == "dense" else 9
    cardinality = buckets and buckets + 2
    return Feature(name, side, kind, encoding, length, buckets=buckets, cardinality=cardinality)


MIXED = Schema(
    "mixed",
    (
        feature("age", "user", "dense"),
        feature("price", "item", "dense"),
        feature("city", "user"),
        feature("history", "user", "bag", 3),
        feature("income", "user", "dense"),
        feature("brand", "item"),
        feature("genres", "item", "bag", 2),
        feature("year", "item", "dense"),
    ),
)
IDS_ONLY = Schema(
    "ids only",
    (feature("city", "user"), feature("history", "user", "bag", 3), feature("brand", "item")),
)
DENSE_USER = Schema(
    "dense user", (feature("age", "user", "dense"), feature("genres", "item", "bag", 2))
)

Inputs = tuple[np.ndarray, np.ndarray, np.ndarray]
Scorer = Callable[[dict[str, np.ndarray]], np.ndarray]


def ranking(schema: Schema) -> Stage:
    return stages(schema, SIZES)[-1]


def make_items(schema: Schema, count: int = ITEMS) -> Catalogue:
    random = np.random.default_rng(7)
    dense = random.random((count, schema.dense_width("item"))).astype(np.float32)
    ids = random.integers(0, 11, (count, schema.ids_width("item")))
    return Catalogue(dense, ids, 1000 + 7 * np.arange(count))


def make_requests(schema: Schema, batch: int, items: int = ITEMS) -> Inputs:
    """Encoded users; survivors with pads among them, the last user of several has three rows."""
    random = np.random.default_rng(batch)
    dense, ids = onnx_model.draw_users(schema, batch, random)
    rows = np.full((batch, SIZES.survivors), -1, np.int64)
    for b in range(batch):
        real = min(items, 3 if b and b == batch - 1 else 15)
        places = random.permutation(SIZES.survivors)[:real]
        rows[b, places] = random.permutation(items)[:real]
    return dense, ids, rows


def check(found: Any, requests: Inputs, items: Catalogue, probabilities: Scorer) -> None:
    """Ids are the best by the known probabilities, scores are theirs, pads follow."""
    ids, scores = found
    dense, user_ids, rows = requests
    assert ids.shape == scores.shape == (len(rows), SIZES.results)
    assert ids.dtype == np.int64
    assert scores.dtype == np.float32
    for b in range(len(rows)):
        real = rows[b][rows[b] >= 0]
        users = (np.repeat(values[b : b + 1], len(real), 0) for values in (dense, user_ids))
        known = probabilities(onnx_model.flat_rows(*users, items, real))
        count = min(len(real), SIZES.results)
        np.testing.assert_allclose(scores[b, :count], np.sort(known)[::-1][:count], atol=1e-4)
        by_id = dict(zip(items.item_ids[real].tolist(), known.tolist(), strict=True))
        own = [by_id[i] for i in ids[b, :count].tolist()]
        np.testing.assert_allclose(scores[b, :count], own, atol=1e-4)
        assert len(set(ids[b, :count].tolist())) == count
        assert (ids[b, count:] == -1).all()
        assert (scores[b, count:] == 0).all()


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, tuple[int, list[Any]]],
    weights: dict[str, np.ndarray],
    opset: int = 17,
    ml_opset: int = 0,
    **model_options: Any,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "third party",
        [helper.make_tensor_value_info(name, *value) for name, value in inputs.items()],
        [helper.make_tensor_value_info(name, *value) for name, value in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    if ml_opset:
        opsets.append(helper.make_opsetid("ai.onnx.ml", ml_opset))
    opsets += model_options.pop("opsets", [])
    options = {"ir_version": 8, **model_options}
    model = helper.make_model(graph, opset_imports=opsets, **options)
    onnx.save(model, path)
    return model


def write_map(folder: Path, content: Any) -> Path:
    path = folder / "map.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def wrapped(
    schema: Schema,
    model: Path,
    mapping: dict[str, Any],
    folder: Path,
    items: int = ITEMS,
    flat: bool = False,
) -> tuple[Score, dict[str, Any]]:
    """Write a version folder, and serve it as the stage is served."""
    folder.mkdir(exist_ok=True)
    catalogue = make_items(schema, items)
    path = write_map(model.parent, mapping)
    foreign = Foreign(model, path, schema)
    facts, parities = wrapper.write(foreign, ranking(schema), catalogue, folder, flat)
    assert bool(facts["flat"]) == flat
    return Score(folder, SERVING), {**facts, "parity": parities}


@pytest.fixture(params=[False, True], ids=["taken apart", "flat"])
def wrap(request: pytest.FixtureRequest) -> Callable[..., tuple[Score, dict[str, Any]]]:
    return partial(wrapped, flat=request.param)


def serve(model: Path, mapping: Path, folder: Path) -> None:
    wrapper.write(Foreign(model, mapping, MIXED), ranking(MIXED), make_items(MIXED), folder)


# A model made by hand: logit = wide @ weights + table[city], wide = (income, price, brand).
WEIGHTS = np.array([[0.8], [-1.5], [0.2]], np.float32)
TABLE = np.linspace(-1, 1, 11, dtype=np.float32)
LINEAR_MAP = {
    "inputs": {"wide": ["income", "price", "brand"], "town": ["city"]},
    "output": "logit",
    "output_is": "logit",
}


def linear_logits(rows: dict[str, np.ndarray]) -> np.ndarray:
    dense = np.stack([rows["user_dense"][:, 1], rows["item_dense"][:, 0]], axis=1)
    wide = np.concatenate([dense, rows["item_ids"][:, :1]], axis=1)
    return (wide @ WEIGHTS)[:, 0] + TABLE[rows["user_ids"][:, 0]]


def linear_probabilities(rows: dict[str, np.ndarray]) -> np.ndarray:
    return sigmoid(linear_logits(rows))


def linear(path: Path, rows: Any = "n", columns: Any = 3, **options: Any) -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["wide", "weights"], ["column"]),
        helper.make_node("Reshape", ["column", "flat"], ["product"]),
        helper.make_node("Gather", ["table", "town"], ["bias"]),
        helper.make_node("Add", ["product", "bias"], ["logit"]),
    ]
    weights = {"weights": WEIGHTS, "flat": np.array([-1]), "table": TABLE}
    inputs = {"wide": (FLOAT, [rows, columns]), "town": (INT64, [rows])}
    return save(path, nodes, inputs, {"logit": (FLOAT, [rows])}, weights, **options)


@pytest.mark.parametrize("schema", [MIXED, IDS_ONLY, DENSE_USER], ids=lambda s: s.name)
def test_flat_export_of_our_ranker_ranks_as_the_ranker(
    schema: Schema, tmp_path: Path, wrap: Any
) -> None:
    torch.manual_seed(3)
    scorer = build("dlrm", preset("dlrm", "tiny"), schema).eval()
    mapping = flat.flat_onnx(scorer, schema, tmp_path / "flat.onnx")
    stage, _ = wrap(schema, tmp_path / "flat.onnx", mapping, tmp_path / "rank")
    items = make_items(schema)

    def probabilities(rows: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            logits = scorer(*(torch.from_numpy(values) for values in rows.values()))
        return torch.sigmoid(logits).numpy()

    for batch in (1, 3, 64):
        requests = make_requests(schema, batch)
        check(stage(*requests), requests, items, probabilities)


def test_flat_export_equals_the_split_export(tmp_path: Path, wrap: Any) -> None:
    torch.manual_seed(4)
    scorer = build("dlrm", preset("dlrm", "tiny"), MIXED).eval()
    mapping = flat.flat_onnx(scorer, MIXED, tmp_path / "flat.onnx")
    flat_stage, _ = wrap(MIXED, tmp_path / "flat.onnx", mapping, tmp_path / "flat")
    (tmp_path / "split").mkdir()
    write_scoring(scorer, ranking(MIXED), MIXED, make_items(MIXED), tmp_path / "split")
    split_stage = Score(tmp_path / "split", SERVING)
    assert flat_stage.inputs == split_stage.inputs
    assert flat_stage.outputs == split_stage.outputs
    assert flat_stage.schema_hash == split_stage.schema_hash
    for batch in (1, 3, 64):
        requests = make_requests(MIXED, batch)
        (ids, scores), (split_ids, split_scores) = flat_stage(*requests), split_stage(*requests)
        np.testing.assert_allclose(scores, split_scores, atol=1e-4)
        apart = np.abs(np.diff(split_scores, axis=1, append=-1)) > 1e-5  # no tie with the next
        apart[:, 1:] &= apart[:, :-1]
        assert apart.mean() > 0.5
        assert (ids == split_ids)[apart].all()


def test_mixed_columns_ranks_pads_and_facts(tmp_path: Path, wrap: Any) -> None:
    linear(tmp_path / "m.onnx")
    folder = tmp_path / "rank"
    folder.mkdir()
    for stale in ("model.pt", "item_state.bin", "item_ids_table.bin", "items.onnx", "weights.bin"):
        (folder / stale).write_bytes(b"of an earlier export")
    stage, facts = wrap(MIXED, tmp_path / "m.onnx", LINEAR_MAP, folder)
    items = make_items(MIXED)
    for batch in (1, 3, 64):
        requests = make_requests(MIXED, batch)
        check(stage(*requests), requests, items, linear_probabilities)
    assert facts["ranker_onnx"] == "m.onnx"
    assert facts["bytes_per_item"] == (2 * 4 + 3 * 8 if facts["flat"] else 4)
    assert [p.batch for p in facts["parity"]] == [1, 3, 64]
    assert all(p.holds for p in facts["parity"])
    apart, flat = ("item_state.bin", "items.onnx"), ("item_dense_table.bin", "item_ids_table.bin")
    assert {path.name for path in folder.iterdir()} == {
        *("catalogue_ids.bin", "model.onnx", "stage.json"),
        *(flat if facts["flat"] else apart),
    }


def test_only_pads_no_users_and_a_small_catalogue(tmp_path: Path, wrap: Any) -> None:
    linear(tmp_path / "m.onnx")
    stage, _ = wrap(MIXED, tmp_path / "m.onnx", LINEAR_MAP, tmp_path / "rank", items=4)
    dense, ids, rows = make_requests(MIXED, 3, items=4)
    check(stage(dense, ids, rows), (dense, ids, rows), make_items(MIXED, 4), linear_probabilities)
    item_ids, scores = stage(dense, ids, np.full_like(rows, -1))
    assert (item_ids == -1).all()
    assert (scores == 0).all()
    for output in stage(dense[:0], ids[:0], rows[:0]):
        assert output.shape == (0, SIZES.results)


def test_the_graph_declares_the_stages_tensors(tmp_path: Path, wrap: Any) -> None:
    linear(tmp_path / "m.onnx")
    wrap(MIXED, tmp_path / "m.onnx", LINEAR_MAP, tmp_path / "rank")
    model = onnx.load(tmp_path / "rank" / "model.onnx", load_external_data=False)

    def tensors(values: Any) -> dict[str, tuple[int, int]]:
        return {
            v.name: (v.type.tensor_type.elem_type, v.type.tensor_type.shape.dim[1].dim_value)
            for v in values
        }

    assert tensors(model.graph.input) == {
        "user_dense": (FLOAT, 2),
        "user_ids": (INT64, 4),
        "survivors": (INT64, 0),
    }
    assert tensors(model.graph.output) == {
        "item_ids": (INT64, SIZES.results),
        "scores": (FLOAT, SIZES.results),
        "not_finite": (INT64, 1),  # which the process keeps
    }
    assert model.ir_version <= 10
    assert {p.key: p.value for p in model.metadata_props}["schema_hash"] == MIXED.hash


def test_classifier_with_double_and_int32_inputs_and_both_classes(
    tmp_path: Path, wrap: Any
) -> None:
    """As scikit-learn's are: a label beside the probabilities of both classes."""
    weights = np.random.default_rng(0).normal(size=(6, 2))
    nodes = [
        helper.make_node("Cast", ["history"], ["members"], to=DOUBLE),
        helper.make_node("Concat", ["numbers", "members"], ["x"], axis=1),
        helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
        helper.make_node("Softmax", ["z"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    save(
        tmp_path / "m.onnx",
        nodes,
        {"numbers": (DOUBLE, [None, 3]), "history": (INT32, [None, 3])},
        {"label": (INT64, [None]), "probabilities": (DOUBLE, [None, 2])},
        {"w": weights, "b": np.array([0.1, -0.1])},
    )
    mapping = {
        "inputs": {"numbers": ["year", "age", "price"], "history": ["history"]},
        "output": "probabilities",
        "output_is": "probability",
    }

    def probabilities(rows: dict[str, np.ndarray]) -> np.ndarray:
        year, age, price = (
            rows["item_dense"][:, 1],
            rows["user_dense"][:, 0],
            rows["item_dense"][:, 0],
        )
        x = np.concatenate([np.stack([year, age, price], 1), rows["user_ids"][:, 1:4]], axis=1)
        z = x.astype(np.float64) @ weights + [0.1, -0.1]
        return sigmoid(z[:, 1] - z[:, 0])

    stage, _ = wrap(MIXED, tmp_path / "m.onnx", mapping, tmp_path / "rank")
    requests = make_requests(MIXED, 16)
    check(stage(*requests), requests, make_items(MIXED), probabilities)
    found = onnx.load(tmp_path / "rank" / "model.onnx", load_external_data=False)
    assert "ArgMax" not in {node.op_type for node in found.graph.node}  # the label is not computed


def test_one_input_per_feature_and_a_probability_column(tmp_path: Path, wrap: Any) -> None:
    """Names that the stage uses too, a subgraph that reads an outer value, and a function."""
    function = helper.make_function(
        "home",
        "Twice",
        ["a"],
        ["scores"],
        [helper.make_node("Add", ["a", "a"], ["scores"])],
        [helper.make_opsetid("", 17)],
    )
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(kind, ["scores", "constant_0"], ["item_ids"])],
            name,
            [],
            [helper.make_tensor_value_info("item_ids", FLOAT, ["stage_users", 1])],
        )
        for name, kind in (("then", "Add"), ("else", "Sub"))
    }
    nodes = [
        helper.make_node("Cast", ["survivors"], ["brand"], to=FLOAT),
        helper.make_node("Mul", ["user_dense", "brand"], ["product"]),
        helper.make_node("Twice", ["product"], ["scores"], domain="home"),
        helper.make_node("If", ["catalogue_ids"], ["pads"], **branches),
        helper.make_node("Sigmoid", ["pads"], ["p"]),
    ]
    save(
        tmp_path / "m.onnx",
        nodes,
        {"survivors": (INT64, ["stage_users", 1]), "user_dense": (FLOAT, ["stage_users", 1])},
        {"p": (FLOAT, ["stage_users", 1])},
        {"constant_0": np.array(0.25, np.float32), "catalogue_ids": np.array(False)},
        functions=[function],
        opsets=[helper.make_opsetid("home", 1)],
    )
    mapping = {
        "inputs": {"survivors": ["brand"], "user_dense": ["income"]},
        "output_is": "probability",
    }
    stage, _ = wrap(MIXED, tmp_path / "m.onnx", mapping, tmp_path / "rank")

    def probabilities(rows: dict[str, np.ndarray]) -> np.ndarray:
        return sigmoid(2 * rows["user_dense"][:, 1] * rows["item_ids"][:, 0] - 0.25)

    for batch in (1, 5):
        requests = make_requests(MIXED, batch)
        check(stage(*requests), requests, make_items(MIXED), probabilities)


@pytest.mark.parametrize("rows", [11, 200_000], ids=["small", "large"])
def test_weights_beside_the_file_are_carried_along(rows: int, tmp_path: Path, wrap: Any) -> None:
    source = tmp_path / "source"
    source.mkdir()
    model = linear(source / "m.onnx")
    table = np.concatenate([TABLE, np.zeros(rows - len(TABLE), np.float32)])
    del model.graph.initializer[-1]
    model.graph.initializer.append(numpy_helper.from_array(table, "table"))
    onnx.save(
        model, source / "m.onnx", save_as_external_data=True, size_threshold=60, location="w.data"
    )
    stage, _ = wrap(MIXED, source / "m.onnx", LINEAR_MAP, tmp_path / "rank")
    weights = tmp_path / "rank" / "weights.bin"
    assert weights.exists() == (table.nbytes >= 1 << 20)
    (source / "w.data").unlink()
    stage = Score(tmp_path / "rank", SERVING)
    requests = make_requests(MIXED, 3)
    check(stage(*requests), requests, make_items(MIXED), linear_probabilities)


@pytest.mark.parametrize("opset", [11, 13, NEWEST_OPSET])
def test_oldest_to_newest_opset(opset: int, tmp_path: Path, wrap: Any) -> None:
    linear(tmp_path / "m.onnx", opset=opset, ir_version=7 if opset < 14 else 10)
    stage, _ = wrap(MIXED, tmp_path / "m.onnx", LINEAR_MAP, tmp_path / "rank")
    requests = make_requests(MIXED, 3)
    check(stage(*requests), requests, make_items(MIXED), linear_probabilities)


def test_weights_listed_among_the_inputs_are_no_inputs(tmp_path: Path, wrap: Any) -> None:
    model = linear(tmp_path / "m.onnx", opset=11)
    model.ir_version = 3
    for weight in model.graph.initializer:
        info = helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
        model.graph.input.append(info)
    onnx.save(model, tmp_path / "m.onnx")
    stage, _ = wrap(MIXED, tmp_path / "m.onnx", LINEAR_MAP, tmp_path / "rank")
    requests = make_requests(MIXED, 3)
    check(stage(*requests), requests, make_items(MIXED), linear_probabilities)


def test_torchscript_cannot_serve_it(tmp_path: Path, wrap: Any) -> None:
    linear(tmp_path / "m.onnx")
    wrap(MIXED, tmp_path / "m.onnx", LINEAR_MAP, tmp_path / "rank")
    with pytest.raises(ArtifactError, match=r"model\.pt is missing"):
        load_graph(tmp_path / "rank", MIXED, Serving(runtime="torchscript", threads=1))


def test_parity_notices_another_item_table(tmp_path: Path, wrap: Any) -> None:
    linear(tmp_path / "m.onnx")
    _, facts = wrap(MIXED, tmp_path / "m.onnx", LINEAR_MAP, tmp_path / "rank")
    name, dtype = ("item_ids_table", np.int64) if facts["flat"] else ("item_state", np.float32)
    table = tmp_path / "rank" / f"{name}.bin"
    np.roll(np.fromfile(table, dtype), 3).tofile(table)
    foreign = Foreign(tmp_path / "m.onnx", tmp_path / "map.json", MIXED)
    found = onnx_model.compare(foreign, ranking(MIXED), make_items(MIXED), tmp_path / "rank")
    assert not any(p.holds for p in found)
    assert found[-1].overlap < 0.9
    with pytest.raises(parity.ParityError, match="differ"):
        parity.report(found)


def changed(**values: Any) -> dict[str, Any]:
    return {**LINEAR_MAP, **values}


def fed(**inputs: Any) -> dict[str, Any]:
    return {**LINEAR_MAP, "inputs": {**LINEAR_MAP["inputs"], **inputs}}


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ("{", r"map\.json is no JSON file.*expected \{\"inputs\""),
        ([1], r"map\.json holds \[1\]; expected"),
        (changed(output_type="logit"), "holds .*output_type.*; expected"),
        (changed(inputs=["wide"]), r"inputs is \['wide'\]; expected"),
        (fed(town="city"), "inputs is .*; expected"),
        (changed(output_is="score"), "output_is is 'score'; expected"),
        (changed(output="logits"), r"output is 'logits', but .*m\.onnx has \['logit'\]"),
        (
            changed(inputs={"wide": LINEAR_MAP["inputs"]["wide"]}),
            r"inputs without a mapping: \['town'\].*graph's inputs are \['wide', 'town'\]",
        ),
        (fed(village=["city"]), r"not in the graph: \['village'\].*are \['wide', 'town'\]"),
        (
            fed(town=["citty"]),
            "input 'town' of m.onnx: unknown feature 'citty': did you mean 'city'",
        ),
        (fed(town=["zzzz"]), "unknown feature 'zzzz': known are .*age.*brand"),
        (fed(town=["history"]), r"'town'.* takes 1 columns, but \['history'\] have 3"),
        (fed(wide=["income", "price"]), r"takes 3 columns, but \['income', 'price'\] have 2"),
        (fed(wide=["history"]), "no item feature.*'price'"),
        (changed(output_is="probability"), "says probability, but .* from .* to .*; say logit"),
    ],
)
def test_a_mapping_at_fault_is_named(mapping: Any, message: str, tmp_path: Path) -> None:
    linear(tmp_path / "m.onnx")
    path = write_map(tmp_path, mapping)
    with pytest.raises(ForeignError, match=message):
        serve(tmp_path / "m.onnx", path, tmp_path)


def no_file(path: Path) -> None:
    path.unlink(missing_ok=True)


def scored(*nodes: tuple[str, list[str]], elem: int = FLOAT) -> Callable[[Path], object]:
    """Models that turn the linear model's logit into something else."""

    def make(path: Path) -> None:
        model = linear(path)
        model.graph.node[-1].output[0] = "raw"
        names = ["raw", *(f"step_{i}" for i in range(1, len(nodes))), "logit"]
        for (kind, extra), source, target in zip(nodes, names, names[1:], strict=False):
            model.graph.node.append(helper.make_node(kind, [source, *extra], [target]))
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("logit", elem, None))
        weights = {"pair": np.array([-1, 1]), "two": np.ones((1, 2), np.float32)}
        weights |= {"seven": np.array([7, 1]), "axes": np.array([0]), "nil": np.float32([0])}
        for name, value in weights.items():
            model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
        onnx.save(model, path)

    return make


def text_input(path: Path) -> None:
    model = linear(path)
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.STRING
    onnx.save(model, path)


def three_dimensions(path: Path) -> None:
    model = linear(path)
    model.graph.input[0].type.tensor_type.shape.dim.add().dim_value = 1
    onnx.save(model, path)


def lost_weights(path: Path) -> None:
    onnx.save(linear(path), path, save_as_external_data=True, size_threshold=60, location="w.data")
    (path.parent / "w.data").unlink()


def small_table(path: Path) -> None:
    model = linear(path)
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(TABLE[:2], "table"))
    onnx.save(model, path)


def sparse(path: Path) -> None:
    model = linear(path)
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    places = numpy_helper.from_array(np.array([0]), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [3, 1]))
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_file, r"m\.onnx does not exist"),
        (lambda path: path.write_text("third party"), "is not an ONNX file"),
        (lambda path: path.write_bytes(b""), "is not an ONNX model: it holds no graph"),
        (lambda path: linear(path, rows=32), "fixed batch dimension of 32.*dynamic_shapes"),
        (lambda path: linear(path, columns=4), "takes 4 columns"),
        (lambda path: linear(path, opset=22), "opset 22 .*expected 11 to 21.*ONNX Runtime 1.19"),
        (lambda path: linear(path, opset=9), "opset 9 .*expected 11 to 21.*version_converter"),
        (lambda path: linear(path, ml_opset=6), "ai.onnx.ml 6.*up to 5"),
        (text_input, "'town' of m.onnx takes STRING; expected one of .*'INT64'"),
        (three_dimensions, r"has the 3 dimensions .*; expected \[n\] or \[n, columns\]"),
        (lost_weights, r"ONNX Runtime cannot load .*w\.data"),
        (small_table, "cannot be run on .* rows.*table smaller than the schema's vocabulary"),
        (sparse, "sparse initialisers"),
        (scored(("Log", []), ("Sqrt", [])), "not finite numbers"),
        (scored(("ReduceMean", [])), r"is .* for 7 rows; expected \(7,\)"),
        (scored(("Reshape", ["pair"]), ("MatMul", ["two"])), "says logit, but .* two columns"),
        (scored(("Reshape", ["seven"])), "cannot be run on 1 rows.*written into the graph"),
        (scored(("Softmax", [])), "another score when other rows stand beside it"),
    ],
)
def test_a_file_at_fault_is_named(
    make: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    make(tmp_path / "m.onnx")
    path = write_map(tmp_path, LINEAR_MAP)
    with pytest.raises(ForeignError, match=f"(?s){message}"):
        serve(tmp_path / "m.onnx", path, tmp_path)


def poisoned(value: float, row: int = 10) -> np.ndarray:
    """A table with one number that is not finite, in a row that export's samples need not meet."""
    table = TABLE.copy()
    table[row] = value
    return table


def in_initialiser(path: Path, table: np.ndarray) -> None:
    model = linear(path)
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(table, "table"))
    onnx.save(model, path)


def in_file(path: Path, table: np.ndarray) -> None:
    in_initialiser(path, table)
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, size_threshold=60, location="w.data")


def in_constant(path: Path, table: np.ndarray) -> None:
    model = linear(path)
    del model.graph.initializer[-1]
    value = numpy_helper.from_array(table, "table")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["table"], value=value))
    onnx.save(model, path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("put", [in_initialiser, in_file, in_constant])
def test_a_weight_that_is_not_finite_is_named_with_its_row(
    tmp_path: Path, put: Callable[[Path, np.ndarray], None], value: float
) -> None:
    put(tmp_path / "m.onnx", poisoned(value))
    with pytest.raises(ForeignError, match=r"the weights table of .*m\.onnx .*first in row 10"):
        Foreign(tmp_path / "m.onnx", write_map(tmp_path, LINEAR_MAP), MIXED)


def test_a_mask_of_infinities_is_no_fault(tmp_path: Path) -> None:
    mask = np.zeros(11, np.float32)
    mask[10] = -np.inf
    in_initialiser(tmp_path / "m.onnx", mask)
    Foreign(tmp_path / "m.onnx", write_map(tmp_path, LINEAR_MAP), MIXED)


@pytest.mark.parametrize("opset", [11, 17, NEWEST_OPSET])
@pytest.mark.parametrize(
    ("meaning", "value"), [("logit", np.inf), ("probability", np.nan), ("value", np.nan)]
)
def test_an_item_without_a_finite_score_comes_last_and_is_counted(
    tmp_path: Path, wrap: Any, meaning: str, opset: int, value: float
) -> None:
    """The state of one item is spoilt after the export, which would refuse it."""
    model = linear(tmp_path / "m.onnx", opset=opset)
    if meaning == "probability":
        model.graph.node[-1].output[0] = "raw"
        model.graph.node.append(helper.make_node("Sigmoid", ["raw"], ["logit"]))
        onnx.save(model, tmp_path / "m.onnx")
    mapping = {**LINEAR_MAP, "output_is": meaning}
    folder = tmp_path / "rank"
    wrap(MIXED, tmp_path / "m.onnx", mapping, folder)
    mapped = Description.load(folder).mapped
    state = next(mapped[name] for name in ("item_state", "item_dense_table") if name in mapped)
    values = np.fromfile(folder / state.file, state.dtype).reshape(state.shape)
    values[4] = value
    values.tofile(folder / state.file)
    stage = Score(folder, SERVING)
    dense, ids, rows = make_requests(MIXED, 2)
    rows[:] = -1
    rows[0, :3], rows[1, :1] = (4, 7, 9), 4
    found, scores = stage(dense, ids, rows)
    item = make_items(MIXED).item_ids[4]
    assert found[0, 2] == found[1, 0] == item
    assert (found[0, 3:] == -1).all()
    assert np.isfinite(scores).all()
    assert (scores[1, 0] == 0) == (meaning != "value")
    assert (np.diff(scores[0, :3]) <= 0).all()
    assert stage.counts() == {"kept": 4, "not_finite": 2}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What training leaves: encoder, encoded catalogue, some raw users, three models."""
    folder = tmp_path_factory.mktemp("checkpoints")
    Encoder.fit(MIXED, {}).save(folder)
    items = make_items(MIXED)
    columns = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        for name, values in (("dense", items.dense), ("ids", items.ids.astype(np.int32)))
    }
    pq.write_table(pa.table({"item_id": items.item_ids, **columns}), folder / "catalogue.parquet")
    users = {
        "age": np.arange(40, dtype=np.float32),
        "income": np.arange(40, dtype=np.float32)[::-1],
        "city": [f"city {i % 7}" for i in range(40)],
        "history": ["|".join(map(str, range(i % 4))) for i in range(40)],
    }
    pq.write_table(pa.table(users), folder / "users.parquet")
    for name, model in (("retrieve", "two_tower"), ("prerank", "logistic"), ("rank", "dlrm")):
        torch.manual_seed(5)
        config = preset(model, "default" if model == "logistic" else "tiny")
        facts = {"model": model, "config": config, "schema_hash": MIXED.hash, "metrics": {}}
        checkpoint.save(folder / name, build(model, config, MIXED), facts)
    return folder


def refreshed(repository: Path, checkpoints: Path) -> Pipeline:
    """The next release: new items beside the old ones."""
    before = Refresh(repository, 1, checkpoints)
    added = make_items(MIXED, ITEMS + 9).take(np.arange(ITEMS, ITEMS + 9))
    changed = change(before.item_ids, added, np.array([], np.int64))
    target = repository.with_name(f"{repository.name} refreshed")
    before.write(target, 2, changed)
    return Pipeline.load(target, 2, SERVING)


def test_the_commands_serve_the_flat_ranker_in_the_cascade(
    checkpoints: Path,
    tmp_path: Path,
) -> None:
    onnx_file, mapping = tmp_path / "flat.onnx", tmp_path / "map.json"
    base = ["--checkpoints", str(checkpoints)]
    export_command.main(["flat", *base, "--onnx", str(onnx_file), "--inputs", str(mapping)])
    sizes = [word for name, size in vars(SIZES).items() for word in (f"--{name}", str(size))]
    common = [*base, "--index", "flat", *sizes]
    third_party = ["--ranker-onnx", str(onnx_file), "--inputs", str(mapping)]
    answers = []
    for name, more in (("flat", third_party), ("split", [])):
        repository = tmp_path / name
        export_command.main([*common, "--repository", str(repository), *more])
        pipeline = Pipeline.load(repository, serving=SERVING)
        dense = np.array([[20, np.nan], [3, 4]], np.float32)
        categorical = np.array([[b"city 1", b"1|2"], [b"", b"nowhere"]], object)
        answers.append(pipeline(dense, categorical))
        answers.append(refreshed(repository, checkpoints)(dense, categorical))
    for (ids, scores), (own_ids, own_scores) in (answers[::2], answers[1::2]):
        np.testing.assert_allclose(scores, own_scores, atol=1e-4)
        assert (ids >= 1000).all()
        assert np.array_equal(np.sort(ids), np.sort(own_ids))
    release = json.loads((tmp_path / "flat/recommend/1/release.json").read_text())
    assert release["stages"][RANK]["ranker_onnx"] == "flat.onnx"
    assert [p["batch"] for p in release["parity"] if p["stage"] == RANK] == [1, 3, 64]
