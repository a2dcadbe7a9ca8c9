"""What the cases serve, made once for all of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from cascade.artifact import Array
from cascade.config import Serving
from cascade.stages.pipeline import Pipeline
from export.releases.rewire import rewire, serving_of
from perf import payload
from perf.artifacts import Artifacts, Wish, features_of, make
from perf.commands import run

ITEMS, THOROUGH_ITEMS = 30_000, 1_000_000
SMALL_ITEMS, SMALL_USERS = 5_000, 512
# What an export tunes by measurement is not what is measured here.
UNTUNED = (
    *("--index", "ivfsq8", "--state", "float32", "--weights", "float32"),
    *("--users-per-run", "4"),
)
QUICK = (*UNTUNED, "--max-batch-size", "8")  # which is proved sooner


@dataclass(frozen=True)
class Pair:
    """Two small exports of different models for the same requests.

    Args:
        sources: their repositories; release n comes from the one at n modulo 2.
        users: JSON lines. expected: what both say in process, for `audience`.
    """

    sources: tuple[Path, Path]
    users: Path
    expected: Path

    def source(self, number: int) -> Path:
        return self.sources[number % 2]


class Stock:
    """Made at its first use.

    Args:
        thorough: a large catalogue, exported as anybody would, tuning included.
        seconds: for which malformed requests are sent, and a server is soaked.
    """

    def __init__(self, folder: Path, thorough: bool, seconds: float) -> None:
        self._folder, self.thorough, self.seconds = folder, thorough, seconds

    @cached_property
    def fused(self) -> Artifacts:
        """A cascade of usual size in one process."""
        items, how = (THOROUGH_ITEMS, ()) if self.thorough else (ITEMS, UNTUNED)
        return make(Wish(items, "criteo", export=how), self._folder / "fused")

    @cached_property
    def ensemble(self) -> Path:
        """The repository of the same in a process per stage."""
        target = self._folder / "ensemble"
        wiring = replace(serving_of(self.fused.repository), topology="ensemble", instances=1)
        rewire(self.fused.repository, target, wiring)
        return target

    @cached_property
    def pair(self) -> Pair:
        """Both drawn and exported at once."""
        folders = self._folder / "even", self._folder / "odd"
        with ThreadPoolExecutor(len(folders)) as pool:
            even, odd = pool.map(_small, folders, range(len(folders)))
        users = folders[0] / "checkpoints" / "users.jsonl"
        sent = payload.load(users, features_of(even))
        answers = [_answers(source, sent.dense, sent.categorical) for source in (even, odd)]
        ids, scores = (np.stack(part) for part in zip(*answers, strict=True))
        expected = self._folder / "expected.npz"
        np.savez(expected, item_ids=ids, scores=scores)
        return Pair((even, odd), users, expected)


def _small(folder: Path, seed: int) -> Path:
    checkpoints, repository = folder / "checkpoints", folder / "repository"
    size = ("--items", SMALL_ITEMS, "--ranker", "tiny", "--users", SMALL_USERS, "--seed", seed)
    run("perf.fixture", *size, "--out", checkpoints)
    where = ("--checkpoints", checkpoints, "--repository", repository)
    run("export", *where, "--instances", 1, *QUICK)
    return repository


def _answers(repository: Path, dense: Array, categorical: Array) -> tuple[Array, Array]:
    pipeline = Pipeline.load(repository, serving=Serving(threads=1))
    parts = [pipeline(dense[i : i + 8], categorical[i : i + 8]) for i in range(0, len(dense), 8)]
    ids, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
    return ids, scores
