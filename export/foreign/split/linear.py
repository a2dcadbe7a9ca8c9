"""Rules for linear layers, sums, and products of stacked vectors: a layer over columns of several
sides is the sum of each side's columns times its rows of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from cascade.artifact import Array
from export.foreign.split import dots
from export.foreign.split.known import Known, attributes, product_of, tidy
from export.foreign.split.values import (
    BOTH,
    ITEM,
    SIDES,
    Cost,
    Mosaic,
    Part,
    Side,
    Sum,
    Value,
    assembled,
    concatenated,
)
from export.foreign.split.writer import row_of


def gemm(known: Known, node: onnx.NodeProto) -> Value | None:
    """A layer with constant weights and bias."""
    options = attributes(node)
    source, matrix, *rest = node.input
    if not known.is_constant(matrix) or options.get("transA"):
        return None
    weights = known.constant(matrix)
    weights = weights.T if options.get("transB") else weights
    weights = weights * weights.dtype.type(options.get("alpha", 1.0))
    bias = None
    if rest and rest[0]:
        if not known.is_constant(rest[0]):
            return None
        found = known.constant(rest[0]) * weights.dtype.type(options.get("beta", 1.0))
        if found.ndim == 2 and found.shape[0] != 1:
            return None
        bias = known.writer.constant(np.broadcast_to(found.reshape(-1), weights.shape[1:]))
    return _layer(known, node, known.values[source], weights, bias)


def matmul(known: Known, node: onnx.NodeProto) -> Value | None:
    """A layer without a bias, or the product of two values."""
    left, right = node.input
    if known.is_constant(right) and known.constant(right).ndim == 2:
        return _layer(known, node, known.values[left], known.constant(right), None)
    if known.is_constant(left) or known.is_constant(right) or known.observed.axis[left]:
        return None
    return dots.pairs(known, node, *(known.writer.mosaic(known.values[n]) for n in (left, right)))


def _layer(
    known: Known, node: onnx.NodeProto, value: Value, weights: Array, bias: str | None
) -> Value | None:
    """[..., n] @ [n, h] and the bias, which the first term takes."""
    writer, dtype = known.writer, known.observed.dtype[node.output[0]]

    def times(part: Part, rows: Array, plus: str | None) -> Part:
        shape, matrix = (*part.shape[:-1], rows.shape[1]), writer.constant(rows)
        cost = Cost(part.size * rows.shape[1])
        if plus and len(part.shape) == 1:
            made = writer.part(part.side, shape, dtype, "Gemm", part.name, matrix, plus)
            writer.costs[made.name] = cost
            if part.side == BOTH and value.sides == {BOTH}:
                writer.layers.add(matrix)
            return made
        made = writer.part(part.side, shape, dtype, "MatMul", part.name, matrix)
        writer.costs[made.name] = cost
        if part.side == BOTH and len(part.shape) == 1:
            writer.products[made.name] = part.name, matrix
        return writer.part(made.side, shape, dtype, "Add", made.name, plus) if plus else made

    if isinstance(value, Sum):
        pieces = {side: (part, weights) for side, part in value.terms.items()}
    else:
        assert isinstance(value, Mosaic)
        last = len(value.shape) - 1
        if len(value.sides) > 1 and value.by_axis(last) is None:
            # Not the columns, but an axis before them tells the sides apart.
            return known.by_side(
                node, value, range(last), lambda part, _: times(part, weights, bias)
            )
        value, weights = _unsummed(known, value, weights)
        where = value.by_axis(last) or {next(iter(value.sides)): np.arange(value.shape[last])}
        pieces = {
            side: (writer.solid(value.take(columns, last)), _rows(weights, columns))
            for side, columns in where.items()
        }
    terms: dict[Side, Part] = {}
    for side, (part, rows) in pieces.items():
        if side == BOTH and isinstance(value, Mosaic) and len(value.shape) == 1 and terms:
            both = value.take(where[BOTH], 0)
            if found := dots.folded(known, both, rows, terms.get(ITEM)):
                terms.pop(ITEM, None)
                terms[BOTH] = found
                break
        terms[side] = times(part, rows, None if terms else bias)
    return tidy(terms)


def _unsummed(known: Known, value: Mosaic, weights: Array) -> tuple[Mosaic, Array]:
    """Columns of a sum as columns of its terms, which meet the same weights: each is then met on
    its own side."""
    last, sums = len(value.shape) - 1, known.writer.sums
    if not any(part.name in sums for part in value.used):
        return value, weights
    codes = np.moveaxis(value.part, last, 0).reshape(value.shape[last], -1)
    pieces, rows = [], []
    for column, code in enumerate(codes):
        own, part = value.take(np.array([column]), last), value.parts[code[0]]
        found = [own]
        if part.name in sums and (code == code[0]).all():
            terms = sums[part.name].terms.values()
            found = [Mosaic((term,), np.zeros_like(own.part), own.place) for term in terms]
        pieces += found
        rows += [column] * len(found)
    return concatenated(pieces, last), weights[rows]


def _rows(weights: Array, columns: Array) -> Array:
    """Some rows of the weights; all of them are the weights themselves, which are stored once."""
    return weights if len(columns) == len(weights) else weights[columns]


def add(known: Known, node: onnx.NodeProto) -> Value | None:
    """Also Sub. Sums stay sums; None where the shapes have to be broadcast, or a side is mixed."""
    names, shape = [*node.input], known.row(node.output[0])
    axis = known.observed.axis[node.output[0]]
    if not all(_joins(known, name, shape, axis) for name in names):
        return None
    constants = [name for name in names if known.is_constant(name)]
    if constants:
        other = next(name for name in names if name not in constants)
        if names[0] == constants[0] and node.op_type == "Sub":
            return None
        terms = _terms(known, other)
        first = next(side for side in SIDES if side in terms)
        plus = known.writer.constant(row_of(known.constant(constants[0]), len(shape), axis))
        terms[first] = known.same(node, first, shape, terms[first].name, plus)
        return tidy(terms)
    left, right = (_terms(known, name) for name in names)
    total = dict(left)
    for side, part in right.items():
        if side in left:
            total[side] = known.same(node, side, shape, left[side].name, part.name)
        elif node.op_type == "Sub":
            total[side] = known.writer.part(side, shape, part.dtype, "Neg", part.name)
        else:
            total[side] = part
    return tidy(total)


def _joins(known: Known, name: str, shape: Sequence[int], axis: int) -> bool:
    if known.is_constant(name):
        return row_of(known.constant(name), len(shape), axis) is not None
    value = known.values[name]
    if isinstance(value, Mosaic) and len(value.sides) > 1:
        return False
    return not_opaque(value).shape == tuple(shape)


def not_opaque(value: Value) -> Mosaic | Sum:
    """The walk gives rules no others."""
    assert isinstance(value, Mosaic | Sum)
    return value


def _terms(known: Known, name: str) -> dict[Side, Part]:
    value = known.values[name]
    if isinstance(value, Sum):
        return dict(value.terms)
    part = known.writer.solid(value)
    return {part.side: part}


def scale(known: Known, node: onnx.NodeProto) -> Value | None:
    """A sum times or by a constant, or its negative."""
    value, *rest = (name for name in node.input if name)
    found = known.values.get(value)
    shape = known.row(node.output[0])
    if not isinstance(found, Sum) or found.shape != shape:
        return None
    if not all(map(known.is_constant, rest)):
        return None
    axis = known.observed.axis[node.output[0]]
    rows = [row_of(known.constant(name), len(shape), axis) for name in rest]
    if any(row is None for row in rows):
        return None
    by = [known.writer.constant(row) for row in rows]
    return Sum({s: known.same(node, s, shape, p.name, *by) for s, p in found.terms.items()})


def reduce(known: Known, node: onnx.NodeProto) -> Value | None:
    """ReduceSum and ReduceMean: over an axis that tells the sides apart, a sum of sums."""
    source, out, options = node.input[0], node.output[0], attributes(node)
    rank = len(known.row(source)) + 1
    axes = options.get("axes")
    if len(node.input) > 1 and node.input[1]:
        axes = known.constant(node.input[1]).tolist() if known.is_constant(node.input[1]) else None
    if not axes:
        return None
    axes = sorted(axis % rank - 1 for axis in axes)
    if axes[0] < 0:
        return None
    kept = bool(options.get("keepdims", 1))

    def reduced(part: Part, kind: str) -> Part:
        shape = [1 if i in axes else n for i, n in enumerate(part.shape) if kept or i not in axes]
        over = [axis + 1 for axis in axes]
        writer, how = known.writer, {"keepdims": int(kept)}
        if writer.opset >= (13 if kind == "ReduceSum" else 18):
            inputs = part.name, writer.ints(*over)
            return writer.part(part.side, shape, part.dtype, kind, *inputs, **how)
        return writer.part(part.side, shape, part.dtype, kind, part.name, axes=over, **how)

    value = not_opaque(known.values[source])
    if isinstance(value, Sum):
        return Sum({side: reduced(part, node.op_type) for side, part in value.terms.items()})
    for axis in range(rank - 1):
        found = value.by_axis(axis)
        if found is None or len(found) < 2:
            continue
        parts = {s: known.writer.solid(value.take(where, axis)) for s, where in found.items()}
        if axis not in axes:
            after = axis if kept else axis - sum(a < axis for a in axes)
            made = [(found[s], Mosaic.of(reduced(p, node.op_type))) for s, p in parts.items()]
            return assembled(made, after)
        terms = {side: reduced(part, "ReduceSum") for side, part in parts.items()}
        if node.op_type == "ReduceMean":
            count = product_of([known.row(source)[a] for a in axes])
            by = known.writer.constant(np.float32(count))
            terms = {
                s: known.writer.part(s, p.shape, p.dtype, "Div", p.name, by)
                for s, p in terms.items()
            }
        assert terms[next(iter(terms))].shape == known.row(out)
        return Sum(terms)
    return None


RULES = {
    "Gemm": gemm,
    "MatMul": matmul,
    "Einsum": dots.einsum,
    "ReduceSum": reduce,
    "ReduceMean": reduce,
}
