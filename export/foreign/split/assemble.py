"""Puts the nodes that were written into two graphs, without those that nothing needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.foreign.split.derived import Derived, Kept
from export.foreign.split.values import BOTH, ITEM, SIDES, USER, Cost, Part
from export.foreign.split.writer import CANDIDATES, GRID, PREFIX, Writer

ROWS = f"{PREFIX}rows"  # int64 [B, K], the input of which the shape is read


def assembled_graphs(
    model: onnx.ModelProto,
    writer: Writer,
    inputs: Sequence[Part],
    output: Part,
    kept: Counter[Kept],
    flat: Cost,
) -> Derived:
    """The graphs that give `output` of the sides' inputs; `flat` is what it costs in `model`."""
    name = writer.rows(output)
    shapes = [
        helper.make_node("Shape", [ROWS], [GRID]),
        helper.make_node("Gather", [GRID, writer.ints(1)], [CANDIDATES], axis=0),
    ]
    nodes, needed = _needed([*shapes, *writer.nodes[USER], *writer.nodes[BOTH]], [name])
    parts = tuple(part for part in writer.item_parts.values() if part.name in needed)
    rows = helper.make_tensor_value_info(ROWS, onnx.TensorProto.INT64, [None, None])
    users = [part for part in inputs if part.side == USER and part.name in needed]
    made = Part(BOTH, name, output.shape, output.dtype)
    pairs = _model(model, writer, nodes, needed, [*map(_info, [*users, *parts]), rows], [made])
    items, all_needed = None, needed
    if parts:
        nodes, needed = _needed(writer.nodes[ITEM], [part.name for part in parts])
        raw = [part for part in inputs if part.side == ITEM and part.name in needed]
        items = _model(model, writer, nodes, needed, [*map(_info, raw)], parts)
        all_needed = all_needed | needed
    costs = {
        side: sum(
            (
                cost
                for node in writer.nodes[side]
                for made_ in node.output
                if made_ in all_needed and (cost := writer.costs.get(made_))
            ),
            Cost(),
        )
        for side in SIDES
    }
    costs[BOTH] += Cost(0, sum(part.nbytes for part in parts))
    flat += Cost(0, sum(part.nbytes for part in inputs if part.side == ITEM))
    layers = frozenset(writer.layers & all_needed)
    return Derived(items, pairs, parts, name, layers, kept, costs, flat)


def _model(
    model: onnx.ModelProto,
    writer: Writer,
    nodes: list[onnx.NodeProto],
    needed: set[str],
    inputs: list[onnx.ValueInfoProto],
    outputs: Sequence[Part],
) -> onnx.ModelProto:
    constants = writer.constants
    tensors = [
        numpy_helper.from_array(np.asarray(constants[name], order="C"), name)
        for name in sorted(needed)
        if name in constants
    ]
    graph = helper.make_graph(nodes, "split", inputs, [*map(_info, outputs)], tensors)
    how = {"opset_imports": model.opset_import, "functions": model.functions}
    return helper.make_model(graph, ir_version=model.ir_version, **how)


def _info(part: Part) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(part.name, part.dtype, [None, *part.shape])


def nodes_of(node: onnx.NodeProto) -> Iterable[onnx.NodeProto]:
    """A node, and those of its subgraphs."""
    yield node
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from nodes_of(inner)


def _needed(
    nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]
) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that the outputs depend on, and the names of all that these read."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed & set(node.output):
            kept.append(node)
            needed |= {name for inner in nodes_of(node) for name in inner.input}
    return kept[::-1], needed
