"""`python -m cascade.training`: from raw rows to a folder of checkpoints that export can read.

OUT/schema.json, vocabulary/, catalogue.parquet, users.*   what the models were trained on
OUT/retrieve, rank, prerank                                      the cascade
OUT/logistic, prerank_logistic, prerank_labels                   what it is compared with
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from cascade.data.dataset import Dataset
from cascade.data.prepare import prepare
from cascade.models import build, preset
from cascade.models.scorer import Scorer
from cascade.spec import Sizes
from cascade.training import bundle, checkpoint, curves
from cascade.training.distill import Candidates, DistillTask
from cascade.training.loop import Recipe, fit
from cascade.training.tasks import RankTask, RetrievalTask

# What fits a million rows; a smaller set is passed over more often, up to MOST_EPOCHS times, and
# early stopping ends what overfits.
ROWS_IN_ALL = 1_000_000
MOST_EPOCHS = 12
NAMES = ("retrieve", "rank", "logistic", "prerank_labels", "prerank", "prerank_logistic")
DISTILL_USERS = 8_192

RECIPES = {
    "retrieve": Recipe(batch_size=1024, lr=1e-3, embedding_lr=1e-2, epochs=0.5),
    "rank": Recipe(batch_size=512, lr=1e-3, embedding_lr=1e-2),
    "logistic": Recipe(batch_size=1024, lr=1e-2, embedding_lr=1e-2),
    "prerank": Recipe(batch_size=64, lr=3e-3, embedding_lr=1e-2, epochs=2),
}


class Trainer:
    """Trains one model after the other; a model that is finished is not trained again."""

    def __init__(
        self, dataset: Dataset, out: Path, device: torch.device, seed: int, save_every: int
    ) -> None:
        self.dataset, self.out, self.device = dataset, out, device
        self.seed, self.save_every = seed, save_every
        rows = dataset.rows("train")
        self.epochs = max(1, min(MOST_EPOCHS, ROWS_IN_ALL // rows))

    def recipe(self, name: str) -> Recipe:
        """The recipe of the table, over as many epochs as the size of the data asks for."""
        found = replace(RECIPES[name], seed=self.seed, save_every=self.save_every)
        if name == "prerank":
            return found
        rows = self.dataset.rows("train")
        return replace(
            found,
            epochs=found.epochs * self.epochs,
            batch_size=min(found.batch_size, max(32, rows // 100)),
        )

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
        torch.manual_seed(self.seed)
        scorer = build(model, preset(model, size), schema).to(self.device)
        history = fit(task(scorer), recipe, folder, name, made_from)
        best = min(history, key=lambda record: record["objective"])
        checkpoint.save(folder, scorer, {**wanted, "metrics": best, "history": history})
        checkpoint.finish(folder)
        curves.draw(folder / "curves.png", name, history)
        return scorer.eval()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m cascade.training", description=__doc__)
    parser.add_argument(
        "--data", required=True, help="criteo:PATH, movielens:PATH or synthetic[:…]"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--prepared", type=Path, help="folder of the prepared data [OUT/data]")
    parser.add_argument("--bad-rows", choices=("error", "skip"), default="error")
    parser.add_argument(
        "--ranker", default="criteo", help="preset of the DLRM ranker [%(default)s]"
    )
    parser.add_argument("--towers", default="default", help="preset of the towers [%(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--restart", action="store_true", help="forget what was trained before")
    parser.add_argument(
        "--save-every",
        type=int,
        default=500,
        help="batches between two savings of what a killed run goes on from [%(default)s]",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    dataset = prepare(args.data, args.prepared or args.out / "data", args.bad_rows)
    if args.restart:
        for name in NAMES:
            shutil.rmtree(args.out / name, ignore_errors=True)
    trainer = Trainer(dataset, args.out, torch.device(args.device), args.seed, args.save_every)
    train_cascade(trainer, args.ranker, args.towers)


def train_cascade(trainer: Trainer, ranker: str, towers: str) -> None:
    """Train the three models and those they are compared with."""
    dataset, device = trainer.dataset, trainer.device
    bundle.write(dataset, trainer.out)
    sizes = Sizes()

    def rows_task(name: str, task: Any) -> tuple[Recipe, Callable[[Scorer], Any]]:
        recipe = trainer.recipe(name)
        return recipe, lambda scorer: task(scorer, dataset, recipe, device)

    retriever = trainer.train(
        "retrieve", "two_tower", towers, *rows_task("retrieve", RetrievalTask)
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


if __name__ == "__main__":
    main()
