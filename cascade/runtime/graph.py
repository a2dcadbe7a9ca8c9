"""The interface of an exported graph, which every runtime implements."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from cascade.artifact import Array


class Graph(Protocol):
    """An exported graph: arrays in, arrays out, both in the order of the description."""

    def __call__(self, *inputs: Array) -> list[Array]:
        """Run one batch."""


class OneByOne:
    """A graph that runs each user of a batch alone."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def __call__(self, *inputs: Array) -> list[Array]:
        if len(inputs[0]) < 2:
            return self._graph(*inputs)
        runs = [self._graph(*(x[u : u + 1] for x in inputs)) for u in range(len(inputs[0]))]
        return [np.concatenate(outputs) for outputs in zip(*runs, strict=True)]
