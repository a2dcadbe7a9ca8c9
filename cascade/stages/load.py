"""Opens the version folder of a process as the stages that it runs, or as a chain of them.

The module of a stage is imported when the stage is opened: a process that ranks starts without the
library of the index, and one without a store needs no database client.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from cascade.artifact import Array, ArtifactError
from cascade.config import DEFAULT_PRODUCT, Product, Serving
from cascade.layout import RequestLayout
from cascade.schema import Schema
from cascade.spec import (
    COLD_START,
    DENY_LIST,
    ITEM_NAMES,
    LOOKUP,
    PRERANK,
    RANK,
    RERANK,
    RETRIEVE,
    UNKNOWN_VALUES,
    ConfigError,
    from_outside,
)
from cascade.stages.names import Named
from cascade.stages.scoring import Score


class LoadedStage(Protocol):
    """One step: input arrays, batch first, to a tuple of output arrays. After its `inputs` come
    those that are `optional`: None, or missing, where no request of the batch has them. Of its
    `inputs`, a request leaves out those that are `needed` only where it has the user's id or
    context. All but a `Chain` have `counts()` and `levels()`, too (`cascade.triton.metrics`)."""

    inputs: tuple[str, ...]
    needed: tuple[str, ...]
    optional: tuple[str, ...]
    outputs: tuple[str, ...]
    schema_hash: str

    def __call__(self, *inputs: Any) -> tuple[Array, ...]:
        """Run one batch. Raises InvalidInput if a value of a request is wrong."""


class Chain:
    """Consecutive stages in one process: each finds its inputs by name among the outputs of those
    before it and the inputs of the chain, whose outputs are by default those of the last stage. A
    stage's input that is optional for a later one is for that stage alone."""

    def __init__(
        self, stages: Sequence[LoadedStage], outputs: tuple[str, ...] | None = None
    ) -> None:
        self.inputs = from_outside((stage.inputs, stage.outputs) for stage in stages)
        self.needed = stages[0].needed
        names = (name for stage in stages for name in stage.optional)
        self.optional = tuple(name for name in names if name not in self.inputs)
        self.outputs = outputs or stages[-1].outputs
        self.schema_hash = stages[-1].schema_hash
        self.stages = tuple(stages)

    def __call__(self, *inputs: Any) -> tuple[Array, ...]:
        values = dict(zip((*self.inputs, *self.optional), inputs, strict=False))
        for stage in self.stages:
            optional = (
                None if name in self.inputs else values.get(name) for name in stage.optional
            )
            made = stage(*(values[name] for name in stage.inputs), *optional)
            values.update(zip(stage.outputs, made, strict=True))
        return tuple(values[name] for name in self.outputs)


def load_stage(
    name: str,
    folder: Path,
    serving: Serving,
    candidates: int,
    deny_list: Path | None = None,
    product: Product = DEFAULT_PRODUCT,
) -> LoadedStage:
    """Open a version folder as the stage of that name; `product` has the formulas of its score.

    Raises ArtifactError: the folder cannot be served; ConfigError: there is no such stage;
    DenyListError: the deny list cannot be read; FormulaError: a formula is not one of the tasks.
    """
    if serving.threads < 1:
        threads = int(os.environ.get("CASCADE_THREADS", "0")) or len(os.sched_getaffinity(0))
        serving = replace(serving, threads=threads)
    if name == RETRIEVE:
        from cascade.stages.retrieve import Retrieve

        return Retrieve(folder, serving, candidates, deny_list)
    if name == RANK:
        return _load_ranker(folder, serving, product)
    if name == PRERANK:
        return Score(folder, serving, product)
    raise ConfigError(f"there is no stage {name!r}; expected {RETRIEVE}, {PRERANK} or {RANK}")


def _load_ranker(folder: Path, serving: Serving, product: Product) -> LoadedStage:
    if (folder / RERANK).exists():
        from cascade.stages.rerank import Reranked

        ranker: Score = Reranked(folder, serving, product)
    else:
        ranker = Score(folder, serving, product)
    return Named(ranker, folder) if (folder / ITEM_NAMES).exists() else ranker


def load_stages(
    names: Sequence[str],
    folder: Path,
    serving: Serving,
    candidates: int,
    deny_list: Path | None = None,
    product: Product = DEFAULT_PRODUCT,
) -> LoadedStage:
    """Open the version folder of a process that runs these stages; `product` says which store the
    stage `lookup` reads, and the formulas of the scores.

    Raises ArtifactError: a folder cannot be served, or its stages are of different exports;
    OtherLayout: the store was written for other features; otherwise as `load_stage`.
    """
    held = [name for name in names if name != LOOKUP]
    folders = [folder if len(held) == 1 else folder / name for name in held]
    stages = [
        load_stage(name, place, serving, candidates, deny_list, product)
        for name, place in zip(held, folders, strict=True)
    ]
    hashes = {name: stage.schema_hash for name, stage in zip(held, stages, strict=True)}
    if len(set(hashes.values())) > 1:
        raise ArtifactError(f"{folder} holds stages of different schemas: {hashes}. Export again.")
    outputs = dict.fromkeys(stages[-1].outputs)
    if RETRIEVE in held:
        outputs[UNKNOWN_VALUES.name] = None
    if LOOKUP in names:
        from cascade.stages.lookup import Lookup
        from cascade.store import open_backend

        layout = RequestLayout.of(Schema.load(folders[0] / "schema.json"))
        lookup = Lookup(layout, open_backend(product.store))
        return Chain([lookup, *stages], (*outputs, COLD_START))
    return stages[0] if len(stages) == 1 else Chain(stages, (*outputs,))


def deny_list_of(repository: Path, product: Product, serving: bool = False) -> Path | None:
    """The file that `Product.deny_list` names, of a repository. Raises ConfigError where it is not
    the default one and does not exist, and the process is `serving`: another is not optional."""
    if not product.deny_list:
        return None
    path = repository / product.deny_list
    if serving and product.deny_list != DENY_LIST and not path.exists():
        raise ConfigError(
            f"there is no deny list {path}, which this release names: put it there, empty to deny "
            "nothing"
        )
    return path
