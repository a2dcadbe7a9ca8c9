"""What is known while a flat graph is walked: its constants, its values so far, and the writer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from cascade.artifact import Array
from export.foreign.split.observe import Observed
from export.foreign.split.values import (
    Cost,
    Mosaic,
    Part,
    Side,
    Sum,
    Value,
    assembled,
    item_bytes,
)
from export.foreign.split.writer import Writer


class Known:
    """The state of a walk; `values` has what earlier nodes gave, by name."""

    def __init__(self, model: onnx.ModelProto, observed: Observed, candidates: int) -> None:
        self.writer = Writer(model)
        self.candidates = candidates  # of a user, as a rule
        self.observed = observed
        self.values: dict[str, Value] = {}

    def is_constant(self, name: str) -> bool:
        return name in self.writer.constants

    def constant(self, name: str) -> Array:
        return self.writer.constants[name]

    def row(self, name: str) -> tuple[int, ...]:
        """The shape of a row of a value."""
        return self.observed.row[name]

    def same(self, node: onnx.NodeProto, side: Side, shape: Sequence[int], *inputs: str) -> Part:
        """The operation of a node on other inputs."""
        dtype = self.observed.dtype[node.output[0]]
        return self.writer.part(side, shape, dtype, node.op_type, *inputs, **attributes(node))

    def by_side(
        self,
        node: onnx.NodeProto,
        mosaic: Mosaic,
        axes: Sequence[int],
        make: Callable[[Part, Array], Part] | None = None,
    ) -> Mosaic | None:
        """An operation on each side's coordinates along one of `axes`, which it treats alike; None
        where no axis tells the sides apart."""
        for axis in axes:
            found = mosaic.by_axis(axis)
            if found is None or len(found) < 2:
                continue
            pieces = []
            for where in found.values():
                part = self.writer.solid(mosaic.take(where, axis))
                if make:
                    made = make(part, where)
                else:
                    shape = list(self.row(node.output[0]))
                    shape[axis] = len(where)
                    made = self.same(node, part.side, shape, part.name, *node.input[1:])
                pieces.append((where, Mosaic.of(made)))
            return assembled(pieces, axis)
        return None

    def cost(self, node: onnx.NodeProto) -> Cost:
        """Of a node of the flat graph, for one row."""
        if not node.output or node.output[0] not in self.observed.row:
            return Cost()
        row = self.row(node.output[0])
        if node.op_type in ("Gemm", "MatMul"):
            inner = (
                self.observed.shapes[node.input[0]][0][-1]
                if node.input[0] in self.observed.shapes
                else self.constant(node.input[0]).shape[-1]
            )
            return Cost(product_of(row) * inner)
        if node.op_type == "Einsum":
            sources, _, out = attributes(node)["equation"].decode().replace(" ", "").partition("->")
            sizes: dict[str, int] = {}
            for letters, name in zip(sources.split(","), node.input, strict=True):
                fixed = self.is_constant(name)
                shape = self.constant(name).shape if fixed else self.observed.shapes[name][0]
                sizes |= zip(letters, shape, strict=False)
            summed = [size for letter, size in sizes.items() if letter not in out]
            return Cost(product_of(row) * product_of(summed) if summed else 0)
        if node.op_type == "Gather" and self.is_constant(node.input[0]):
            return Cost(0, product_of(row) * item_bytes(self.observed.dtype[node.output[0]]))
        return Cost()


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """By name; those that a node leaves out are missing."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def tidy(terms: dict[Side, Part]) -> Value:
    """A sum of one term is that term."""
    return Sum(terms) if len(terms) > 1 else Mosaic.of(next(iter(terms.values())))


def product_of(shape: Sequence[int]) -> int:
    """The number of elements of a shape."""
    return int(np.prod(shape))
