"""Rules for operations that only move elements: done to the positions of a row, they cost nothing
until an operation needs the value as one tensor."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from cascade.artifact import Array
from export.foreign.split.known import Known, attributes, product_of
from export.foreign.split.values import (
    BOTH,
    USER,
    Cost,
    Mosaic,
    Part,
    Sum,
    Value,
    concatenated,
)
from export.foreign.split.writer import GRID

FAR = 1 << 31  # a slice to the end ends beyond this


def moved(known: Known, name: str, move: Callable[[Array], Array]) -> Value:
    """A value of the flat graph with its elements moved."""
    value = known.values[name]
    if isinstance(value, Sum):
        solid = known.writer.solid
        return Sum({s: solid(Mosaic.of(part).moved(move)) for s, part in value.terms.items()})
    assert isinstance(value, Mosaic)
    return value.moved(move)


def reshape(known: Known, node: onnx.NodeProto) -> Value | None:
    """Also Flatten, Squeeze and Unsqueeze. The axis of the rows may stand elsewhere, as long as
    as many elements stand before it."""
    (source, *_), out = node.input, node.output[0]
    axes, shapes = known.observed.axis, known.observed.shapes
    before = (product_of(shapes[name][0][: axes[name]]) for name in (source, out))
    if len({*before}) > 1:
        return None
    return moved(known, source, lambda a: a.reshape(known.row(out)))


def transpose(known: Known, node: onnx.NodeProto) -> Value | None:
    """The axis of the rows may go anywhere."""
    source = node.input[0]
    rows, rank = known.observed.axis[source], len(known.row(source)) + 1
    order = attributes(node).get("perm") or range(rank)[::-1]
    kept = [axis - (axis > rows) for axis in order if axis != rows]
    return moved(known, source, lambda a: a.transpose(kept))


def concat(known: Known, node: onnx.NodeProto) -> Value | None:
    """Of values; a constant among them is left to the flat operation."""
    rank = len(known.row(node.output[0])) + 1
    axis = attributes(node)["axis"] % rank
    if axis == 0 or any(map(known.is_constant, node.input)):
        return None
    mosaics = [known.writer.mosaic(known.values[name]) for name in node.input]
    return concatenated(mosaics, axis - 1)


def slice_(known: Known, node: onnx.NodeProto) -> Value | None:
    """With constant bounds, along any axis but that of the rows."""
    source, *bounds = node.input
    if known.writer.opset < 10 or not all(map(known.is_constant, filter(None, bounds))):
        return None
    starts, ends, *rest = ([int(v) for v in known.constant(b)] if b else None for b in bounds)
    assert starts is not None
    assert ends is not None
    axes = (rest[0] if rest else None) or [*range(len(starts))]
    steps = (rest[1] if len(rest) > 1 else None) or [1] * len(starts)
    index = [slice(None)] * (len(known.row(source)) + 1)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        stop = None if abs(end) >= FAR - 1 or (step < 0 and end < -FAR) else end
        index[axis] = slice(start, stop, step)
    if index[0] not in (slice(None), slice(0, None, 1)):
        return None
    return moved(known, source, lambda a: a[tuple(index[1:])])


def split(known: Known, node: onnx.NodeProto) -> list[Value] | None:
    """Into neighbouring pieces, along any axis but that of the rows."""
    rank = len(known.row(node.input[0])) + 1
    axis = attributes(node).get("axis", 0) % rank
    if axis == 0:
        return None
    mosaic = known.writer.mosaic(known.values[node.input[0]])
    ends = np.cumsum([known.row(out)[axis - 1] for out in node.output])
    where = np.split(np.arange(mosaic.shape[axis - 1]), ends[:-1])
    return [mosaic.take(coordinates, axis - 1) for coordinates in where]


def gather(known: Known, node: onnx.NodeProto) -> Value | None:
    """With constant indices a move; from a constant table a lookup, side by side."""
    data, index = node.input
    axis = attributes(node).get("axis", 0)
    if known.is_constant(index):
        rank, rows = len(known.row(data)) + 1, known.observed.axis[data]
        axis %= rank
        places = known.constant(index)
        if axis == rows:
            return None
        return moved(known, data, lambda a: np.take(a, places, axis - (axis > rows)))
    if not known.is_constant(data) or axis != 0 or known.observed.axis[index]:
        return None
    mosaic = known.writer.mosaic(known.values[index])
    tail, dtype = known.constant(data).shape[1:], known.observed.dtype[node.output[0]]

    def looked_up(part: Part, where: Array) -> Part:
        shape = (*part.shape, *tail)
        found = known.writer.part(part.side, shape, dtype, "Gather", data, part.name, axis=0)
        known.writer.costs[found.name] = Cost(0, found.nbytes)
        return found

    return known.by_side(node, mosaic, range(len(mosaic.shape)), looked_up)


def gather_nd(known: Known, node: onnx.NodeProto) -> Value | None:
    """Constant indices into the axes in front of the rows, as torch writes a choice of pairs."""
    data, index = node.input
    if not known.is_constant(index) or attributes(node).get("batch_dims", 0):
        return None
    places = known.constant(index)
    if known.observed.axis[data] < places.shape[-1]:
        return None
    return moved(known, data, lambda a: a[tuple(np.moveaxis(places, -1, 0))])


def gather_elements(known: Known, node: onnx.NodeProto) -> Value | None:
    """A row of a user's numbers, read at places that candidates give: once per user, not repeated
    for each candidate."""
    data, index = node.input
    writer, axis = known.writer, attributes(node).get("axis", 0)
    if known.is_constant(data) or known.is_constant(index):
        return None
    if len(known.row(data)) != 1 or axis % 2 != 1:
        return None
    table, places = (writer.solid(known.values[name]) for name in (data, index))
    if table.side != USER or places.side == USER:
        return None
    users = writer.op(BOTH, "Gather", GRID, writer.ints(0), axis=0)
    shape = writer.op(BOTH, "Concat", users, writer.ints(-1), axis=0)
    asked = writer.op(BOTH, "Reshape", writer.rows(places), shape)  # [B, K * n]
    found = writer.op(BOTH, "GatherElements", table.name, asked, axis=1)
    part = Part(BOTH, writer.flat(found, places.shape), places.shape, table.dtype)
    writer.costs[found] = Cost(0, part.nbytes)
    return Mosaic.of(part)


RULES = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), reshape),
    "Transpose": transpose,
    "Concat": concat,
    "Slice": slice_,
    "Split": split,
    "Gather": gather,
    "GatherND": gather_nd,
    "GatherElements": gather_elements,
}
