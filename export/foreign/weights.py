"""The numbers that an ONNX file holds, all of them: a row that no sample meets is served, too."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from cascade.artifact import Array
from export.whole import first_not_finite


def not_finite(model: ir.Model) -> tuple[str, int] | None:
    """The first tensor with a number that is not finite, and the first such row of it; None where
    all are finite. A single number is left out, and a tensor of 0 and -infinity: they fill and mask
    by intent, and a wrong one shows in every row."""
    for name, tensor in _tensors(model):
        if tensor.dtype.is_floating_point() and tensor.size > 1:
            values = tensor.numpy()
            row = first_not_finite(values.reshape(len(values), -1))
            if row is not None and not _masks(values):
                return name, row
    return None


def _masks(values: Array) -> bool:
    return bool(((values == 0) | (values == -np.inf)).all())


def _tensors(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Initialisers and constants, of the graph and of the graphs in its nodes, by name."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                yield name, value.const_value
    for node in model.graph.all_nodes():
        if node.op_type == "Constant" and (given := node.attributes.get("value")):
            yield str(node.outputs[0].name), given.as_tensor()
