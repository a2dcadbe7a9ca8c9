"""The trainings of a cascade, one after the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from cascade.data.dataset import Dataset
from cascade.models import build, contract, preset
from cascade.models.registry import Recipe
from cascade.models.scorer import Scorer
from cascade.spec import RETRIEVE, Sizes
from cascade.training import bundle, checkpoint
from cascade.training.distill import Candidates, DistillTask
from cascade.training.loop import Hyperparameters, Task, fit
from cascade.training.tasks import OBJECTIVES, RankTask, RetrievalTask

# What fits a million rows; a smaller set is passed over more often, up to MOST_EPOCHS times, and
# early stopping ends what overfits.
ROWS_IN_ALL = 1_000_000
MOST_EPOCHS = 12
DISTILL_USERS = 8_192
TEACHERS = ("retrieve", "rank")
LOGS = {"movielens": "choices"}  # of the sources that are no impression logs


@dataclass(frozen=True)
class Training:
    """One of the trainings."""

    model: str  # the stage of the recipe whose model is trained
    hyper: Hyperparameters
    taught: bool = False  # by the ranker, on what the retriever returns; else by the rows' labels


ON_ROWS = Hyperparameters(batch_size=512, lr=1e-3, embedding_lr=1e-2)
ON_CANDIDATES = Hyperparameters(batch_size=64, lr=3e-3, embedding_lr=1e-2, epochs=2)
TRAININGS = {  # in this order; a checkpoint has the name of its training
    "retrieve": Training("retrieve", replace(ON_ROWS, embedding_lr=2e-2)),
    "rank": Training("rank", ON_ROWS),
    "baseline": Training("baseline", Hyperparameters(batch_size=1024, lr=1e-2, embedding_lr=1e-2)),
    "prerank_labels": Training("prerank", ON_ROWS),
    "prerank": Training("prerank", ON_CANDIDATES, taught=True),
    "prerank_baseline": Training("baseline", ON_CANDIDATES, taught=True),
}


class Trainer:
    """Trains the models of a recipe and those that they are compared with.

    Args:
        out: a folder for each model is made in it.
        changes: fields of `Hyperparameters` that replace those of the table, for every model.
        log: how the items of the rows were chosen, a key of `OBJECTIVES`; by default, as the
            source is known for.
    """

    def __init__(
        self,
        dataset: Dataset,
        out: Path,
        device: torch.device,
        recipe: Recipe,
        changes: Mapping[str, Any],
        log: str | None = None,
    ) -> None:
        self.dataset, self.out, self.device = dataset, out, device
        self.recipe, self.changes = recipe, changes
        known_for = LOGS.get(dataset.source["fingerprint"]["source"], "impressions")
        self.objective = OBJECTIVES[log or known_for]
        self.models: dict[str, Scorer] = {}

    def run(self) -> None:
        bundle.write(self.dataset, self.out)
        for name in TRAININGS:
            self.models[name] = self._trained(name)

    def hyperparameters(self, name: str) -> Hyperparameters:
        """Those of the table, over as many epochs as the size of the data asks for."""
        training, rows = TRAININGS[name], self.dataset.rows("train")
        found = training.hyper
        if not training.taught:
            epochs = max(1, min(MOST_EPOCHS, ROWS_IN_ALL // rows))
            size = min(found.batch_size, max(32, rows // 100))
            found = replace(found, epochs=found.epochs * epochs, batch_size=size)
        return replace(found, **self.changes)

    def _trained(self, name: str) -> Scorer:
        """Train one model and write its checkpoint and curves, or read it if it is there: trained
        by the same recipe and taught by the same models."""
        training, hyper = TRAININGS[name], self.hyperparameters(name)
        folder, schema = self.out / name, self.dataset.schema
        model, size = self.recipe.model(training.model)
        config, teachers = preset(model, size), TEACHERS if training.taught else ()
        made_from = {
            "model": model,
            "preset": size,
            "config": config,
            "schema_hash": schema.hash,
            "taught_by": {other: checkpoint.digest(self.out / other) for other in teachers},
        }
        wanted = json.loads(json.dumps({**made_from, "recipe": hyper.identity()}))
        if (folder / "checkpoint.json").exists():
            found = checkpoint.describe(folder)
            if all(found.get(key) == value for key, value in wanted.items()):
                print(f"{name}: already trained, {folder}")
                return checkpoint.load(folder, schema).to(self.device)
        torch.manual_seed(hyper.seed)
        scorer = build(model, config, schema).to(self.device)
        history = fit(self._task(name, scorer, hyper), hyper, folder, name, made_from)
        best = min(history, key=lambda record: record["objective"])
        checkpoint.save(folder, scorer, {**wanted, "metrics": best, "history": history})
        checkpoint.finish(folder)
        _draw(folder / "curves.png", name, history)
        return scorer.eval()

    def _task(self, name: str, scorer: Scorer, hyper: Hyperparameters) -> Task:
        if name == RETRIEVE:
            contract.check_retriever(scorer)
            return RetrievalTask(scorer, self.dataset, hyper, self.device, self.objective)
        contract.check(scorer)
        if TRAININGS[name].taught:
            teacher, keep = self.models["rank"], Sizes().survivors
            return DistillTask(scorer, teacher, self._candidates, hyper, keep)
        return RankTask(scorer, self.dataset, hyper, self.device)

    @cached_property
    def _candidates(self) -> Candidates:
        """What the retriever returns: one search for all that are taught."""
        retriever = self.models["retrieve"]
        return Candidates(retriever, self.dataset, self.device, DISTILL_USERS, Sizes().candidates)


def _draw(path: Path, name: str, history: list[dict[str, float]]) -> None:
    """Training curves: one panel per measure over the training steps."""
    measures = [key for key in history[0] if key not in ("step", "objective")]
    width = 4 * len(measures)
    figure = Figure(figsize=(width, 3))
    figure.subplots_adjust(left=0.6 / width, right=1 - 0.2 / width, bottom=0.17, top=0.8)
    figure.suptitle(name)
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        points = [(record["step"], record[measure]) for record in history]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3)
        axes.set_title(measure.replace("_", " "), fontsize=10)
        axes.set_xlabel("batches")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
