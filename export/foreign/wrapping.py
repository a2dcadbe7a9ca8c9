"""The nodes around a third-party graph, flat or taken apart, that make it the graph of a stage: the
candidates' rows go in, and the best of them come out."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass

from cascade.artifact import Mapped
from cascade.spec import CATALOGUE_IDS, NOT_FINITE, TASKS, Stage
from cascade.stages.tasks import LOWEST
from export.foreign.apart import STATES, part_input, stored
from export.foreign.inputs import Column, Input
from export.foreign.onnx_model import IR_VERSION, Foreign, model_inputs
from export.foreign.split import ROWS, USER, Derived

TABLES = {"item_dense": "item_dense_table", "item_ids": "item_ids_table"}  # mapped, by source
PREFIX = "ranker/"
LOGITS = "logits"  # the only output of a graph that chooses no items
DTYPES = {"FP32": ir.DataType.FLOAT, "INT64": ir.DataType.INT64}


class Wrapping:
    """One foreign graph and the nodes around it; `model` is changed in place. All nodes have forms
    of opset 11, because the model keeps its own opset. Reshape reads a 0 as "this dimension stays",
    so that a batch of no users passes, too."""

    def __init__(
        self,
        model: ir.Model,
        foreign: Foreign,
        stage: Stage,
        mapped: dict[str, Mapped],
        folder: Path,
        derived: Derived | None,
    ) -> None:
        self.model, self.foreign, self.stage, self.derived = model, foreign, stage, derived
        self.inputs = model_inputs(model)
        output = derived.output if derived else foreign.output
        self.score = next(v for v in model.graph.outputs if v.name == output)
        self._set_apart()
        widths: list[str | int] = [tensor.dims[0] for tensor in stage.inputs[:-1]]
        self.requests = [
            ir.val(tensor.name, DTYPES[tensor.dtype], ["stage_users", width])
            for tensor, width in zip(stage.inputs, [*widths, "stage_rows"], strict=True)
        ]
        self.rows = self.requests[-1]  # [B, K]
        self.tables = {name: self._table(name, value, folder) for name, value in mapped.items()}
        self.tape = ir.tape.Tape()

    def wrap(self, both_classes: bool, logits: bool = False) -> None:
        """Put the nodes before and after the graph; give it the stage's inputs and outputs, or the
        scores of all candidates as its only output; of a model of several tasks, these."""
        graph = self.model.graph
        self._lay_grid()
        fed = (
            self._derived()
            if self.derived
            else {i.name: self._feed(i) for i in self.foreign.inputs}
        )
        for name, value in fed.items():
            old = self.inputs[name]
            ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        graph.insert_before(graph[0], self.tape.nodes)
        self.tape = ir.tape.Tape()
        if self.foreign.mapping.tasks:
            outputs = [self._tasks()]
        else:
            scores = self._scores(both_classes)
            outputs = [scores] if logits else self._best(scores)
        graph.extend(self.tape.nodes)
        graph.inputs.clear()
        graph.inputs.extend(self.requests)
        graph.outputs.clear()
        graph.outputs.extend(outputs)
        self.model.ir_version = IR_VERSION
        RemoveUnusedNodesPass()(self.model)  # a predicted label, say
        NameFixPass()(self.model)

    def _set_apart(self) -> None:
        """Give foreign values a prefix, and drop their shapes. ONNX Runtime takes two symbolic
        dimensions of one name for equal and shares buffers on that ground; it infers the shapes
        that it needs."""
        graph = self.model.graph
        values = [*graph.inputs, *graph.initializers.values()]
        values += [value for node in graph.all_nodes() for value in node.outputs]
        inner = [value for g in graph.subgraphs() for value in g.inputs]
        values += [value for g in graph.subgraphs() for value in g.initializers.values()]
        for value in dict.fromkeys([*values, *inner]):
            if value.name:
                value.name = PREFIX + value.name
        for value in values:
            if value.const_value is None:
                value.shape = None
        for value in inner:  # a Loop wants to know that its counter is one number
            if value.shape is not None:
                value.shape = ir.Shape([d if isinstance(d, int) else None for d in value.shape])

    def _op(self, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self.tape.op(kind, inputs, attributes)

    def _constant(self, value: Any, dtype: type = np.int64) -> ir.Value:
        name = f"constant_{len(self.model.graph.initializers)}"
        return self._initializer(ir.tensor(np.array(value, dtype), name=name))

    def _table(self, name: str, value: Mapped, folder: Path) -> ir.Value:
        dtype, shape = ir.DataType.from_numpy(np.dtype(value.dtype)), ir.Shape(value.shape)
        tensor = ir.ExternalTensor(
            value.file, 0, value.nbytes, dtype, shape=shape, name=name, base_dir=folder
        )
        return self._initializer(tensor)

    def _initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        value = ir.val(tensor.name, const_value=tensor)
        self.model.graph.register_initializer(value)
        return value

    def _lay_grid(self) -> None:
        """The stage's rows [B, K] as flat catalogue rows [B * K], pads as row 0."""
        self.shape = self._op("Shape", self.rows)
        self.zero = self._constant(0)
        self.pads = self._op("Less", self.rows, self.zero)
        real = self._op("Where", self.pads, self.zero, self.rows)
        self.flat = self._op("Reshape", real, self._constant([-1]))
        one, candidates = self._constant([1]), self._op("Gather", self.shape, self._constant([1]))
        self.repeat = self._op("Concat", one, candidates, one, axis=0)

    def _derived(self) -> dict[str, ir.Value]:
        """The inputs of the derived graph: the users' [B, ...], the items' states [B * K, ...]."""
        assert self.derived
        found = {ROWS: self.rows}
        sides = (part_input(i, USER) for i in self.foreign.inputs)
        found |= {name: self._feed(i) for name, i in sides if name in self.inputs}
        for state in STATES:
            parts, start = stored(self.derived.parts, state), 0
            if parts:
                rows = self._op("Gather", self.tables[state], self.flat, axis=0)
            for part in parts:
                value = rows
                if len(parts) > 1:
                    ends = self._constant([start]), self._constant([start + part.size])
                    start += part.size
                    value = self._op("Slice", rows, *ends, self._constant([1]))
                if len(part.shape) != 1:
                    value = self._op("Reshape", value, self._constant([0, *part.shape]))
                found[part.name] = self._op("Cast", value, to=part.dtype)
        return found

    def _feed(self, i: Input) -> ir.Value:
        """The values of an input of the foreign graph, [B * K, columns] or [B * K]."""
        parts = []
        for source, columns in groupby(i.columns, key=lambda column: column.source):
            part = self._block(source, list(columns))
            parts.append(self._op("Cast", part, to=int(i.dtype)))
        whole = self._op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
        return self._op("Reshape", whole, self._constant([-1])) if i.rank == 1 else whole

    def _block(self, source: str, columns: list[Column]) -> ir.Value:
        """Some columns of one encoded tensor, [B * K, columns]."""
        positions = [column.position for column in columns]
        if source in TABLES:
            table = self.tables[TABLES[source]]
            return self._choose(self._op("Gather", table, self.flat, axis=0), table, positions)
        user = next(value for value in self.requests if value.name == source)
        chosen = self._choose(user, user, positions)  # [B, columns], before it is repeated
        if self.derived:
            return chosen
        single = self._op("Reshape", chosen, self._constant([0, 1, len(positions)]))
        repeated = self._op("Expand", single, self.repeat)  # [B, K, columns]
        return self._op("Reshape", repeated, self._constant([-1, len(positions)]))

    def _choose(self, value: ir.Value, whole: ir.Value, positions: list[int]) -> ir.Value:
        """The columns at `positions` of rows of `whole`."""
        assert whole.shape is not None
        if positions == [*range(len(positions))] and whole.shape[1] == len(positions):
            return value
        return self._op("Gather", value, self._constant(positions), axis=1)

    def _scores(self, both_classes: bool) -> ir.Value:
        """Foreign output, [B * K] or [B * K, 1 or 2] -> [B, K], -inf for a pad."""
        score = self.score
        if both_classes:
            score = self._op("Gather", score, self._constant(-1), axis=1)
        grid = self._op("Reshape", self._op("Cast", score, to=int(ir.DataType.FLOAT)), self.shape)
        masked = self._op("Where", self.pads, self._constant(-np.inf, np.float32), grid)
        masked.name, masked.dtype = LOGITS, ir.DataType.FLOAT
        masked.shape = ir.Shape(["stage_users", "stage_rows"])
        return masked

    def _tasks(self) -> ir.Value:
        """Foreign output [B * K, T] -> [B, K, T], of pads that of row 0."""
        shape = self._op("Concat", self.shape, self._constant([-1]), axis=0)
        values = self._op("Cast", self.score, to=int(ir.DataType.FLOAT))
        found = self._op("Reshape", values, shape)
        found.name, found.dtype = TASKS, ir.DataType.FLOAT
        count = len(self.foreign.mapping.tasks)
        found.shape = ir.Shape(["stage_users", "stage_rows", count])
        return found

    def _best(self, masked: ir.Value) -> list[ir.Value]:
        """Scores [B, K] -> the outputs of the stage, [B, K'] each, and how many are not finite. An
        item with such a score loses against all others: runtimes differ in where TopK puts a NaN.
        """
        keep = self.stage.outputs[0].dims[0]
        infinity, lowest = (self._constant(x, np.float32) for x in (np.inf, LOWEST))
        known = self._op("Or", self._op("Less", self._op("Abs", masked), infinity), self.pads)
        scores = self._op("Where", known, masked, lowest)
        best, places = self.tape.op_multi_out(
            "TopK", [scores, self._constant([keep])], {"axis": 1}, num_outputs=2
        )
        chosen = self._op("GatherElements", self.rows, places, axis=1)
        outputs = [chosen]
        if CATALOGUE_IDS in self.tables:
            outputs = self._ids_and_probabilities(chosen, best, keep)
        for value, tensor in zip(outputs, self.stage.outputs, strict=True):
            value.name, value.dtype = tensor.name, DTYPES[tensor.dtype]
            value.shape = ir.Shape(["stage_users", keep])
        return [*outputs, self._counted(self._op("Not", known))]

    def _counted(self, flags: ir.Value) -> ir.Value:
        """bool [B, K] -> how many are true, int64 [B, 1]."""
        numbers = self._op("Cast", flags, to=int(ir.DataType.INT64))
        if self.model.opset_imports[""] < 13:
            found = self._op("ReduceSum", numbers, axes=[1], keepdims=1)
        else:
            found = self._op("ReduceSum", numbers, self._constant([1]), keepdims=1)
        found.name, found.dtype = NOT_FINITE.name, ir.DataType.INT64
        found.shape = ir.Shape(["stage_users", 1])
        return found

    def _ids_and_probabilities(self, chosen: ir.Value, best: ir.Value, keep: int) -> list[ir.Value]:
        lost = self._op("Less", chosen, self.zero)
        safe = self._op("Where", lost, self.zero, chosen)
        ids = self._op("Gather", self.tables[CATALOGUE_IDS], safe, axis=0)  # [B, K', 1]
        ids = self._op("Reshape", ids, self._constant([0, keep]))
        probability = best
        if self.foreign.mapping.meaning == "probability":
            probability = self._op("Max", best, self._constant(0, np.float32))
        elif self.foreign.mapping.is_logit:
            probability = self._op("Sigmoid", best)
        return [
            self._op("Where", lost, self._constant(-1), ids),
            self._op("Where", lost, self._constant(0, np.float32), probability),
        ]
