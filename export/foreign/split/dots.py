"""Products of stacked vectors, and linear layers over the dots of the user's with the item's.

Such a layer is linear in the item's vectors, once the user is known: the weights of the dots and
the user's vectors make one matrix per user, and a candidate costs one product with its vectors.
That pays where the layer is narrow or the candidates are many. The item's own slice of the layer
stands behind its vectors, met by an identity, so that a candidate's state is read as one row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from cascade.artifact import Array
from export.foreign.split.known import Known, attributes
from export.foreign.split.values import BOTH, ITEM, USER, Cost, Mosaic, Part, Value, assembled
from export.foreign.split.writer import CANDIDATES, GRID, Writer

LANES = 16  # float32 in a register: a product of fewer columns takes as long
Block = tuple[Part, Part, Array]  # user's [g, D] and item's vectors [f, D], weights [f, g, H]


def pairs(known: Known, node: onnx.NodeProto, left: Mosaic, right: Mosaic) -> Mosaic | None:
    """[f, D] @ [D, g] as a grid of blocks, each of one side's vectors with one side's."""
    if len(left.sides | right.sides) == 1 or {len(left.shape), len(right.shape)} != {2}:
        return None
    rows, columns = left.by_axis(0), right.by_axis(1)
    if rows is None or columns is None:
        return None
    dtype = known.observed.dtype[node.output[0]]
    lines = []
    for i in rows.values():
        blocks = [
            (j, _block(known, left.take(i, 0), right.take(j, 1), dtype)) for j in columns.values()
        ]
        lines.append((i, assembled(blocks, 1)))
    return assembled(lines, 0)


def _block(known: Known, left: Mosaic, right: Mosaic, dtype: int) -> Mosaic:
    """[f, D] @ [D, g], each of one side. All candidates of a user meet the user's vectors in one
    product [B, K * f, D] @ [B, D, g]."""
    writer = known.writer
    a, b = writer.solid(left), writer.solid(right.moved(np.transpose))  # [f, D], [g, D]
    shape = a.shape[0], b.shape[0]
    cost = Cost(a.size * b.shape[0])
    if a.side == b.side or USER not in (a.side, b.side):
        side = a.side if a.side == b.side else BOTH
        turned = writer.op(side, "Transpose", writer.on(side, b), perm=[0, 2, 1])
        made = writer.part(side, shape, dtype, "MatMul", writer.on(side, a), turned)
        writer.costs[made.name] = cost
        return Mosaic.of(made)
    user, other = (a, b) if a.side == USER else (b, a)
    vectors = writer.op(BOTH, "Mul", CANDIDATES, writer.ints(other.shape[0]))
    stacked = writer.op(
        BOTH, "Concat", writer.ints(-1), vectors, writer.ints(other.shape[1]), axis=0
    )
    rows = writer.op(BOTH, "Reshape", writer.rows(other), stacked)
    turned = writer.op(BOTH, "Transpose", user.name, perm=[0, 2, 1])
    product = writer.op(BOTH, "MatMul", rows, turned)
    writer.costs[product] = cost
    shape = other.shape[0], user.shape[0]
    made = Part(BOTH, writer.flat(product, shape), shape, dtype)
    if other.side == ITEM:
        writer.dots[made.name] = user, other
    found = Mosaic.of(made)
    return found.moved(np.transpose) if a.side == USER else found


def einsum(known: Known, node: onnx.NodeProto) -> Value | None:
    """The same, as an equation such as bfd,bgd->bfg."""
    text = attributes(node)["equation"].decode().replace(" ", "")
    sources, _, out = text.partition("->")
    left, _, right = sources.partition(",")
    if [len(term) for term in (left, right, out)] != [3, 3, 3] or not (left + right).isalpha():
        return None
    summed = {*left, *right} - {*out}
    if len(summed) != 1 or not left[0] == right[0] == out[0] or not summed < {*left} & {*right}:
        return None
    (d,) = summed
    f, g = (term[1:].replace(d, "") for term in (left, right))
    if {*out[1:]} != {f, g} or f == g or any(map(known.is_constant, node.input)):
        return None
    a, b = (known.writer.mosaic(known.values[name]) for name in node.input)
    a = a if left.endswith(d) else a.moved(np.transpose)
    b = b.moved(np.transpose) if right.endswith(d) else b
    found = pairs(known, node, a, b)
    return found.moved(np.transpose) if found and out.endswith(f) else found


def folded(known: Known, value: Mosaic, weights: Array, own: Part | None) -> Part | None:
    """A layer over dots, as one product per candidate; None where it is not one, or where the dots
    and the layer after them take fewer multiply-adds.

    Args:
        value: its input, [n] elements that need both sides, weights: [n, H].
        own: the item's slice of the layer, [H], which is added.
    """
    blocks = _blocks(known.writer, value, weights)
    if not blocks or known.writer.opset < 13:
        return None
    count, hidden = known.candidates, weights.shape[1]
    state = sum(item.size for _, item, _ in blocks) + (hidden if own else 0)
    dots = sum(i.size * -(-u.shape[0] // LANES) * LANES for u, i, _ in blocks)
    once = sum(w.size * u.shape[1] for u, _, w in blocks)
    if once + count * state * hidden >= count * (dots + value.place.size * hidden):
        return None
    return _product(known.writer, blocks, own, hidden)


def _blocks(writer: Writer, value: Mosaic, weights: Array) -> list[Block]:
    """The products that the elements come from; empty where one comes from elsewhere."""
    found: dict[str, Block] = {}
    for number, part in enumerate(value.parts):
        where = np.flatnonzero(value.part == number)
        if not len(where):
            continue
        if part.name not in writer.dots or weights.dtype != np.float32:
            return []
        user, item = writer.dots[part.name]
        shape = item.shape[0], user.shape[0], weights.shape[1]
        _, _, matrix = found.setdefault(part.name, (user, item, np.zeros(shape, weights.dtype)))
        np.add.at(matrix.reshape(-1, shape[2]), value.place[where], weights[where])
    return [*found.values()]


def _product(writer: Writer, blocks: Sequence[Block], own: Part | None, hidden: int) -> Part:
    """[B, K, V] @ [B, V, H] -> [B * K, H]."""
    matrices, states = [], []
    for user, item, weights in blocks:
        (vectors, width), count = user.shape, item.shape[0]
        turned = writer.op(USER, "Transpose", user.name, perm=[0, 2, 1])
        lone = writer.op(USER, "Reshape", turned, writer.ints(0, 1, width, vectors))
        matrix = writer.op(USER, "MatMul", lone, writer.constant(weights))  # [B, f, D, H]
        writer.costs[matrix] = Cost(weights.size * width)
        matrices.append(writer.op(USER, "Reshape", matrix, writer.ints(0, count * width, hidden)))
        flat = item.name
        if len(item.shape) > 1:
            flat = writer.op(item.side, "Reshape", item.name, writer.ints(0, item.size))
        states.append(flat)
    (*_, (_, item, _)) = blocks
    if own:
        users = writer.op(USER, "Gather", GRID, writer.ints(0), axis=0)
        shape = writer.op(USER, "Concat", users, writer.ints(hidden, hidden), axis=0)
        identity = writer.constant(np.eye(hidden, dtype=np.float32)[None])
        matrices.append(writer.op(USER, "Expand", identity, shape))
        states.append(own.name)
    whole, state = matrices[0], states[0]
    if len(matrices) > 1:
        whole = writer.op(USER, "Concat", *matrices, axis=1)
        state = writer.op(item.side, "Concat", *states, axis=1)
    size = sum(i.size for _, i, _ in blocks) + (hidden if own else 0)
    packed = writer.grid(Part(item.side, state, (size,), item.dtype))
    product = writer.op(BOTH, "MatMul", packed, whole)
    writer.costs[product] = Cost(size * hidden)
    return Part(BOTH, writer.flat(product, (hidden,)), (hidden,), item.dtype)
