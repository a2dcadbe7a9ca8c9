"""The stages of the cascade: arrays in, arrays out, no Triton.

Each is built from one version folder and holds all that it needs. The same objects run in the
server, in the in-process pipeline and in the tests.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from cascade import index
from cascade.encoding import Encoder, InvalidInput
from cascade.serving.runtime import Array, load_graph
from cascade.spec import PRERANK, RANK, RETRIEVE, Serving


class Stage(Protocol):
    """One step: a tuple of input arrays, batch first, to a tuple of output arrays."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __call__(self, *inputs: Array) -> tuple[Array, ...]:
        """Run one batch.

        Raises:
            InvalidInput: a value of the request is at fault, not the stage.
        """


class Retrieve:
    """Raw user -> encoded user and candidates.

    dense [B, F_dense], categorical [B, F_cat] -> user_dense [B, F_dense], user_ids [B, C],
    candidates [B, K]: catalogue rows, best first, -1 pads.
    """

    inputs: tuple[str, ...] = ("dense", "categorical")
    outputs: tuple[str, ...] = ("user_dense", "user_ids", "candidates")

    def __init__(self, folder: Path, serving: Serving, candidates: int) -> None:
        self.candidates = candidates
        self.encoder = Encoder.load(folder, sides=("user",))
        _, self._tower = load_graph(folder, self.encoder.schema, serving)
        index.set_threads(max(1, serving.threads))
        self.index = index.load(folder, self.encoder.schema.hash)

    def __call__(self, *inputs: Array) -> tuple[Array, ...]:
        user_dense, user_ids = self.encoder.encode("user", *inputs)
        if not len(user_ids):
            return user_dense, user_ids, np.empty((0, self.candidates), np.int64)
        (vectors,) = self._tower(user_dense, user_ids)
        return user_dense, user_ids, self.index.search(vectors, self.candidates)


class Score:
    """Preranker or ranker: user and candidate rows -> what the exported graph returns.

    user_dense [B, F_dense], user_ids [B, C], rows [B, K] -> survivors [B, K'], or item ids and
    scores [B, K'].
    """

    def __init__(self, folder: Path, serving: Serving) -> None:
        description, self._graph = load_graph(folder, None, serving)
        self.inputs, self.outputs = description.inputs, description.outputs
        self.schema_hash = description.schema_hash
        self._items = min((m.shape[0] for m in description.mapped.values()), default=sys.maxsize)

    def __call__(self, *inputs: Array) -> tuple[Array, ...]:
        rows = inputs[-1]
        if rows.max(initial=-1) >= self._items:  # what a gather does then depends on the device
            raise InvalidInput(
                f"{self.inputs[-1]}: row {rows.max()} came, but the catalogue has {self._items} "
                "items. Do all stages serve one release?"
            )
        if not len(inputs[0]):  # ONNX Runtime 1.19 ends the process over TopK of no rows
            one = (np.zeros((1, *x.shape[1:]), x.dtype) for x in inputs)
            return tuple(output[:0] for output in self._graph(*one))
        return tuple(self._graph(*inputs))


def load_stage(name: str, folder: Path, serving: Serving, candidates: int) -> Stage:
    """Open a version folder as the stage of that name."""
    if serving.threads < 1:
        threads = int(os.environ.get("CASCADE_THREADS", "0")) or len(os.sched_getaffinity(0))
        serving = replace(serving, threads=threads)
    if name == RETRIEVE:
        return Retrieve(folder, serving, candidates)
    if name in (PRERANK, RANK):
        return Score(folder, serving)
    raise ValueError(f"there is no stage {name!r}; expected {RETRIEVE}, {PRERANK} or {RANK}")
