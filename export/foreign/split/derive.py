"""Derives from a flat graph of (user, item) rows what serving needs: a graph of the items, run once
per release, and a graph of users and candidates, run per request.

The flat graph is walked node by node. Rules (`moves`, `linear`, `elementwise`) say what a node does
to each side; what no rule knows runs over pairs, as the flat graph does, and that is always right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from cascade.artifact import Array
from cascade.errors import CascadeError
from export.foreign.split import elementwise, linear, moves
from export.foreign.split.known import Known
from export.foreign.split.observe import observe
from export.foreign.split.values import (
    BOTH,
    ITEM,
    USER,
    Mosaic,
    Opaque,
    Part,
    Side,
    Value,
)
from export.foreign.split.writer import CANDIDATES, GRID, PREFIX

ROWS = f"{PREFIX}rows"  # int64 [B, K], the input of which the shape is read
NAMES: dict[Side, str] = {USER: "user", ITEM: "item", BOTH: "candidate"}
RULES = elementwise.RULES | moves.RULES | linear.RULES
# Rules that do not mind where the rows stand.
MOVES_ROWS = ("Flatten", "Gather", "GatherND", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
ALONG_ROWS = (*elementwise.ELEMENTWISE, *elementwise.ROWWISE, "MatMul")  # if all stand alike
READS_ONE = ("Reshape", "Expand", "Squeeze", "Unsqueeze")  # their second input is a shape


class NotSplit(CascadeError):
    """A graph that cannot be taken apart: the message names the operation."""


@dataclass(frozen=True)
class Derived:
    """The two graphs.

    Args:
        items: from the items' inputs [N, ...] to `parts` [N, *shape]; None where the score depends
            on no item.
        pairs: from the users' inputs [B, ...], `parts` [B * K, *shape] and `ROWS` to the output
            [B * K, ...].
        parts: what pairs read of an item.
        output: the output's name in `pairs`.
        kept: how often each operation is computed over pairs and reads what only one side has.
        work: multiply-adds of products per user, per item and per pair; flat: in the flat graph.
    """

    items: onnx.ModelProto | None
    pairs: onnx.ModelProto
    parts: tuple[Part, ...]
    output: str
    kept: Counter[str]
    work: Counter[Side]
    flat: int

    def report(self) -> str:
        """What was moved where, in a line."""
        work = ", ".join(f"{self.work[side]:,} per {name}" for side, name in NAMES.items())
        kept = ", ".join(f"{kind} {n}x" for kind, n in self.kept.most_common(4)) or "nothing"
        size = sum(part.size for part in self.parts)
        return (
            f"multiply-adds {work}; flat {self.flat:,} per candidate. An item's state has {size:,} "
            f"numbers. Computed per candidate for want of a rule, or because it needs both: {kept}"
        )


def derive(
    model: onnx.ModelProto,
    sides: Mapping[str, Sequence[Side]],
    feeds: Callable[[int], Mapping[str, Array]],
    output: str,
) -> Derived:
    """Take a flat graph apart.

    Args:
        sides: for each input [rows, columns] or [rows] the side of every column.
        feeds: draws so many rows for every input, such that no two rows are equal.
        output: which output to derive.

    Raises:
        NotSplit: the output has no rows.
    """
    return _Walk(model, sides, feeds, output).derived()


def column(name: str, side: Side) -> str:
    """The name of one side's columns of an input that both sides feed."""
    return f"{PREFIX}{name}/{side}"


class _Walk(Known):
    def __init__(
        self,
        model: onnx.ModelProto,
        sides: Mapping[str, Sequence[Side]],
        feeds: Callable[[int], Mapping[str, Array]],
        output: str,
    ) -> None:
        super().__init__(model, observe(model, feeds))
        self.model = model
        self.kept: Counter[str] = Counter()
        self.made: dict[str, onnx.NodeProto] = {}  # by original output, if computed as it is
        self.repeated: dict[str, str] = {}  # the same, over pairs
        self.shapes: set[str] = set()  # values that depend on shapes alone
        self.inputs: list[Part] = []
        for name, of_columns in sides.items():
            self.values[name] = self._input(name, of_columns)
        for node in model.graph.node:
            self._step(node)
        value = self.values.get(output)
        if value is None or isinstance(value, Opaque):
            raise NotSplit(f"output {output!r} does not depend on the rows, or not row by row")
        self.output = self.writer.solid(value)

    def _input(self, name: str, of_columns: Sequence[Side]) -> Mosaic:
        shape, dtype = self.row(name), self.observed.dtype[name]
        sides = list(dict.fromkeys(of_columns))
        if len(sides) == 1:
            return Mosaic.of(self._fed(Part(sides[0], name, shape, dtype)))
        numbers, places = np.zeros(shape, np.int32), np.zeros(shape, np.int64)
        parts = []
        for number, side in enumerate(sides):
            where = [place for place, of in enumerate(of_columns) if of == side]
            numbers[where], places[where] = number, range(len(where))
            parts.append(self._fed(Part(side, column(name, side), (len(where),), dtype)))
        return Mosaic(tuple(parts), numbers, places)

    def _fed(self, part: Part) -> Part:
        """An input as a value. A graph's output cannot be its input, so an item's is copied."""
        self.inputs.append(part)
        if part.side != ITEM:
            return part
        return self.writer.part(ITEM, part.shape, part.dtype, "Identity", part.name)

    def _step(self, node: onnx.NodeProto) -> None:
        outputs = [name for name in node.output if name]
        reads = [name for name in (*node.input, *self._captured(node)) if name]
        known = all(self.is_constant(name) or name in self.shapes for name in reads)
        if known or node.op_type == "Shape":
            self.shapes |= {*outputs}
            fixed = {n: v for n, v in self.observed.fixed.items() if n in outputs}
            self.writer.constants |= fixed
            if len(fixed) == len(outputs):
                return
        found = self._by_rule(node, outputs)
        if found is None:
            self._as_it_is(node, outputs)
            return
        for name, value in zip(outputs, found, strict=True):
            assert not isinstance(value, Opaque)
            assert value.shape == self.row(name), (node.op_type, value.shape, self.row(name))
            self.values[name] = value

    def _by_rule(self, node: onnx.NodeProto, outputs: list[str]) -> list[Value] | None:
        """What a rule makes of the node; None where none applies."""
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        read = node.input[:1] if node.op_type in READS_ONE else node.input
        names = [name for name in read if name and not self.is_constant(name)]
        axis = self.observed.axis
        if (
            rule is None
            or not names
            or not all(name in axis for name in (*names, *outputs))
            or any(isinstance(self.values[name], Opaque) for name in names)
            or not self._in_step(node.op_type, {axis[name] for name in (*names, *outputs)})
        ):
            return None
        found: list[Value] | Value | None = rule(self, node)
        return found if found is None or isinstance(found, list) else [found]

    def _in_step(self, kind: str, axes: set[int]) -> bool:
        """Whether a rule copes with where the rows stand."""
        return kind in MOVES_ROWS or axes == {0} or (kind in ALONG_ROWS and len(axes) == 1)

    def _as_it_is(self, node: onnx.NodeProto, outputs: list[str]) -> None:
        """Keep the node: on one side where all that it reads is there, else over pairs."""
        reads = self._reads(node)
        values = {name: self.values[name] for name in reads}
        solid = {n: v if isinstance(v, Opaque) else self.writer.solid(v) for n, v in values.items()}
        sides = {value.side for value in solid.values()}
        side = sides.pop() if len(sides) == 1 else BOTH
        one_sided = not all(value.sides == {BOTH} for value in values.values())
        if side == BOTH and one_sided and not self.shapes.issuperset(outputs):
            self.kept[node.op_type] += 1
        self.work[side] += self.multiply_adds(node)
        inputs = {name: self._laid(name, solid[name], side) for name in reads}
        self._copy(node, side, inputs, {})
        for name in outputs:
            self.made[name] = node
            if name not in self.observed.axis:
                self.values[name] = Opaque(side, name)
                continue
            row, tensor = self.row(name), name
            if first := self.observed.axis[name]:
                order = [first, *(axis for axis in range(len(row) + 1) if axis != first)]
                tensor = self.writer.op(side, "Transpose", name, perm=order)
            self.values[name] = Mosaic.of(Part(side, tensor, row, self.observed.dtype[name]))

    def _laid(self, name: str, value: Part | Opaque, side: Side) -> str:
        """The tensor of an original value on a side, its rows where the original nodes expect
        them."""
        if isinstance(value, Opaque):
            return value.name if value.side == side else self._again(name)
        tensor, rows = self.writer.on(side, value), self.observed.axis[name]
        if not rows:
            return tensor
        order = [*range(1, len(value.shape) + 1)]
        order.insert(rows, 0)
        return self.writer.op(side, "Transpose", tensor, perm=order)

    def _again(self, name: str) -> str:
        """An original value, computed once more over pairs."""
        if name not in self.repeated:
            node = self.made[name]
            solid = {n: self.values[n] for n in self._reads(node)}
            inputs = {
                n: self._laid(n, v if isinstance(v, Opaque) else self.writer.solid(v), BOTH)
                for n, v in solid.items()
            }
            outputs = {output: f"{PREFIX}pairs/{output}" for output in node.output if output}
            self._copy(node, BOTH, inputs, outputs)
            self.repeated |= outputs
        return self.repeated[name]

    def _copy(
        self,
        node: onnx.NodeProto,
        side: Side,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
    ) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = ""
        for inner in _nodes(copy):
            for place, name in enumerate(inner.input):
                inner.input[place] = inputs.get(name, name)
        for place, name in enumerate(copy.output):
            copy.output[place] = outputs.get(name, name)
        self.writer.nodes[side].append(copy)

    def _reads(self, node: onnx.NodeProto) -> list[str]:
        """The values that a node reads, those in its subgraphs included, without constants."""
        names = dict.fromkeys((*node.input, *self._captured(node)))
        return [name for name in names if name and not self.is_constant(name)]

    def _captured(self, node: onnx.NodeProto) -> list[str]:
        """What its subgraphs read from outside."""
        inside = [*_nodes(node)][1:]
        made = {name for inner in inside for name in inner.output}
        read = dict.fromkeys(name for inner in inside for name in inner.input)
        return [n for n in read if n not in made and (n in self.values or self.is_constant(n))]

    def derived(self) -> Derived:
        """The graphs, without the nodes that nothing needs."""
        writer = self.writer
        output = writer.rows(self.output)
        shapes = [
            helper.make_node("Shape", [ROWS], [GRID]),
            helper.make_node("Gather", [GRID, writer.ints(1)], [CANDIDATES], axis=0),
        ]
        nodes = [*shapes, *writer.nodes[USER], *writer.nodes[BOTH]]
        nodes, needed = _needed(nodes, [output])
        parts = [part for part in writer.item_parts.values() if part.name in needed]
        rows = helper.make_tensor_value_info(ROWS, onnx.TensorProto.INT64, [None, None])
        users = [part for part in self.inputs if part.side == USER and part.name in needed]
        made = Part(BOTH, output, self.output.shape, self.output.dtype)
        pairs = self._model(nodes, needed, [*map(_info, [*users, *parts]), rows], [made])
        items = None
        if parts:
            nodes, needed = _needed(writer.nodes[ITEM], [part.name for part in parts])
            raw = [part for part in self.inputs if part.side == ITEM and part.name in needed]
            items = self._model(nodes, needed, [*map(_info, raw)], parts)
        flat = sum(map(self.multiply_adds, self.model.graph.node))
        return Derived(items, pairs, tuple(parts), output, self.kept, self.work, flat)

    def _model(
        self,
        nodes: list[onnx.NodeProto],
        needed: set[str],
        inputs: list[onnx.ValueInfoProto],
        outputs: Sequence[Part],
    ) -> onnx.ModelProto:
        constants = self.writer.constants
        tensors = [
            numpy_helper.from_array(np.asarray(constants[name], order="C"), name)
            for name in sorted(needed)
            if name in constants
        ]
        graph = helper.make_graph(nodes, "split", inputs, [*map(_info, outputs)], tensors)
        model = self.model
        how = {"opset_imports": model.opset_import, "functions": model.functions}
        return helper.make_model(graph, ir_version=model.ir_version, **how)


def _info(part: Part) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(part.name, part.dtype, [None, *part.shape])


def _nodes(node: onnx.NodeProto) -> Iterable[onnx.NodeProto]:
    """A node, and those of its subgraphs."""
    yield node
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _nodes(inner)


def _needed(
    nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]
) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that the outputs depend on, and the names of all that these read."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed & set(node.output):
            kept.append(node)
            needed |= {name for inner in _nodes(node) for name in inner.input}
    return kept[::-1], needed
