"""Writes the nodes of the derived graphs, and turns what is known of a value into one tensor.

Each side has its list of nodes. Users' and pairs' nodes become one graph, in which a user's tensor
is repeated for the candidates as late as possible, mostly by the operation that needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from cascade.artifact import Array
from export.foreign.split.repeats import repeats
from export.foreign.split.turns import turns
from export.foreign.split.values import (
    BOTH,
    ITEM,
    SIDES,
    USER,
    Cost,
    Mosaic,
    Part,
    Side,
    Sum,
    Value,
)

PREFIX = "split/"
CANDIDATES, GRID = f"{PREFIX}candidates", f"{PREFIX}grid"  # [K] and [B, K], of the request
SMALL_BYTES = 1 << 16  # constants of equal content below this are stored once
SLICE_OPSET = 10  # from which a Slice takes its bounds as inputs
NEGATIVE_OPSET = 11  # from which a Concat takes an axis counted from the end
MOST_RUNS = 64  # a value of more runs is gathered element by element


class Writer:
    """The nodes written so far, by side, and their constants."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        self.nodes: dict[Side, list[onnx.NodeProto]] = {side: [] for side in SIDES}
        self.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.item_parts: dict[str, Part] = {}  # that pairs read
        self.products: dict[str, tuple[str, str]] = {}  # of pairs: the two factors by product
        self.dots: dict[str, tuple[Part, Part]] = {}  # a user's and an item's vectors, by product
        self.sums: dict[str, Sum] = {}  # that were added up, by total
        self.costs: dict[str, Cost] = {}  # by output
        self.layers: set[str] = set()  # weights of whole layers over pairs
        self._grids: dict[str, str] = {}  # what was made flat, by name
        self._known: dict[Any, str] = {id(a): name for name, a in self.constants.items()}

    def constant(self, value: Any, dtype: Any = None) -> str:
        """The name of a constant."""
        array = np.asarray(value, dtype, order="C")
        small = array.nbytes < SMALL_BYTES
        # A large array is known by its identity: `constants` keeps it, so that stays its own.
        key = (array.dtype.str, array.shape, array.tobytes()) if small else id(array)
        if key not in self._known:
            self._known[key] = name = f"{PREFIX}constant_{len(self._known)}"
            self.constants[name] = array
        return self._known[key]

    def ints(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def op(self, side: Side, kind: str, *inputs: str, **attributes: Any) -> str:
        """Write a node, unless there is the same -> its output."""
        key = (side, kind, inputs, repr(sorted(attributes.items())))
        if key not in self._known:
            self._known[key] = name = f"{PREFIX}{kind}_{len(self._known)}"
            self.nodes[side].append(helper.make_node(kind, inputs, [name], **attributes))
        return self._known[key]

    def part(
        self,
        side: Side,
        shape: Sequence[int],
        dtype: int,
        kind: str,
        *inputs: str,
        **attributes: Any,
    ) -> Part:
        """The same -> the part that it computes."""
        return Part(side, self.op(side, kind, *inputs, **attributes), tuple(shape), dtype)

    # Rows of pairs.

    def rows(self, part: Part) -> str:
        """The part for every pair: [B * K, *shape]."""
        if part.side == BOTH:
            return part.name
        if part.side == ITEM:
            once = self.once(part)
            self.item_parts[once.name] = once
            if once.shape == part.shape:
                return once.name
            return self.op(BOTH, "Expand", once.name, self.ints(1, *part.shape))
        ones = (self.ints(*[1] * len(part.shape)),) if part.shape else ()
        shape = self.op(BOTH, "Concat", self.ints(1), CANDIDATES, *ones, axis=0)
        return self.flat(self.op(BOTH, "Expand", self.grid(part), shape), part.shape)

    def once(self, part: Part) -> Part:
        """An item's part without what it repeats: one coordinate of each axis along which all are
        the same. It broadcasts to the part. Others as they are."""
        if part.side != ITEM or self.opset < SLICE_OPSET:
            return part
        rank, nodes = len(part.shape), self.nodes[ITEM]
        axes = [
            axis
            for axis, count in enumerate(part.shape)
            if count > 1 and repeats(nodes, self.constants, part.name, axis - rank)
        ]
        if not axes:
            return part
        starts, ends = self.ints(*[0] * len(axes)), self.ints(*[1] * len(axes))
        name = self.op(ITEM, "Slice", part.name, starts, ends, self.ints(*(a + 1 for a in axes)))
        shape = tuple(1 if axis in axes else count for axis, count in enumerate(part.shape))
        return Part(ITEM, name, shape, part.dtype)

    def on(self, side: Side, part: Part) -> str:
        """The part as a tensor of a side: its own, or pairs."""
        return part.name if part.side == side else self.rows(part)

    def grid(self, part: Part) -> str:
        """A user's part as [B, 1, *shape], another as [B, K, *shape]."""
        if part.side == USER:
            return self.op(BOTH, "Reshape", part.name, self.ints(0, 1, *part.shape))
        rows = self.rows(part)
        if rows in self._grids:
            return self._grids[rows]
        shape = (
            self.op(BOTH, "Concat", GRID, self.ints(*part.shape), axis=0) if part.shape else GRID
        )
        return self.op(BOTH, "Reshape", rows, shape)

    def flat(self, name: str, shape: Sequence[int]) -> str:
        """[B, K, *shape] as [B * K, *shape]."""
        made = self.op(BOTH, "Reshape", name, self.ints(-1, *shape))
        self._grids[made] = name
        return made

    # Values as tensors.

    def solid(self, value: Value) -> Part:
        """The value as one tensor: of its side where it has one, else of pairs."""
        assert isinstance(value, Mosaic | Sum)
        if isinstance(value, Sum):
            return self._added(value)
        if (whole := value.whole) is not None:
            return whole
        side = next(iter(value.sides)) if len(value.sides) == 1 else BOTH
        return Part(side, self._gathered(value, side), value.shape, value.dtype)

    def mosaic(self, value: Value) -> Mosaic:
        """The value as elements."""
        return value if isinstance(value, Mosaic) else Mosaic.of(self.solid(value))

    def _added(self, value: Sum) -> Part:
        terms, shape = value.terms, value.shape
        first = next(iter(terms.values()))
        if len(terms) == 1:
            return first
        once = {side: self.once(part) for side, part in terms.items()}
        if np.broadcast_shapes(*(part.shape for part in once.values())) == shape:
            terms = once
        # The pairs' product of matrices takes the rest as what it begins with.
        product = self.products.get(terms[BOTH].name) if BOTH in terms else None
        sides = [side for side in (ITEM, BOTH) if side in terms and not (side == BOTH and product)]
        total = ""
        for side in sides:
            name = self.rows(terms[side])
            total = self.op(BOTH, "Add", total, name) if total else name
        if USER in terms and total:
            wide = np.broadcast_shapes(*(terms[side].shape for side in sides))
            pairs = Part(BOTH, total, wide, first.dtype)
            grid = self.op(BOTH, "Add", self.grid(pairs), self.grid(terms[USER]))
            total = self.flat(grid, shape)
        elif USER in terms:
            total = self.rows(terms[USER])
        if product:
            cost = self.costs[terms[BOTH].name]
            total = self.op(BOTH, "Gemm", *product, total)
            self.costs[total] = cost
        self.sums[total] = value
        return Part(BOTH, total, shape, first.dtype)

    def _gathered(self, mosaic: Mosaic, side: Side) -> str:
        """Turn one part, concatenate runs, or gather elements: the first that does it."""
        if (whole := mosaic.whole) is not None:
            return self.on(side, whole)
        if len(mosaic.used) == 1 and (name := self._turned(mosaic, side)):
            return name
        every = [(axis, mosaic.runs(axis)) for axis in range(len(mosaic.shape))]
        possible = [(axis, runs) for axis, runs in every if 0 < len(runs) <= MOST_RUNS]
        if possible:
            axis, runs = min(possible, key=lambda one: len(one[1]))
            names = [self._gathered(mosaic.take(run, axis), side) for run in runs]
            # Counted from the end, where it is seen whether other axes repeat.
            last = axis - len(mosaic.shape) if self.opset >= NEGATIVE_OPSET else axis + 1
            return self.op(side, "Concat", *names, axis=last)
        flats, offsets, size = [], np.zeros(len(mosaic.parts), np.int64), 0
        for part in mosaic.used:
            offsets[mosaic.parts.index(part)] = size
            size += part.size
            name = self.on(side, part)
            flats.append(name if len(part.shape) == 1 else self._reshaped(side, name, part.size))
        whole_name = flats[0] if len(flats) == 1 else self.op(side, "Concat", *flats, axis=1)
        places = self.constant((mosaic.place + offsets[mosaic.part]).ravel(), np.int64)
        picked = self.op(side, "Gather", whole_name, places, axis=1)
        return picked if len(mosaic.shape) == 1 else self._reshaped(side, picked, *mosaic.shape)

    def _turned(self, mosaic: Mosaic, side: Side) -> str:
        """One part, reshaped, sliced or transposed; empty where that does not do. A user's is
        turned before it is repeated."""
        (part,) = mosaic.used
        found = turns(mosaic.place, part.size)
        if found is None or (found.slices and self.opset < SLICE_OPSET):
            return ""
        own = USER if part.side == USER else side
        name, shape = self.on(own, part), part.shape
        if found.dims != shape and (found.slices or found.transposes):
            name, shape = self._reshaped(own, name, *found.dims), found.dims
        if found.slices:
            bounds = (self.ints(*found.starts), self.ints(*found.ends))
            axes = self.ints(*range(1, len(shape) + 1))
            name = self.op(own, "Slice", name, *bounds, axes)
            shape = tuple(end - start for start, end in zip(found.starts, found.ends, strict=True))
        if found.transposes:
            name = self.op(own, "Transpose", name, perm=[0, *(axis + 1 for axis in found.order)])
            shape = tuple(shape[axis] for axis in found.order)
        if shape != mosaic.shape:
            name = self._reshaped(own, name, *mosaic.shape)
        return self.on(side, Part(own, name, mosaic.shape, part.dtype))

    def _reshaped(self, side: Side, name: str, *shape: int) -> str:
        return self.op(side, "Reshape", name, self.ints(0, *shape))


def row_of(constant: Array, rank: int, axis: int) -> Array | None:
    """A constant as [1, *row] where it is the same for all rows of values of `rank` axes without
    that of the rows, else None."""
    if constant.ndim > rank + 1:
        return None
    whole = constant.reshape((1,) * (rank + 1 - constant.ndim) + constant.shape)
    return np.moveaxis(whole, axis, 0) if whole.shape[axis] == 1 else None
