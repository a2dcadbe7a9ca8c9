"""A third-party ONNX ranker, wrapped into the contract of the ranking stage.

The foreign graph scores flat (user, item) rows: the user's values stand beside each candidate's.
Nodes put before it gather the candidates' encoded features and repeat the user's for each; nodes
put after it mask the pads, take the top K and look up the ids. It is the slow path: what a model
in the user / item / cross contract computes once per user or per item, this one computes for
every pair. See `export.foreign` for the JSON that says what feeds the model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from cascade.schema import Schema
from cascade.serving.runtime import ONNX_FILE, TORCH_FILE, Array, Description, Mapped, load_graph
from cascade.spec import Serving, Stage
from export import parity
from export.foreign import IR_VERSION, Column, Foreign, Input, Rows, load_model, model_inputs
from export.onnx_file import EXTERNAL_BYTES, WEIGHTS_FILE
from export.stage_files import CATALOGUE_IDS, ITEM_STATE, Catalogue, write_item_ids

ITEM_TABLES = {"item_dense": "float32", "item_ids": "int64"}  # sources, as mapped files
MAPPED = "{}_table"  # the stage has an output of the name item_ids already
PREFIX = "ranker/"
PARITY_BATCHES = (1, 3, 64)
PROBE_ROWS = 7
TIE = 1e-5


def write(
    ranker_onnx: Path,
    inputs_json: Path,
    stage: Stage,
    schema: Schema,
    items: Catalogue,
    folder: Path,
) -> dict[str, Any]:
    """Write model.onnx, the item tables and stage.json, and prove that they rank as the file does.

    There is no model.pt: a foreign graph has no TorchScript form.

    Returns:
        Facts for the release: `ranker_onnx`, `bytes_per_item`, and `parity`, one dict per batch.

    Raises:
        ForeignError: the file or its mapping cannot be served.
        ParityError: the wrapped graph does not give the file's answers.
    """
    foreign = Foreign(ranker_onnx, inputs_json, schema)
    random = np.random.default_rng(0)
    users = draw_users(schema, PROBE_ROWS, random)
    both_classes = foreign.check_rows(
        flat_rows(*users, items, random.integers(len(items), size=PROBE_ROWS))
    )
    for stale in (TORCH_FILE, WEIGHTS_FILE, f"{ITEM_STATE}.bin"):
        (folder / stale).unlink(missing_ok=True)  # of an earlier export into the same folder
    mapped = write_tables(foreign, items, folder)
    model = load_model(ranker_onnx)
    _carry_weights(model, folder)
    _Surgery(model, foreign, stage, mapped, folder).operate(both_classes)
    model.metadata_props.update(stage=stage.name, schema_hash=schema.hash)
    ir.save(model, folder / ONNX_FILE)
    onnx.checker.check_model(str(folder / ONNX_FILE))
    inputs, outputs = (tuple(t.name for t in side) for side in (stage.inputs, stage.outputs))
    Description(stage.name, schema.hash, inputs, outputs, mapped).save(folder)
    parities = compare(foreign, stage, schema, items, folder)
    parity.report(parities)
    tables = [value for name, value in mapped.items() if name != CATALOGUE_IDS]
    return {
        "ranker_onnx": foreign.name,
        "bytes_per_item": round(sum(t.nbytes for t in tables) / max(1, len(items)), 1),
        "parity": [asdict(p) for p in parities],
    }


def write_tables(foreign: Foreign, items: Catalogue, folder: Path) -> dict[str, Mapped]:
    """The encoded item features that the model reads, and the ids, in mapped files."""
    mapped = {}
    used = {column.source for i in foreign.inputs for column in i.columns}
    for source, dtype in ITEM_TABLES.items():
        if source in used:
            values = items.dense if source == "item_dense" else items.ids
            name = MAPPED.format(source)
            mapped[name] = Mapped(f"{name}.bin", dtype, values.shape)
            values.astype(np.dtype(dtype).newbyteorder("<")).tofile(folder / mapped[name].file)
    return {**mapped, CATALOGUE_IDS: write_item_ids(items, folder)}


def _carry_weights(model: ir.Model, folder: Path) -> None:
    """Move the large weights, wherever they lay, into one file beside the graph."""
    ir.external_data.unload_from_model(
        model, folder, WEIGHTS_FILE, size_threshold_bytes=EXTERNAL_BYTES
    )
    weights = folder / WEIGHTS_FILE
    if weights.exists() and not weights.stat().st_size:
        weights.unlink()


@dataclass
class _Surgery:
    """One foreign graph on the table. All changes are made to `model` in place."""

    model: ir.Model
    foreign: Foreign
    stage: Stage
    mapped: dict[str, Mapped]
    folder: Path

    def operate(self, both_classes: bool) -> None:
        """Put nodes before and after the graph, and give it the stage's inputs and outputs."""
        graph = self.model.graph
        inputs = {str(value.name): value for value in model_inputs(self.model)}
        score = next(v for v in graph.outputs if v.name == self.foreign.output)
        self._detach_names()
        self.requests = [_graph_input(self.stage, n) for n in range(len(self.stage.inputs))]
        self.rows = self.requests[-1]
        self.tables = {name: self._table(name, value) for name, value in self.mapped.items()}

        self.tape = ir.tape.Tape()
        self._lay_grid()
        for i in self.foreign.inputs:
            ir.convenience.replace_all_uses_with(
                inputs[i.name], self._feed(i), replace_graph_outputs=True
            )
        before = self.tape
        self.tape = ir.tape.Tape()
        outputs = self._best(score, both_classes)

        if len(graph):
            graph.insert_before(graph[0], before.nodes)
        else:
            graph.extend(before.nodes)
        graph.extend(self.tape.nodes)
        for replaced, values in ((graph.inputs, self.requests), (graph.outputs, outputs)):
            replaced.clear()
            replaced.extend(values)
        self.model.ir_version = IR_VERSION
        ir.passes.common.NameFixPass()(self.model)

    def _detach_names(self) -> None:
        """Give the foreign values names, and shapes, that cannot be taken for the stage's.

        ONNX Runtime takes two symbolic dimensions of one name for equal and shares buffers on it.
        """
        graph = self.model.graph
        values = [*graph.inputs, *graph.initializers.values()]
        for node in graph.all_nodes():
            values += node.outputs
        for subgraph in graph.subgraphs():
            values += [*subgraph.inputs, *subgraph.initializers.values()]
        for value in dict.fromkeys(values):
            if value.name:
                value.name = PREFIX + value.name
            if value.const_value is None:
                value.shape = None

    def _op(self, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self.tape.op(kind, inputs, attributes)

    def _constant(self, value: Any, dtype: Any = np.int64) -> ir.Value:
        name = f"constant_{len(self.model.graph.initializers)}"
        return self._initializer(ir.tensor(np.array(value, dtype), name=name))

    def _table(self, name: str, value: Mapped) -> ir.Value:
        dtype, shape = ir.DataType.from_numpy(np.dtype(value.dtype)), ir.Shape(value.shape)
        return self._initializer(
            ir.ExternalTensor(
                value.file, 0, value.nbytes, dtype, shape=shape, name=name, base_dir=self.folder
            )
        )

    def _initializer(self, tensor: Any) -> ir.Value:
        value = ir.Value(
            name=tensor.name,
            shape=tensor.shape,
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.model.graph.register_initializer(value)
        return value

    def _lay_grid(self) -> None:
        """The stage's rows [B, K] as flat catalogue rows [B * K], pads as row 0."""
        self.shape = self._op("Shape", self.rows)
        self.zero = self._constant(0)
        self.pads = self._op("Less", self.rows, self.zero)
        real = self._op("Where", self.pads, self.zero, self.rows)
        self.flat = self._op("Reshape", real, self._constant([-1]))
        one, places = self._constant([1]), self._op("Gather", self.shape, self._constant([1]))
        self.repeat = self._op("Concat", one, places, one, axis=0)

    def _feed(self, i: Input) -> ir.Value:
        """What an input of the foreign graph takes, [B * K, columns] or [B * K]."""
        parts = []
        for source, columns in groupby(i.columns, key=lambda column: column.source):
            part = self._block(source, list(columns))
            parts.append(self._op("Cast", part, to=int(i.dtype)))
        whole = self._op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
        return self._op("Reshape", whole, self._constant([-1])) if i.rank == 1 else whole

    def _block(self, source: str, columns: list[Column]) -> ir.Value:
        """Some columns of one encoded tensor, [B * K, columns]."""
        positions = [column.position for column in columns]
        if source in ITEM_TABLES:
            table = self.tables[MAPPED.format(source)]
            return self._choose(self._op("Gather", table, self.flat, axis=0), table, positions)
        user = next(value for value in self.requests if value.name == source)
        chosen = self._choose(user, user, positions)  # [B, columns], before it is repeated
        single = self._op("Reshape", chosen, self._constant([0, 1, len(positions)]))
        repeated = self._op("Expand", single, self.repeat)  # [B, K, columns]
        return self._op("Reshape", repeated, self._constant([-1, len(positions)]))

    def _choose(self, value: ir.Value, whole: ir.Value, positions: list[int]) -> ir.Value:
        assert whole.shape is not None
        if positions == list(range(int(whole.shape[1]))):
            return value
        return self._op("Gather", value, self._constant(positions), axis=1)

    def _best(self, score: ir.Value, both_classes: bool) -> list[ir.Value]:
        """The foreign output, [B * K] or [B * K, 1 or 2] -> item ids and probabilities [B, K']."""
        keep = self.stage.outputs[0].dims[0]
        if both_classes:
            score = self._op("Gather", score, self._constant(-1), axis=1)
        score = self._op("Cast", score, to=int(ir.DataType.FLOAT))
        grid = self._op("Reshape", score, self.shape)
        lowest, nothing = self._constant(-np.inf, np.float32), self._constant(0, np.float32)
        masked = self._op("Where", self.pads, lowest, grid)
        best, places = self.tape.op_multi_out(
            "TopK", [masked, self._constant([keep])], {"axis": 1}, num_outputs=2
        )
        chosen = self._op("GatherElements", self.rows, places, axis=1)
        lost = self._op("Less", chosen, self.zero)
        safe = self._op("Where", lost, self.zero, chosen)
        ids = self._op("Gather", self.tables[CATALOGUE_IDS], safe, axis=0)  # [B, K', 1]
        ids = self._op("Reshape", ids, self._constant([0, keep]))
        probability = self._op("Sigmoid", best) if self.foreign.is_logit else best
        outputs = [
            self._op("Where", lost, self._constant(-1), ids),
            self._op("Where", lost, nothing, probability),
        ]
        for value, tensor in zip(outputs, self.stage.outputs, strict=True):
            _declare(value, tensor.name, tensor.dtype, ["stage_users", keep])
        return outputs


def _graph_input(stage: Stage, position: int) -> ir.Value:
    tensor, value = stage.inputs[position], ir.Value()
    width = "stage_rows" if position == len(stage.inputs) - 1 else tensor.dims[0]
    _declare(value, tensor.name, tensor.dtype, ["stage_users", width])
    return value


def _declare(value: ir.Value, name: str, dtype: str, dims: list[str | int]) -> None:
    value.name, value.shape = name, ir.Shape(dims)
    value.type = ir.TensorType({"FP32": ir.DataType.FLOAT, "INT64": ir.DataType.INT64}[dtype])


def draw_users(schema: Schema, count: int, random: np.random.Generator) -> tuple[Array, Array]:
    """Random encoded users: dense [B, F_dense], ids [B, C]."""
    dense = random.exponential(size=(count, schema.dense_width("user"))).astype(np.float32)
    ids = np.zeros((count, schema.ids_width("user")), np.int64)
    column = 0
    for feature in schema.ids("user"):
        members = random.integers(feature.cardinality, size=(count, feature.length))
        ids[:, column : column + feature.length] = members
        column += feature.length
    return dense, ids


def flat_rows(dense: Array, ids: Array, items: Catalogue, rows: Array) -> Rows:
    """Users [n, F] beside catalogue rows [n]."""
    return {
        "user_dense": dense,
        "user_ids": ids,
        "item_dense": items.dense[rows],
        "item_ids": items.ids[rows],
    }


def compare(
    foreign: Foreign, stage: Stage, schema: Schema, items: Catalogue, folder: Path
) -> list[parity.Parity]:
    """Reload the wrapped graph, and run it beside the file itself on random users."""
    _, graph = load_graph(folder, schema, Serving(threads=1))
    random, found = np.random.default_rng(1), []
    for batch in PARITY_BATCHES:
        users = draw_users(schema, batch, random)
        rows = np.full((batch, stage.inputs[-1].dims[0]), -1, np.int64)
        for b in range(batch):
            # The last of several users has fewer candidates than results.
            most = rows.shape[1] if b == 0 or b < batch - 1 else stage.outputs[0].dims[0] // 2
            real = min(len(items), most)
            places = random.choice(rows.shape[1], real, replace=False)
            rows[b, places] = random.choice(len(items), real, replace=False)
        differences, shared, wanted = [0.0], 0, 0
        for b, (ids, scores) in enumerate(zip(*graph(*users, rows), strict=True)):
            expected = _expected(foreign, users, b, items, rows[b])
            difference, common = _judge(expected, ids, scores)
            differences.append(difference)
            shared, wanted = shared + common, wanted + min(len(ids), len(expected))
        largest = float(np.max(differences))
        found.append(parity.Parity(stage.name, "onnx", batch, largest, shared / max(1, wanted)))
    return found


def _expected(
    foreign: Foreign, users: tuple[Array, Array], b: int, items: Catalogue, rows: Array
) -> dict[int, float]:
    """Probability by item id of one user's candidates, from the file as it came."""
    real = rows[rows >= 0]
    dense, ids = (np.repeat(values[b : b + 1], len(real), axis=0) for values in users)
    values = foreign.probabilities(flat_rows(dense, ids, items, real))
    return dict(zip(items.item_ids[real].tolist(), values.tolist(), strict=True))


def _judge(expected: dict[int, float], ids: Array, scores: Array) -> tuple[float, int]:
    """-> largest difference of a score, and how many ids belong to the top K; a tie may fall
    either way."""
    best = np.sort(list(expected.values()))[::-1][: len(ids)]
    padded = np.zeros(len(ids))
    padded[: len(best)] = best
    got = ids[ids >= 0].tolist()
    if len(set(got)) != len(best) or not expected.keys() >= set(got):
        return float("inf"), 0
    own = np.array([expected[i] for i in got])
    difference = np.abs(padded - scores).max(initial=0)
    difference = max(difference, np.abs(own - scores[: len(own)]).max(initial=0))
    least = best[-1] - TIE * abs(best[-1]) if len(best) else 0.0
    return float(difference), int((own >= least).sum())
