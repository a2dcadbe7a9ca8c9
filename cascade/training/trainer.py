"""Which models a cascade is made of, and the recipe of each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from cascade.data.dataset import Dataset
from cascade.models import build, preset
from cascade.models.scorer import Scorer
from cascade.spec import Sizes
from cascade.training import bundle, checkpoint, curves
from cascade.training.distill import Candidates, DistillTask
from cascade.training.loop import Recipe, fit
from cascade.training.tasks import OBJECTIVES, RankTask, RetrievalTask

# What fits a million rows; a smaller set is passed over more often, up to MOST_EPOCHS times, and
# early stopping ends what overfits.
ROWS_IN_ALL = 1_000_000
MOST_EPOCHS = 12
DISTILL_USERS = 8_192
NAMES = ("retrieve", "rank", "logistic", "prerank_labels", "prerank", "prerank_logistic")
LOGS = {"movielens": "choices"}  # of the sources that are no impression logs

RECIPES = {
    "retrieve": Recipe(batch_size=512, lr=1e-3, embedding_lr=2e-2),
    "rank": Recipe(batch_size=512, lr=1e-3, embedding_lr=1e-2),
    "logistic": Recipe(batch_size=1024, lr=1e-2, embedding_lr=1e-2),
    "prerank": Recipe(batch_size=64, lr=3e-3, embedding_lr=1e-2, epochs=2),
}


class Trainer:
    """Trains one model after the other; a model that is finished is not trained again.

    Args:
        out: a folder for each model is made in it.
        changes: fields of `Recipe` that replace those of the table, for every model.
    """

    def __init__(
        self, dataset: Dataset, out: Path, device: torch.device, changes: dict[str, Any]
    ) -> None:
        self.dataset, self.out, self.device, self.changes = dataset, out, device, changes
        rows = dataset.rows("train")
        self.epochs = max(1, min(MOST_EPOCHS, ROWS_IN_ALL // rows))

    def recipe(self, name: str) -> Recipe:
        """The recipe of the table, over as many epochs as the size of the data asks for."""
        found, rows = RECIPES[name], self.dataset.rows("train")
        if name != "prerank":
            size = min(found.batch_size, max(32, rows // 100))
            found = replace(found, epochs=found.epochs * self.epochs, batch_size=size)
        return replace(found, **self.changes)

    def train(
        self,
        name: str,
        model: str,
        size: str,
        recipe: Recipe,
        task: Callable[[Scorer], Any],
        taught_by: tuple[str, ...] = (),
    ) -> Scorer:
        """Train one model and write its checkpoint and curves, or read it if it is there.

        A model that other models teach is there only if it was taught by those of today.
        """
        folder, schema = self.out / name, self.dataset.schema
        made_from = {
            "model": model,
            "preset": size,
            "config": preset(model, size),
            "schema_hash": schema.hash,
            "taught_by": {other: checkpoint.digest(self.out / other) for other in taught_by},
        }
        wanted = json.loads(json.dumps({**made_from, "recipe": recipe.identity()}))
        if (folder / "checkpoint.json").exists():
            found = checkpoint.describe(folder)
            if all(found.get(key) == value for key, value in wanted.items()):
                print(f"{name}: already trained, {folder}")
                return checkpoint.load(folder, schema).to(self.device)
        torch.manual_seed(recipe.seed)
        scorer = build(model, preset(model, size), schema).to(self.device)
        history = fit(task(scorer), recipe, folder, name, made_from)
        best = min(history, key=lambda record: record["objective"])
        checkpoint.save(folder, scorer, {**wanted, "metrics": best, "history": history})
        checkpoint.finish(folder)
        curves.draw(folder / "curves.png", name, history)
        return scorer.eval()


def train_cascade(trainer: Trainer, ranker: str, towers: str, log: str | None = None) -> None:
    """Train the three models and those they are compared with.

    Args:
        ranker, towers: presets of the DLRM and of the two towers.
        log: who chose the items, a key of `OBJECTIVES`; by default what the source is known for.
    """
    dataset, device = trainer.dataset, trainer.device
    bundle.write(dataset, trainer.out)
    sizes = Sizes()

    known_for = LOGS.get(dataset.source["fingerprint"]["source"], "impressions")
    objective = OBJECTIVES[log or known_for]

    def rows_task(name: str, task: Any) -> tuple[Recipe, Callable[[Scorer], Any]]:
        recipe = trainer.recipe(name)
        return recipe, lambda scorer: task(scorer, dataset, recipe, device)

    retriever = trainer.train(
        "retrieve",
        "two_tower",
        towers,
        *rows_task("retrieve", partial(RetrievalTask, objective=objective)),
    )
    teacher = trainer.train("rank", "dlrm", ranker, *rows_task("rank", RankTask))
    trainer.train("logistic", "logistic", "default", *rows_task("logistic", RankTask))
    trainer.train("prerank_labels", "dlrm", "small", *rows_task("rank", RankTask))
    recipe = trainer.recipe("prerank")

    @cache
    def candidates() -> Candidates:
        return Candidates(retriever, dataset, device, DISTILL_USERS, sizes.candidates)

    for name, model, size in (
        ("prerank", "dlrm", "small"),
        ("prerank_logistic", "logistic", "default"),
    ):
        trainer.train(
            name,
            model,
            size,
            recipe,
            lambda student: DistillTask(student, teacher, candidates(), recipe, sizes.survivors),
            taught_by=("retrieve", "rank"),
        )
