"""Rules for operations that treat every element, or every row of an axis, alike: side by side along
an axis that tells the sides apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from cascade.artifact import Array
from export.foreign.split import linear
from export.foreign.split.known import Known, attributes
from export.foreign.split.repeats import ELEMENTWISE
from export.foreign.split.values import (
    BOTH,
    CODES,
    SIDES,
    USER,
    Mosaic,
    Part,
    Value,
    assembled,
)
from export.foreign.split.writer import row_of

ROWWISE = ("Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization")
LARGEST_GRID = 3  # axes of a row that the user's part is broadcast over by the operation itself


def elementwise(known: Known, node: onnx.NodeProto) -> Value | None:
    """Any of `ELEMENTWISE`. None where every element needs both sides, or all are of one."""
    if node.op_type in ("Add", "Sub") and (found := linear.add(known, node)):
        return found
    if node.op_type in ("Mul", "Div", "Neg", "Identity") and (found := linear.scale(known, node)):
        return found
    shape = known.row(node.output[0])
    names = [name for name in dict.fromkeys(node.input) if name]
    if node.op_type == "Clip":  # its bounds are scalars
        if not all(map(known.is_constant, names[1:])):
            return None
        names = names[:1]
    constants: dict[str, Array] = {}
    for name in filter(known.is_constant, names):
        row = row_of(known.constant(name), len(shape), known.observed.axis[node.output[0]])
        if row is None:
            return None
        constants[name] = row
    mosaics = {n: known.writer.mosaic(known.values[n]) for n in names if n not in constants}
    if any(len(mosaic.shape) != len(shape) for mosaic in mosaics.values()):
        return None
    if len(frozenset().union(*(mosaic.sides for mosaic in mosaics.values()))) == 1:
        return None
    for axis in range(len(shape)):
        kinds = _kinds([*mosaics.values()], shape, axis)
        if kinds is None:
            continue
        if not np.isin(kinds, [1 << CODES[side] for side in SIDES[:2]]).any():
            break  # nothing would stay on one side
        pieces = []
        for kind in np.unique(kinds):
            where = np.flatnonzero(kinds == kind)
            some = {n: _some(m, where, axis, shape) for n, m in mosaics.items()}
            values = {n: _some_of(c, where, axis, shape) for n, c in constants.items()}
            piece = [len(where) if a == axis else n for a, n in enumerate(shape)]
            pieces.append((where, Mosaic.of(_direct(known, node, some, values, piece))))
        return assembled(pieces, axis)
    if all(len(mosaic.sides) == 1 for mosaic in mosaics.values()):
        return Mosaic.of(_direct(known, node, mosaics, constants, shape))
    return None


def _kinds(mosaics: Sequence[Mosaic], shape: Sequence[int], axis: int) -> Array | None:
    """For each coordinate along an axis the sides that it needs, as bits; None where the axis does
    not tell the sides apart."""
    kinds = np.zeros(shape[axis], np.int64)
    for mosaic in mosaics:
        if mosaic.shape[axis] == 1 != shape[axis]:  # broadcast
            if len(mosaic.sides) > 1:
                return None
            kinds |= 1 << CODES[next(iter(mosaic.sides))]
            continue
        found = mosaic.by_axis(axis)
        if found is None:
            return None
        for side, where in found.items():
            kinds[where] |= 1 << CODES[side]
    return kinds


def _some(mosaic: Mosaic, where: Array, axis: int, shape: Sequence[int]) -> Mosaic:
    broadcast = mosaic.shape[axis] == 1 != shape[axis]
    return mosaic if broadcast else mosaic.take(where, axis)


def _some_of(constant: Array, where: Array, axis: int, shape: Sequence[int]) -> Array:
    broadcast = constant.shape[axis + 1] == 1 != shape[axis]
    return constant if broadcast else np.take(constant, where, axis + 1)


def _direct(
    known: Known,
    node: onnx.NodeProto,
    mosaics: Mapping[str, Mosaic],
    constants: Mapping[str, Array],
    shape: Sequence[int],
) -> Part:
    """The operation on tensors. Where it meets a user's, it broadcasts that over the candidates
    itself, and what an item repeats, too."""
    writer = known.writer
    parts = {name: writer.solid(mosaic) for name, mosaic in mosaics.items()}
    sides = {part.side for part in parts.values()}
    fixed = {name: name for name in node.input if known.is_constant(name)}
    fixed |= {name: writer.constant(value) for name, value in constants.items()}

    def inputs(names: Mapping[str, str]) -> list[str]:
        return [(names | fixed).get(name, "") for name in node.input]  # type: ignore[operator]

    if len(sides) == 1:
        own = {name: part.name for name, part in parts.items()}
        return known.same(node, next(iter(sides)), shape, *inputs(own))
    once = {name: writer.once(part) for name, part in parts.items()}
    if _broadcast([part.shape for part in once.values()], constants) == tuple(shape):
        parts = once
    if USER in sides and len(shape) <= LARGEST_GRID:
        grids = {name: writer.grid(part) for name, part in parts.items()}
        grid = writer.op(BOTH, node.op_type, *inputs(grids), **attributes(node))
        dtype = known.observed.dtype[node.output[0]]
        return Part(BOTH, writer.flat(grid, shape), tuple(shape), dtype)
    pairs = {name: writer.rows(part) for name, part in parts.items()}
    return known.same(node, BOTH, shape, *inputs(pairs))


def _broadcast(
    shapes: Sequence[tuple[int, ...]], constants: Mapping[str, Array]
) -> tuple[int, ...]:
    """What comes out of tensors of rows of these shapes, and constants [1, *row]."""
    return np.broadcast_shapes(*shapes, *(value.shape[1:] for value in constants.values()))


def rowwise(known: Known, node: onnx.NodeProto) -> Value | None:
    """Softmax and normalisations over the last axes: along any axis before them."""
    out = node.output[0]
    axis = attributes(node).get("axis", -1 if known.writer.opset >= 13 else 1)
    rank = len(known.row(out)) + 1
    if axis % rank <= known.observed.axis[out]:
        return None
    mosaic = known.writer.mosaic(known.values[node.input[0]])
    if len(mosaic.sides) == 1 or not all(map(known.is_constant, node.input[1:])):
        return None
    return known.by_side(node, mosaic, range(axis % rank - 1))


def batch_norm(known: Known, node: onnx.NodeProto) -> Value | None:
    """What it is in inference: every channel times a constant plus a constant."""
    source, *rest = node.input
    if attributes(node).get("training_mode") or not all(map(known.is_constant, rest)):
        return None
    value = known.writer.mosaic(known.values[source])
    scale_, bias, mean, variance = map(known.constant, rest)
    slope = scale_ / np.sqrt(variance + scale_.dtype.type(attributes(node).get("epsilon", 1e-5)))
    start = bias - mean * slope

    def normalised(part: Part, where: Array) -> Part:
        shape = (-1, *[1] * (len(part.shape) - 1))
        writer = known.writer
        by, plus = (writer.constant(v[where].reshape(shape), v.dtype) for v in (slope, start))
        scaled = writer.part(part.side, part.shape, part.dtype, "Mul", part.name, by)
        return writer.part(part.side, part.shape, part.dtype, "Add", scaled.name, plus)

    return known.by_side(node, value, [0], normalised)


RULES = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(ROWWISE, rowwise),
    "BatchNormalization": batch_norm,
}
