"""Opens the graph of a version folder with the runtime that serves it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from cascade.artifact import Array, Description
from cascade.config import Serving
from cascade.schema import Schema

Graph = Callable[..., list[Array]]
"""An exported graph: arrays in, arrays out, both in the order of the description."""


def load_graph(folder: Path, schema: Schema | None, serving: Serving) -> tuple[Description, Graph]:
    """Open a version folder's graph.

    Raises ArtifactError: the folder cannot be served; SchemaError: the folder was exported for
    another schema.
    """
    description = Description.load(folder)
    if schema is not None:
        schema.check_same(description.schema_hash, str(folder))
    graph = _opened(folder, description, serving)
    return description, Counting(graph) if description.counts_not_finite else graph


def _opened(folder: Path, description: Description, serving: Serving) -> Graph:
    # A runtime's module needs its library: a server of ONNX files has no torch.
    if serving.runtime in ("torchscript", "aoti"):
        from cascade.runtime.torch_graphs import torch_graph

        return torch_graph(folder, description, serving)
    from cascade.runtime.onnx import OnnxGraph

    graph = OnnxGraph(folder, description, serving)
    return _one_by_one(graph) if description.one_by_one else graph


class Counting:
    """A graph whose last output is `cascade.spec.NOT_FINITE` -> the same without it.

    Attributes:
        not_finite: how many candidates had a score that is no finite number, since it was opened.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph, self.not_finite = graph, 0

    def __call__(self, *inputs: Array) -> list[Array]:
        *found, not_finite = self._graph(*inputs)
        self.not_finite += int(not_finite.sum())
        return found


def _one_by_one(graph: Graph) -> Graph:
    """The same graph, which runs each user of a batch alone."""

    def run(*inputs: Array) -> list[Array]:
        if len(inputs[0]) < 2:
            return graph(*inputs)
        runs = [graph(*(x[u : u + 1] for x in inputs)) for u in range(len(inputs[0]))]
        return [np.concatenate(outputs) for outputs in zip(*runs, strict=True)]

    return run
