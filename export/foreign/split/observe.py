"""Runs a flat graph at two numbers of rows, and notes what each of its values looks like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from cascade.artifact import Array

ROWS = (3, 5)  # neither may be the size of another axis in both runs


@dataclass(frozen=True)
class Observed:
    """The values of a flat graph, by name.

    Args:
        row: the shape of a row, of values that have rows.
        axis: where their rows stand.
        alike: values that have rows, all of which came equal.
        fixed: values that are the same whatever comes.
        dtype: of onnx.TensorProto.
        shapes: as they came in both runs.
    """

    row: dict[str, tuple[int, ...]] = field(default_factory=dict)
    axis: dict[str, int] = field(default_factory=dict)
    alike: set[str] = field(default_factory=set)
    fixed: dict[str, Array] = field(default_factory=dict)
    dtype: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)


def observe(
    model: onnx.ModelProto, feeds: Callable[[int], Mapping[str, Array]], folder: str = ""
) -> Observed:
    """Run the graph on different random rows; `feeds` draws so many for every input. A value with
    one axis that counts the rows has rows; one that did not change is fixed."""
    runs = _run(model, feeds, folder)
    found = Observed()
    for name, (few, many) in runs.items():
        found.dtype[name] = helper.np_dtype_to_tensor_dtype(few.dtype)
        found.shapes[name] = few.shape, many.shape
        if few.ndim != many.ndim:
            continue
        differ = [k for k in range(few.ndim) if few.shape[k] != many.shape[k]]
        if len(differ) == 1 and (few.shape[differ[0]], many.shape[differ[0]]) == ROWS:
            found.axis[name] = differ[0]
            found.row[name] = few.shape[: differ[0]] + few.shape[differ[0] + 1 :]
            rows = np.concatenate((few, many), differ[0])
            if (rows == rows.take([0], differ[0])).all():
                found.alike.add(name)
        elif not differ and np.array_equal(few, many):
            found.fixed[name] = few
    return found


def _run(
    model: onnx.ModelProto, feeds: Callable[[int], Mapping[str, Array]], folder: str
) -> dict[str, tuple[Array, Array]]:
    """Every tensor of the graph in both runs."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    outputs = {output.name for output in watched.graph.output}
    names = [name for node in watched.graph.node for name in node.output if name]
    watched.graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in names if name not in outputs
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    asked = [output.name for output in session.get_outputs()]
    runs = []
    for count in ROWS:
        feed = dict(feeds(count))
        runs.append({**dict(zip(asked, session.run(asked, feed), strict=True)), **feed})
    few, many = runs
    tensors = [name for name, value in few.items() if isinstance(value, np.ndarray)]
    return {name: (few[name], many[name]) for name in tensors}
