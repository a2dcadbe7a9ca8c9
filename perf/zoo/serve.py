"""Exports a trained model as a stage of a cascade, split and flat, times both, and asks the real
server."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cascade.config import Serving
from cascade.data.dataset import Dataset
from cascade.release import read_release
from cascade.server.launcher import Server
from cascade.spec import RANK, RETRIEVE, Sizes, stage_path
from cascade.stages.load import LoadedStage, load_stage
from cascade.training import bundle
from export.build import write_release
from export.context import Build, Source
from perf.demo import compare
from perf.split import Request, per_second
from perf.zoo.sets import RETRIEVERS

SIZES = Sizes(candidates=200, survivors=200, results=10)
ROUNDS, WARM_UP = 9, 1
SPEEDUP = 1.5  # of the split form over the flat one; what is slower says why


@dataclass(frozen=True)
class Place:
    """Where the checkpoints of a data set are: `models`, a folder for each model, beside `shared`,
    what all of them need; releases go to `releases`."""

    models: Path
    shared: Path
    releases: Path

    def prepare(self, dataset: Dataset) -> None:
        """Write what all models need."""
        bundle.write(dataset, self.shared)

    def checkpoints(self, model: str, retriever: str) -> Path:
        """A folder of checkpoints: the model as its stage, the retriever in front of a ranker."""
        folder = self.releases / model / "checkpoints"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file in self.shared.iterdir():
            (folder / file.name).symlink_to(os.path.relpath(file, folder))
        stages = {RETRIEVE: model if model in RETRIEVERS else retriever, RANK: model}
        if model in RETRIEVERS:
            stages[RANK] = "logistic"
        for stage, name in stages.items():
            (folder / stage).symlink_to(os.path.relpath(self.models / name, folder))
        return folder


def export(asked: tuple[Place, str, str]) -> dict[str, Any]:
    """Write the releases of a model, behind the retriever named last -> parity, bytes per item, and
    what the split form of a ranker computes per candidate still."""
    place, model, retriever = asked
    checkpoints = place.checkpoints(model, retriever)
    forms = [False] if model in RETRIEVERS else [False, True]
    for flat in forms:
        repository = _repository(place, model, flat)
        shutil.rmtree(repository, ignore_errors=True)
        build = Build(
            checkpoints,
            repository,
            sizes=SIZES,
            index="flat",
            state="float32",
            weights="float32",
            measure_batching=False,
            flat=flat,
            preranks=False,
        )
        write_release(build, judged=False)
    release = read_release(_repository(place, model), 1)
    stage = release["stages"][RETRIEVE if model in RETRIEVERS else RANK]
    found = {
        "parity_max_abs": max(
            one["max_abs"] for one in release["parity"] if one["stage"] in _stages(model)
        ),
        "bytes_per_item": stage["bytes_per_item"],
    }
    if model in RETRIEVERS:
        return found
    return {**found, **_kept(stage.get("split"))}


def _stages(model: str) -> tuple[str, ...]:
    return (RETRIEVE,) if model in RETRIEVERS else (RANK,)


def _repository(place: Place, model: str, flat: bool = False) -> Path:
    return place.releases / model / ("flat" if flat else "model_repository")


def _kept(split: dict[str, Any] | None) -> dict[str, Any]:
    """What the split form computes per candidate still."""
    if split is None:
        return {"multiply_adds": None, "kept": {}}
    return {"multiply_adds": split["multiply_adds"], "kept": split["kept"]}


def timed(place: Place, model: str, rounds: int = ROUNDS) -> dict[str, Any]:
    """The rank stage for one user and 200 candidates, split and flat in turn, on one thread of this
    process: microseconds, and the median of the ratios."""
    source = Source.load(place.shared)
    random, (dense, ids) = np.random.default_rng(0), source.users
    asked: list[Request] = []
    for user in range(min(64, len(ids))):
        rows = random.permutation(len(source.items))[None, : SIZES.candidates]
        asked.append((dense[user : user + 1], ids[user : user + 1], rows))
    stages = {flat: _opened(_repository(place, model, flat)) for flat in (False, True)}
    rates: dict[bool, list[float]] = {False: [], True: []}
    for number in range(WARM_UP + rounds):
        for flat in (False, True) if number % 2 else (True, False):
            rate = per_second(partial(_call, stages[flat]), asked, 7 * number)
            if number >= WARM_UP:
                rates[flat].append(rate)
    split, whole = (np.array(rates[flat]) for flat in (False, True))
    return {
        "split_us": float(1e6 / np.median(split)),
        "flat_us": float(1e6 / np.median(whole)),
        "split_vs_flat": float(np.median(split / whole)),
    }


def _opened(repository: Path) -> LoadedStage:
    folder = repository / stage_path("ensemble", RANK, 1)
    return load_stage(RANK, folder, Serving(threads=1), SIZES.candidates)


def _call(stage: LoadedStage, request: Request) -> Any:
    return stage(*request)


def served(place: Place, model: str) -> dict[str, Any]:
    """Ask tritonserver for the lists of users, and the stages in this process."""
    repository = _repository(place, model)
    with Server(repository, log=place.releases / model / "server.log") as server:
        found = compare(server.url, repository, place.shared / "users.jsonl")
    return {
        "served": bool(found["server_equals_pipeline"]),
        "served_users": found["server_users_compared"],
        "served_max_abs": found["server_max_abs"],
    }
