"""Opens the version folder of a process as the stages that it runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cascade.artifact import ArtifactError
from cascade.config import Product, Serving
from cascade.layout import RequestLayout
from cascade.schema import Schema
from cascade.spec import LOOKUP, PRERANK, RANK, RERANK, RETRIEVE
from cascade.stages.scoring import Score
from cascade.stages.stage import Chain, Stage


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
        from cascade.stages.retrieve import Retrieve

        return Retrieve(folder, serving, candidates, deny_list)
    if name == RANK and (folder / RERANK).exists():
        from cascade.stages.reranked import Reranked

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
    store: str = "",
) -> Stage:
    """Open the version folder of a process that runs these stages.

    Raises:
        ArtifactError: a folder cannot be served, or they are of different exports.
        OtherLayout: users are to come from a store that was written for other features.
    """
    if names[0] == LOOKUP:
        from cascade.stages.lookup import ById, Lookup
        from cascade.store import open_backend

        stage = load_stages(names[1:], folder, serving, candidates, deny_list)
        place = folder if len(names) == 2 else folder / RETRIEVE
        schema = Schema.load(place / "schema.json")
        return ById(Lookup(RequestLayout.of(schema), open_backend(store)), stage)
    if len(names) == 1:
        return load_stage(names[0], folder, serving, candidates, deny_list)
    stages = [load_stage(name, folder / name, serving, candidates, deny_list) for name in names]
    hashes = {name: stage.schema_hash for name, stage in zip(names, stages, strict=True)}
    if len(set(hashes.values())) > 1:
        raise ArtifactError(f"{folder} holds stages of different schemas: {hashes}. Export again.")
    return Chain(stages)


def deny_list_of(repository: Path, product: Product) -> Path | None:
    """The file that `Product.deny_list` names, of a repository."""
    return repository / product.deny_list if product.deny_list else None
