"""Reads and runs a third-party ONNX model over flat (user, item) rows, unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from google.protobuf.message import DecodeError
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from cascade.artifact import Array
from cascade.config import Serving
from cascade.formula import Formula
from cascade.runtime.load import load_graph
from cascade.schema import Schema
from cascade.spec import Stage
from export.artifacts.parity import (
    LARGEST_OF_TASKS,
    Parity,
    draw_candidates,
    judge,
    of_tasks,
)
from export.context import Catalogue
from export.foreign.inputs import ForeignError, InputMap, Rows
from export.foreign.weights import not_finite

# ONNX Runtime 1.19 reads what ONNX 1.16 defines. The nodes that `wrapper` adds have had their form
# since opset 11.
OLDEST_OPSET = 11
PROBE_ROWS = 7
BATCHES = (1, 3, 64)  # at which a wrapped graph is compared
_VERSIONS = next(row for row in onnx.helper.VERSION_TABLE if row[0] == "1.16.0")
IR_VERSION, NEWEST_OPSET, NEWEST_ML_OPSET = (int(version) for version in _VERSIONS[1:4])
RUNTIME_ERRORS = tuple(
    kind
    for kind in vars(ort_errors).values()
    if isinstance(kind, type) and issubclass(kind, Exception)
)


class Foreign:
    """The file, the mapping of its inputs, and a session that runs it unchanged, with which the
    wrapped graph is compared. Raises ForeignError: they cannot be served; says why."""

    def __init__(self, path: Path, mapping: Path | InputMap, schema: Schema) -> None:
        self.path, self.schema = path, schema
        self.formula: Formula | None = None  # of its tasks, as its file says
        self.mapping = InputMap.load(mapping) if isinstance(mapping, Path) else mapping
        model = load_model(path)
        self.inputs = self.mapping.inputs(model_inputs(model), schema, path.name)
        self.output = self._output([str(value.name) for value in model.graph.outputs])
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except RUNTIME_ERRORS as error:
            raise ForeignError(f"ONNX Runtime cannot load {path}: {error}") from error
        if found := not_finite(model):
            raise ForeignError(
                f"the weights {found[0]} of {path} have values that are not finite numbers, first "
                f"in row {found[1]}: export a model whose training has not diverged"
            )

    @property
    def is_logit(self) -> bool:
        """Whether a sigmoid makes its output the probability of a click."""
        return self.mapping.is_logit

    def run(self, rows: Rows) -> Array:
        """Encoded rows -> the output as it comes."""
        feed = {i.name: i.feed(rows) for i in self.inputs}
        try:
            found: Array = self._session.run([self.output], feed)[0]
        except RUNTIME_ERRORS as error:
            raise ForeignError(
                f"{self.path} cannot be run on {len(rows['user_ids'])} rows as the schema encodes "
                "them: is a table smaller than the schema's vocabulary, or a number of rows "
                f"written into the graph? ONNX Runtime says: {error}"
            ) from error
        return found

    def probabilities(self, rows: Rows) -> Array:
        """Encoded rows -> click probability, or the score by the formula of several tasks, float32
        [n]."""
        count = len(rows["user_ids"])
        if not count:
            return np.empty(0, np.float32)
        if self.mapping.tasks:
            tasks = self.tasks(rows)
            by_name = dict(zip(self.mapping.tasks, tasks.T, strict=True))
            return self.formula(by_name) if self.formula else tasks[:, 0]
        values = self.run(rows).astype(np.float32).reshape(count, -1)[:, -1]
        if not np.isfinite(values).all():
            raise ForeignError(f"{self.path} gives values that are not finite numbers")
        if self.mapping.is_logit:
            sigmoid: Array = (1 + np.tanh(values / 2)) / 2  # of this form it cannot overflow
            return sigmoid
        if self.mapping.meaning == "value":
            return values
        if values.min() < -1e-5 or values.max() > 1 + 1e-5:
            raise ForeignError(
                f"{self.mapping.path}: output_is says probability, but {self.path} gives values "
                f"from {values.min():g} to {values.max():g}; say logit if that is what they are"
            )
        return values

    def tasks(self, rows: Rows) -> Array:
        """Encoded rows -> what every task says, float32 [n, T]. Raises ForeignError: a value is not
        finite."""
        count = len(rows["user_ids"])
        if not count:
            return np.empty((0, len(self.mapping.tasks)), np.float32)
        values = self.run(rows).astype(np.float32)
        if not np.isfinite(values).all():
            raise ForeignError(f"{self.path} gives values that are not finite numbers")
        return values

    def has_both_classes(self, items: Catalogue) -> bool:
        """Whether the output is [n, 2]; runs some rows at once and one by one. Raises ForeignError:
        the output is not one score per row, or depends on other rows."""
        count, random = PROBE_ROWS, np.random.default_rng(0)
        some = random.integers(len(items), size=count)
        rows = flat_rows(*draw_users(self.schema, count, random), items, some)
        together = self.run(rows)
        came = together.shape if isinstance(together, np.ndarray) else type(together).__name__
        if (tasks := self.mapping.tasks) and came != (count, len(tasks)):
            raise ForeignError(
                f"output {self.output!r} of {self.path} is {came} for {count} rows; expected "
                f"({count}, {len(tasks)}), a column for each of the tasks {', '.join(tasks)}"
            )
        if not tasks and came not in ((count,), (count, 1), (count, 2)):
            raise ForeignError(
                f"output {self.output!r} of {self.path} is {came} for {count} rows; expected "
                f"({count},), ({count}, 1), or ({count}, 2) with the probabilities of both "
                "classes (skl2onnx: set the option zipmap=False, and name `probabilities`)"
            )
        alone = [self.run({k: v[i : i + 1] for k, v in rows.items()}) for i in range(count)]
        if not np.allclose(together, np.concatenate(alone), rtol=1e-3, atol=1e-4, equal_nan=True):
            raise ForeignError(
                f"{self.path} gives a row another score when other rows stand beside it, but the "
                "server batches users, and each must get its own. Was it exported in training "
                "mode, or does it normalise over the batch?"
            )
        both = not tasks and together.ndim == 2 and together.shape[1] == 2
        if both and self.mapping.is_logit:
            raise ForeignError(
                f"{self.mapping.path}: output_is says logit, but {self.output!r} of {self.path} "
                "has two columns, which are read as the probabilities of both classes"
            )
        return both

    def _output(self, names: list[str]) -> str:
        name = self.mapping.output
        if name is None and len(names) == 1:
            return names[0]
        if name not in names:
            raise ForeignError(
                f"{self.mapping.path}: output is {name!r}, but {self.path} has {names}"
            )
        return name


def load_model(path: Path) -> ir.Model:
    """Read the graph, its external weights left where they are. Raises ForeignError: not an ONNX
    model, or one that ONNX Runtime 1.19 or `wrapper` cannot take."""
    if not path.is_file():
        raise ForeignError(f"{path} does not exist, or is not a file")
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise ForeignError(f"{path} is not an ONNX file: {error}") from error
    if not proto.graph.node or not proto.graph.output:
        raise ForeignError(f"{path} is not an ONNX model: it holds no graph with nodes and outputs")
    if proto.graph.sparse_initializer:
        raise ForeignError(f"{path} has sparse initialisers: export it with dense ones")
    model = ir.from_proto(proto)
    ir.external_data.set_base_dir(model.graph, path.parent)
    opsets = model.opset_imports
    if "ai.onnx" in opsets:  # the long name of the same domain
        opsets[""] = opsets.pop("ai.onnx")
    opset, ml_opset = opsets.setdefault("", NEWEST_OPSET), opsets.get("ai.onnx.ml", 1)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET or ml_opset > NEWEST_ML_OPSET:
        raise ForeignError(
            f"{path} has opset {opset} (ai.onnx.ml {ml_opset}); expected {OLDEST_OPSET} to "
            f"{NEWEST_OPSET} (ai.onnx.ml up to {NEWEST_ML_OPSET}), the newest that ONNX Runtime "
            "1.19 reads. Export it with such an opset, or convert it with "
            f"onnx.version_converter.convert_version(model, {NEWEST_OPSET - 1})"
        )
    return model


def model_inputs(model: ir.Model) -> dict[str, ir.Value]:
    """The inputs to feed, by name: older files list the weights among the inputs, too."""
    weights = model.graph.initializers
    return {str(value.name): value for value in model.graph.inputs if value.name not in weights}


def compare(
    foreign: Foreign, stage: Stage, items: Catalogue, folder: Path, quantised: bool = False
) -> list[Parity]:
    """Reload a version folder, and run it beside the file on random users with random pads. A stage
    without scores is judged by its choice alone."""
    _, graph = load_graph(folder, foreign.schema, Serving(threads=1))
    random = np.random.default_rng(1)
    found = []
    for batch in BATCHES:
        users = draw_users(foreign.schema, batch, random)
        rows = draw_candidates(batch, stage.inputs[-1].dims[0], len(items), random)
        outputs = graph(*users, rows)
        if foreign.mapping.tasks:
            user, place = np.nonzero(rows >= 0)
            dense, ids = (values[user] for values in users)
            wanted = foreign.tasks(flat_rows(dense, ids, items, rows[user, place]))
            tasks = np.zeros((*rows.shape, wanted.shape[1]), np.float32)
            tasks[user, place] = wanted
            differs = of_tasks(outputs[0], tasks, rows)
            how = (batch, differs, 1.0, quantised, LARGEST_OF_TASKS)
            found.append(Parity(stage.name, "onnx", *how))
            continue
        names = items.item_ids if len(outputs) > 1 else np.arange(len(items))
        user, place = np.nonzero(rows >= 0)
        expected = np.full(rows.shape, -np.inf, np.float32)  # below any value that a model gives
        dense, ids = (values[user] for values in users)
        known = foreign.probabilities(flat_rows(dense, ids, items, rows[user, place]))
        expected[user, place] = known
        difference, overlap = judge(outputs[0], rows, expected, names, relative=True)
        if len(outputs) > 1:
            best = -np.sort(-expected, axis=1)[:, : outputs[1].shape[1]]
            best[np.isinf(best)] = 0  # the score of a pad
            difference = max(difference, float(np.abs(best - outputs[1]).max(initial=0)))
        found.append(Parity(stage.name, "onnx", batch, difference, overlap, quantised))
    return found


def draw_users(schema: Schema, count: int, random: np.random.Generator) -> tuple[Array, Array]:
    """Random encoded users: dense [B, F_dense], ids [B, C]."""
    dense = random.exponential(size=(count, schema.dense_width("user"))).astype(np.float32)
    features = schema.ids("user")
    cardinalities = np.repeat([f.cardinality for f in features], [f.length for f in features])
    ids = np.zeros((count, schema.ids_width("user")), np.int64)
    if features:
        ids[:] = random.integers(cardinalities, size=ids.shape)
    return dense, ids


def flat_rows(dense: Array, ids: Array, items: Catalogue, rows: Array) -> Rows:
    """Users [n, F] beside catalogue rows [n]."""
    item_dense, item_ids = items.dense[rows], items.ids[rows]
    return {"user_dense": dense, "user_ids": ids, "item_dense": item_dense, "item_ids": item_ids}
