"""The data sets: what is run on each, by the product's own commands, and what is read of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from perf.quality import deepfm, figures, positives
from perf.quality.figures import Figures, Found
from perf.quality.steps import Steps

KEEP = 0.95
EVALUATION_USERS = 50  # for whom the ranker scores all items
PLANTED = {False: "synthetic", True: "synthetic:rows=20000,items=2000"}  # by whether it is quick
UNTUNED = ("--untuned",)
SMALL_MODELS = [f"{stage}:tiny" for stage in ("retrieve=two_tower", "prerank=dlrm", "rank=dlrm")]
QUICK: dict[str, tuple[object, ...]] = {
    "cascade.training": ("--recipe", *SMALL_MODELS, "--epochs", 0.02),
    "cascade.evaluation": ("--users", 20, "--positives", 200),
    "plan": (*UNTUNED, "--users", 20),
}


@dataclass(frozen=True)
class Run:
    """One training of a data set, and all that follows.

    Attributes:
        folder: of its files.
        source: of its raw rows; None where they are drawn.
        quick: small models, trained for a moment.
        baselines: whether simple models are fitted and judged, which know no seed.
    """

    steps: Steps
    folder: Path
    source: Path | None
    seed: int
    device: str
    quick: bool
    baselines: bool = True

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def evaluated(self, *data: object, tuned: bool) -> Any:
        """Train, export and evaluate; -> evaluation.json.

        Args:
            tuned: whether the export measures which index and precisions are the fastest.
        """
        place = ("--repository", self.folder / "model_repository")
        made, device = ("--checkpoints", self.checkpoints), ("--device", self.device)
        seed = ("--out", self.checkpoints, "--seed", self.seed)
        self._run("cascade.training", *data, *seed, *device, "--no-baseline")
        self.steps.run("export", *made, *place, *device, *(() if tuned else UNTUNED))
        judged = ("--data", self.checkpoints / "data", "--out", self.folder)
        asked = ("--users", EVALUATION_USERS, *(() if self.baselines else ("--no-baselines",)))
        self._run("cascade.evaluation", *judged, *made, *place, *device, *asked)
        return _json(self.folder / "evaluation.json")

    def planned(self) -> Any:
        """Plan the sizes; -> plan.json."""
        made = ("--checkpoints", self.checkpoints, "--out", self.folder, "--device", self.device)
        quick = QUICK["plan"] if self.quick else ()
        self.steps.run("export", "plan", *made, "--keep", KEEP, *quick)
        return _json(self.folder / "plan.json")

    def deepfm(self) -> float | None:
        """The AUC of DeepFM on the same rows; None where the package is not installed."""
        if find_spec(deepfm.PACKAGE) is None:
            return None
        out = self.folder / "deepfm.json"
        data = ("--data", self.checkpoints / "data", "--seed", self.seed, "--out", out)
        self.steps.run("perf.quality.deepfm", *data)
        found: float = _json(out)["auc"]
        return found

    def _run(self, module: str, *arguments: object) -> None:
        self.steps.run(module, *arguments, *(QUICK[module] if self.quick else ()))


def synthetic(run: Run) -> Found:
    """Clicks drawn from a known model: what the stages keep, and what planned sizes gain."""
    data = ("--data", PLANTED[run.quick])
    return {**run.evaluated(*data, tuned=not run.quick), "plan": run.planned()}


def movielens(run: Run) -> Found:
    """Ratings, with the items that users found by themselves: lists, and the ranker."""
    found: Found = run.evaluated("--data", f"movielens:{run.source}", tuned=False)
    return found


def criteo(run: Run) -> Found:
    """Impressions of advertisements: the ranker of clicks."""
    found = run.evaluated("--data", f"criteo:{run.source}", tuned=False)
    return {**found, "deepfm_auc": run.deepfm()}


def positives_only(run: Run) -> Found:
    """What users of MovieLens liked, as a table without labels: lists."""
    assert run.source is not None
    schema = positives.write(run.source, run.folder / "tables")
    found: Found = run.evaluated("--data", "table", "--schema", schema, tuned=False)
    return found


@dataclass(frozen=True)
class DataSet:
    """One of the data sets.

    Attributes:
        run: what is run; -> evaluation.json, and what else was measured.
        figures: what of it is told.
        folder: where its raw rows are among the shared data; empty where they are drawn.
        seeds: whether it is run for several seeds.
        alone: whether it has all cores to itself, because times are compared.
    """

    run: Callable[[Run], Found]
    figures: Callable[[Found], Figures]
    folder: str = ""
    seeds: bool = False
    alone: bool = False


SETS = {
    "synthetic": DataSet(synthetic, figures.of_planted, alone=True),
    "movielens": DataSet(movielens, figures.of_choices, "ml-latest-small", seeds=True),
    # One long run: before the short ones, which fill both cores to the end.
    "positives_only": DataSet(positives_only, figures.of_positives, "ml-latest-small"),
    "criteo": DataSet(criteo, figures.of_clicks, "criteo-kaggle-10k/train.txt", seeds=True),
}


def _json(path: Path) -> Any:
    return json.loads(path.read_text())
