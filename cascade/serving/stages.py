"""The stages of the cascade: arrays in, arrays out, no Triton.

Each is built from one version folder and holds all that it needs. The same objects run in the
server, in the in-process pipeline and in the tests.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cascade.encoding import InvalidInput
from cascade.schema import Schema
from cascade.serving import marks
from cascade.serving.runtime import Array, ArtifactError, load_graph
from cascade.spec import (
    CATALOGUE_IDS,
    LOOKUP,
    PRERANK,
    RANK,
    RERANK,
    RETRIEVE,
    Serving,
    wire_features,
)


class Stage(Protocol):
    """One step: a tuple of input arrays, batch first, to a tuple of output arrays.

    After its `inputs` come those that are `optional`, as far as there are any: None, or nothing at
    all, stands for one that no request of the batch has.
    """

    inputs: tuple[str, ...]
    optional: tuple[str, ...]
    outputs: tuple[str, ...]
    schema_hash: str

    def __call__(self, *inputs: Any) -> tuple[Array, ...]:
        """Run one batch.

        Raises:
            InvalidInput: a value of the request is at fault, not the stage.
        """


class Score:
    """Preranker or ranker: user and candidate rows -> what the exported graph returns.

    user_dense [B, F_dense], user_ids [B, C], rows [B, K] -> survivors [B, K'], or item ids and
    scores [B, K'].
    """

    optional: tuple[str, ...] = ()

    def __init__(self, folder: Path, serving: Serving) -> None:
        description, self._graph = load_graph(folder, None, serving)
        self.inputs, self.outputs = description.inputs, description.outputs
        self.schema_hash = description.schema_hash
        self._sorted, self._scored = f"{description.stage}.sort", description.stage
        ids = description.mapped.get(CATALOGUE_IDS)
        self.item_ids = None if ids is None else ids.open(folder)[:, 0]
        self._items = min((m.shape[0] for m in description.mapped.values()), default=sys.maxsize)
        self._kept = 0

    def __call__(self, *inputs: Array) -> tuple[Array, ...]:
        *users, rows = inputs
        # In catalogue order: neighbours share pages, and the gather waits less. A pad goes first.
        rows = np.sort(rows, axis=1)
        # What a gather of a row beyond the last one does depends on the device.
        if rows[:, -1:].max(initial=-1) >= self._items:
            raise InvalidInput(
                f"{self.inputs[-1]}: row {rows.max()} came, but the catalogue has {self._items} "
                "items. Do all stages serve one release?"
            )
        if not len(inputs[0]):  # ONNX Runtime 1.19 ends the process over TopK of no rows
            one = (np.zeros((1, *x.shape[1:]), x.dtype) for x in inputs)
            return tuple(output[:0] for output in self._graph(*one))
        marks.mark(self._sorted)
        found = tuple(self._graph(*users, rows))
        marks.mark(self._scored)
        self._kept += int(np.count_nonzero(found[0] >= 0))
        return found

    def counts(self) -> Mapping[str, int]:
        return {"kept": self._kept}

    def levels(self) -> Mapping[str, float]:
        return {"items": self._items} if self._items < sys.maxsize else {}


class Chain:
    """Neighbouring stages in one process: what one returns, the next ones find by name."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        made: set[str] = set()
        needed: list[str] = []
        for stage in stages:
            needed += [n for n in stage.inputs if n not in made and n not in needed]
            made |= set(stage.outputs)
        self.inputs, self.outputs = tuple(needed), stages[-1].outputs
        self.optional = tuple(name for stage in stages for name in stage.optional)
        self.schema_hash = stages[0].schema_hash
        self.stages = tuple(stages)

    def __call__(self, *inputs: Any) -> tuple[Array, ...]:
        values = dict(zip((*self.inputs, *self.optional), inputs, strict=False))
        for stage in self.stages:
            optional = (values.get(name) for name in stage.optional)
            made = stage(*(values[name] for name in stage.inputs), *optional)
            values.update(zip(stage.outputs, made, strict=True))
        return made


def load_stage(
    name: str, folder: Path, serving: Serving, candidates: int, deny_list: Path | None = None
) -> Stage:
    """Open a version folder as the stage of that name.

    What a stage needs is imported with it: a process that ranks starts without an index's library.
    """
    if serving.threads < 1:
        threads = int(os.environ.get("CASCADE_THREADS", "0")) or len(os.sched_getaffinity(0))
        serving = replace(serving, threads=threads)
    if name == RETRIEVE:
        from cascade.serving.retrieve import Retrieve

        return Retrieve(folder, serving, candidates, deny_list)
    if name == RANK and (folder / RERANK).exists():
        from cascade.serving.reranked import Reranked  # which is a `Score`

        return Reranked(folder, serving)
    if name in (PRERANK, RANK):
        return Score(folder, serving)
    raise ValueError(f"there is no stage {name!r}; expected {RETRIEVE}, {PRERANK} or {RANK}")


def load_stages(
    names: Sequence[str],
    folder: Path,
    serving: Serving,
    candidates: int,
    deny_list: Path | None = None,
) -> Stage:
    """Open the version folder of a process that runs these stages.

    Raises:
        ArtifactError: a folder cannot be served, or they are of different exports.
        OtherLayout: users are to come from a store that was written for other features.
    """
    if names[0] == LOOKUP:
        from cascade.serving.lookup import ById, Lookup
        from cascade.store import UserLayout, open_backend

        stage = load_stages(names[1:], folder, serving, candidates, deny_list)
        place = folder if len(names) == 2 else folder / RETRIEVE
        schema = Schema.load(place / "schema.json")
        layout = UserLayout.from_features(wire_features(schema), schema.layout_hash)
        return ById(Lookup(layout, open_backend(serving.store)), stage)
    if len(names) == 1:
        return load_stage(names[0], folder, serving, candidates, deny_list)
    stages = [load_stage(name, folder / name, serving, candidates, deny_list) for name in names]
    hashes = {name: stage.schema_hash for name, stage in zip(names, stages, strict=True)}
    if len(set(hashes.values())) > 1:
        raise ArtifactError(f"{folder} holds stages of different schemas: {hashes}. Export again.")
    return Chain(stages)


def deny_list_of(repository: Path, serving: Serving) -> Path | None:
    """The file that `Serving.deny_list` names, of a repository."""
    return repository / serving.deny_list if serving.deny_list else None
