"""Derives from a flat graph of (user, item) rows what serving needs: a graph of the items, run once
per release, and a graph of users and candidates, run per request.

The flat graph is walked node by node. Rules (`moves`, `linear`, `elementwise`) say what a node does
to each side; what no rule knows runs over pairs, as the flat graph does, and that is always right.

Neither onnx-ir's passes nor onnxscript's rewriter does this. The passes tidy a graph up (unused
nodes, equal nodes, names, shapes), and a rewriting rule matches a fixed pattern of neighbouring
operations. Here it depends on the way from the inputs which columns of a value are the user's, and
that is carried from node to node as a property of every element: an analysis of the data flow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx

from cascade.artifact import Array
from cascade.errors import CascadeError
from export.foreign.split import elementwise, linear, moves
from export.foreign.split.assemble import assembled_graphs, nodes_of
from export.foreign.split.derived import NAMES, Derived, Kept
from export.foreign.split.known import Known, attributes
from export.foreign.split.observe import observe
from export.foreign.split.prove import LARGEST_DIFFERENCE, column, difference
from export.foreign.split.repeats import ELEMENTWISE
from export.foreign.split.values import (
    BOTH,
    ITEM,
    SIDES,
    USER,
    Cost,
    Mosaic,
    Opaque,
    Part,
    Side,
    Value,
)
from export.foreign.split.writer import CANDIDATES, GRID, PREFIX

USUAL = 200  # candidates of a user, where nothing is said of them
RULES = elementwise.RULES | moves.RULES | linear.RULES
# Rules that do not mind where the rows stand.
MOVES_ROWS = ("Flatten", "Gather", "GatherND", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
ALONG_ROWS = (*ELEMENTWISE, *elementwise.ROWWISE, "MatMul")  # if all stand alike
READS_ONE = ("Reshape", "Expand", "Squeeze", "Unsqueeze")  # their second input is a shape


class NotSplit(CascadeError):
    """A graph that cannot be taken apart: the message names the operation."""


def derive(
    model: onnx.ModelProto,
    sides: Mapping[str, Sequence[Side]],
    feeds: Callable[[int], Mapping[str, Array]],
    output: str,
    candidates: int = USUAL,
) -> Derived:
    """Take a flat graph apart.

    Args:
        sides: for each input [rows, columns] or [rows] the side of every column.
        feeds: draws so many rows for every input, such that no two rows are equal.
        output: which output to derive.
        candidates: of a user, as a rule: what costs least depends on it, what comes out does not.

    Raises:
        NotSplit: the output has no rows, a part of the graph cannot be run, or what was derived
            gives something else.
    """
    try:
        walk = _Walk(model, sides, feeds, output, candidates)
        flat = sum(map(walk.cost, model.graph.node), Cost())
        made = (walk.writer, walk.inputs, walk.output, walk.kept, flat)
        derived = assembled_graphs(model, *made)
        found = difference(model, derived, sides, feeds, output)
    except NotSplit:
        raise
    except Exception as error:  # of a rule that met what it was not made for, or of ONNX Runtime
        raise NotSplit(f"it cannot be looked into: {type(error).__name__}: {error}") from error
    if not found <= LARGEST_DIFFERENCE:
        raise NotSplit(f"what was derived differs from it by {found:.1e}")
    return derived


class _Walk(Known):
    def __init__(
        self,
        model: onnx.ModelProto,
        sides: Mapping[str, Sequence[Side]],
        feeds: Callable[[int], Mapping[str, Array]],
        output: str,
        candidates: int,
    ) -> None:
        super().__init__(model, observe(model, feeds), candidates)
        self.kept: Counter[Kept] = Counter()
        self.made: dict[str, onnx.NodeProto] = {}  # by original output, if computed as it is
        self.repeated: dict[tuple[Side, str], str] = {}  # the same, on another side
        self.shapes: set[str] = set()  # values that depend on shapes alone
        self.counts: set[str] = set()  # of these, what depends on the number of rows alone
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
            if self._counts_rows(node, reads):
                self.counts |= {*outputs}
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

    def _counts_rows(self, node: onnx.NodeProto, reads: Sequence[str]) -> bool:
        """Whether outputs of this node, which depend on shapes alone, can be had on any side."""
        if node.op_type == "Shape" and node.input[0] in self.observed.axis:
            return True
        return all(self.is_constant(name) or name in self.counts for name in reads)

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
        bound = {n: value.side for n, value in solid.items() if n not in self.counts}
        sides = {*bound.values()} or {value.side for value in solid.values()}
        side = sides.pop() if len(sides) == 1 else BOTH
        one_sided = not all(value.sides == {BOTH} for value in values.values())
        if side == BOTH and one_sided and not self.shapes.issuperset(outputs):
            read = frozenset().union(*(value.sides for value in values.values()))
            names = tuple(NAMES[one] for one in SIDES if one in read)
            self.kept[Kept(node.op_type, names, _why(node.op_type))] += 1
        inputs = {name: self._laid(name, solid[name], side) for name in reads}
        self._copy(node, side, inputs, {})
        for name in outputs:
            self.made[name] = node
            # What counts the rows, as a Range does, is another row for a pair than for its user.
            counts = name in self.shapes and name not in self.observed.alike
            if name not in self.observed.axis or counts:
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
            return value.name if value.side == side else self._again(name, side)
        if name in self.counts and side != BOTH and value.side != side:
            return self._again(name, side)
        tensor, rows = self.writer.on(side, value), self.observed.axis[name]
        if not rows:
            return tensor
        order = [*range(1, len(value.shape) + 1)]
        order.insert(rows, 0)
        return self.writer.op(side, "Transpose", tensor, perm=order)

    def _again(self, name: str, side: Side) -> str:
        """An original value, computed once more: over pairs, or on any side if it counts rows."""
        if (side, name) in self.repeated:
            return self.repeated[side, name]
        node = self.made[name]
        if node.op_type == "Shape" and name in self.counts:
            shape = [self.writer.ints(n) for n in self.row(node.input[0])]
            shape.insert(self.observed.axis[node.input[0]], self._count(side))
            options = attributes(node)
            shape = shape[options.get("start", 0) : options.get("end", len(shape))]
            self.repeated[side, name] = self.writer.op(side, "Concat", *shape, axis=0)
            return self.repeated[side, name]
        solid = {n: self.values[n] for n in self._reads(node)}
        inputs = {
            n: self._laid(n, v if isinstance(v, Opaque) else self.writer.solid(v), side)
            for n, v in solid.items()
        }
        outputs = {output: f"{PREFIX}{side}/{output}" for output in node.output if output}
        self._copy(node, side, inputs, outputs)
        self.repeated |= {(side, old): new for old, new in outputs.items()}
        return self.repeated[side, name]

    def _count(self, side: Side) -> str:
        """How many rows a side has, [1]."""
        writer = self.writer
        if side == ITEM:
            some = next(part for part in self.inputs if part.side == ITEM)
            shape = writer.op(ITEM, "Shape", some.name)
            return writer.op(ITEM, "Gather", shape, writer.ints(0), axis=0)
        users = writer.op(USER, "Gather", GRID, writer.ints(0), axis=0)
        return users if side == USER else writer.op(BOTH, "Mul", users, CANDIDATES)

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
        for inner in nodes_of(copy):
            for place, name in enumerate(inner.input):
                inner.input[place] = inputs.get(name, name)
        for place, name in enumerate(copy.output):
            copy.output[place] = outputs.get(name, name)
        self.writer.nodes[side].append(copy)
        self.writer.costs[copy.output[0]] = self.cost(node)

    def _reads(self, node: onnx.NodeProto) -> list[str]:
        """The values that a node reads, those in its subgraphs included, without constants."""
        names = dict.fromkeys((*node.input, *self._captured(node)))
        return [name for name in names if name and not self.is_constant(name)]

    def _captured(self, node: onnx.NodeProto) -> list[str]:
        """What its subgraphs read from outside."""
        inside = [*nodes_of(node)][1:]
        made = {name for inner in inside for name in inner.output}
        read = dict.fromkeys(name for inner in inside for name in inner.input)
        return [n for n in read if n not in made and (n in self.values or self.is_constant(n))]


def _why(kind: str) -> str:
    """What keeps an operation over pairs that reads something of one side alone."""
    if kind not in RULES:
        return "no rule"
    return "needs both" if kind in ELEMENTWISE else "its rule does not apply"
