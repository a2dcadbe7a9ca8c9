"""The trainings of a cascade, one after the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cascade.data.dataset import Dataset
from cascade.data.source import DataError, Log
from cascade.models import build, contract, preset
from cascade.models.blend import Blend, BlendConfig
from cascade.models.registry import MODELS, Recipe
from cascade.models.scorer import Scorer
from cascade.models.scoring.logistic import LogisticRegression
from cascade.spec import PRERANK, RANK, RETRIEVE, Sizes
from cascade.training import bundle, checkpoint
from cascade.training.choices import ease
from cascade.training.choices.covisits import CoVisits
from cascade.training.choices.rank import SHARPNESS, ChoiceRankTask, usual
from cascade.training.choices.retrieve import ChoiceRetrievalTask
from cascade.training.log import KNOWN_LOGS, log_of, source_of
from cascade.training.loop import Hyperparameters, Task, fit
from cascade.training.negatives import Negatives, Sampling
from cascade.training.optimization import precision
from cascade.training.recipes import (
    BASELINE,
    CHOICES_IN_ALL,
    FEW_EPOCHS,
    FEW_ROWS,
    FEWEST_STEPS,
    LABELS,
    MOST_EPOCHS,
    OF_CHOICES,
    ON_FEW_ROWS,
    RECIPES,
    ROWS_IN_ALL,
    TEACHERS,
    TRAININGS,
    check,
)
from cascade.training.tasks import RankTask, RetrievalTask
from cascade.training.teaching.distill import Candidates, DistillTask
from cascade.training.teaching.teach import TeachTask
from cascade.training.teaching.told import draw, taught

DISTILL_USERS = 8_192
TEACH_USERS = 8_192
# What has no logistic regression beside it: what is one or has one, and what has several tasks.
NOT_BESIDE = ("blend", "logistic", "two_tower", "shared_bottom", "mmoe")


class Trainer:
    """Trains the models of a recipe and those that they are compared with.

    Args:
        out: a folder for each model is made in it.
        changes: fields of `Hyperparameters` that replace those of the table, for every model.
        log: how the items of the rows were chosen, one of `LOGS`; by default as `log_of`
            tells.
        sampling: how negatives are drawn for a log of positives only.
        baseline: whether the baseline is trained, too, which is compared with alone.
    """

    def __init__(
        self,
        dataset: Dataset,
        out: Path,
        device: torch.device,
        recipe: Recipe,
        changes: Mapping[str, Any],
        log: Log | None = None,
        sampling: Sampling | None = None,
        baseline: bool = True,
    ) -> None:
        self.baseline = baseline
        self.dataset, self.out, self.device = dataset, out, device
        check(recipe)
        self.log, self._why = log_of(dataset, log)
        self.recipe, self.changes = recipe.over(RECIPES[self.log]), changes
        for name in TRAININGS:
            precision.check(self.hyperparameters(name), device)
        if sampling is not None and dataset.has_negatives:
            raise DataError(
                f"negatives are drawn for logs of positives only, and {dataset.root} has "
                f"{dataset.rows('train') - dataset.positives:,} training rows of label 0; leave "
                "--negatives away"
            )
        self.sampling = None if dataset.has_negatives else sampling or Sampling()
        self.models: dict[str, Scorer] = {}
        self._ease, self._covisits = ease.Start(dataset), CoVisits(dataset)

    @cached_property
    def negatives(self) -> Negatives | None:
        """What draws negatives, where the log has none."""
        return None if self.sampling is None else Negatives(self.dataset, self.sampling)

    def run(self) -> None:
        print(f"log: {self.log}, {self._why}")
        if self.sampling is not None:
            print(
                f"all {self.dataset.positives:,} training rows are positives: rankers are trained "
                f"and judged beside {self.sampling}, so that a score orders items and is no chance "
                "of a click"
            )
        bundle.write(self.dataset, self.out, self.negatives)
        for name, training in TRAININGS.items():
            if self.baseline or training.model != BASELINE or name in self._made_of(RANK):
                self.train(name)

    def train(self, name: str) -> None:
        """One of the trainings, after those that it is made from."""
        self.models[name] = self._trained(name)

    def needed(self, name: str) -> tuple[str, ...]:
        """The trainings that come before one by name, in their order."""
        training = TRAININGS[name]
        direct = {*TEACHERS[training.taught], *self._made_of(name), training.starts_from} - {""}
        found = direct.union(*(self.needed(other) for other in direct))
        return tuple(other for other in TRAININGS if other in found)

    def hyperparameters(self, name: str) -> Hyperparameters:
        """Those of the table, over as many epochs as the size of the data asks for; then those of
        the recipe, then those that were given for every model."""
        found = replace(self._usual(name), **self.recipe.hyperparameters.get(name, {}))
        return replace(found, **self.changes)

    def _usual(self, name: str) -> Hyperparameters:
        training, rows = TRAININGS[name], self.dataset.rows("train")
        if self.log == "choices" and name in OF_CHOICES:
            found = OF_CHOICES[name]
            return replace(found, epochs=max(1, min(found.epochs, CHOICES_IN_ALL // rows)))
        if training.taught:
            return training.hyper
        few = self._few(name)
        found = ON_FEW_ROWS if few else training.hyper
        size = min(found.batch_size, max(32, rows // 100))
        wanted = max(FEW_EPOCHS, FEWEST_STEPS * size // rows) if few else ROWS_IN_ALL // rows
        epochs = max(1, min(MOST_EPOCHS, wanted))
        return replace(found, epochs=found.epochs * epochs, batch_size=size)

    def _few(self, name: str) -> bool:
        """Whether a ranker of impressions has so few rows that it would learn them by heart."""
        of_rows = self.log == "impressions" and TRAININGS[name].model in (RANK, PRERANK)
        return of_rows and self.dataset.rows("train") < FEW_ROWS

    def _trained(self, name: str) -> Scorer:
        """Train one model and write its checkpoint and curves, or read it if it is there: trained
        by the same recipe and taught by the same models."""
        training, hyper = TRAININGS[name], self.hyperparameters(name)
        folder, schema = self.out / name, self.dataset.schema
        size = self.recipe.model(training.model)[1]
        teachers, parts = TEACHERS[training.taught], self._made_of(name)
        begun = (training.starts_from,) if training.starts_from else ()
        model, config = self._built(name)
        made_from = {
            "model": model,
            "preset": size,
            "config": config,
            "schema_hash": schema.hash,
            "taught_by": {
                other: checkpoint.digest(self.out / other) for other in (*teachers, *begun, *parts)
            },
            **self._made_of_rows(name),
        }
        wanted = json.loads(json.dumps({**made_from, "recipe": hyper.identity()}))
        if (folder / "checkpoint.json").exists():
            found = checkpoint.describe(folder)
            if all(found.get(key) == value for key, value in wanted.items()):
                print(f"{name}: already trained, {folder}")
                return checkpoint.load(folder, schema).to(self.device)
        if name == RETRIEVE and self.log == "choices":
            return self._as_it_is(name, wanted)
        scorer = self.fresh(name, hyper)
        task = self.task(name, scorer, hyper)
        history = fit(task, hyper, folder, name, made_from)
        best = min(history, key=lambda record: record["objective"])
        if isinstance(task, ChoiceRankTask):
            for line in task.finish():
                print(f"{name}: {line}")
            best = {**best, **task.validate()}
        checkpoint.save(folder, scorer, {**wanted, "metrics": best, "history": history})
        checkpoint.finish(folder)
        draw(folder / "curves.png", name, history)
        if training.taught:
            kept = history[0]["validation_kept"], best["validation_kept"]
            print(taught(name, training.taught, *kept))
        return scorer.eval()

    def _made_of(self, name: str) -> tuple[str, ...]:
        """The trained models that a ranker of a log of choices has as parts."""
        if self.log != "choices" or TRAININGS[name].model not in (RANK, PRERANK):
            return ()
        return (LABELS, *([BASELINE] if self.recipe.model(BASELINE)[0] == "logistic" else []))

    def _built(self, name: str) -> tuple[str, dict[str, Any]]:
        """What is trained under a name: a model and its configuration. A ranker of a log of choices
        has the model of the recipe beside the retriever; one of few rows learns what a logistic
        regression beside it lacks. A team's own model has its own tasks, and stays as it is."""
        model, size = self.recipe.model(TRAININGS[name].model)
        config = preset(model, size)
        if self._few(name) and model in MODELS and model not in NOT_BESIDE:
            return "blend", asdict(BlendConfig(model, config))
        if not self._made_of(name):
            return model, config
        retriever, size = self.recipe.model(RETRIEVE)
        parts = BlendConfig(model, config, retriever, preset(retriever, size))
        if BASELINE in self._made_of(name):
            parts = replace(parts, wide_config=preset(*self.recipe.model(BASELINE)))
        if self._covisits.config:
            parts = replace(parts, covisitation=asdict(self._covisits.config))
        return "blend", asdict(parts)

    def fresh(self, name: str, hyper: Hyperparameters) -> Scorer:
        """A model as its training begins: drawn by the seed, or with the weights of the trainings
        before it that it starts from."""
        torch.manual_seed(hyper.seed)
        scorer = build(*self._built(name), self.dataset.schema).to(self.device)
        if isinstance(scorer, Blend) and self._made_of(name):
            self._begin(name, scorer)
        elif isinstance(scorer, Blend) and self._few(name):
            scorer.silence()
        if isinstance(scorer, LogisticRegression) and name == BASELINE in self._made_of(RANK):
            scorer.forget_items()  # beside a ranker of choices, it says how often a user likes
        if name == LABELS and self.log == "choices":
            self._ease.give(name, scorer)
        if name != RETRIEVE and (before := TRAININGS[name].starts_from):
            scorer.load_state_dict(self.models[before].state_dict())
        return scorer

    def _begin(self, name: str, scorer: Blend) -> None:
        """Begin with the retriever's order, beside what the baseline says of a user alone."""
        self._ease.give(name, scorer.deep)
        scorer.begin(self.models[LABELS], lambda model: usual(self.dataset, model, self.device))
        if BASELINE in self._made_of(RANK):
            scorer.widen(self.models[BASELINE])
        if self._covisits.config:
            scorer.covisits.begin(*self._covisits.neighbours)

    def _as_it_is(self, name: str, wanted: Mapping[str, Any]) -> Scorer:
        """The weights that the training started from, under its own name: in a log of choices an
        item that a user took says more than a ranker that was trained on the items taken."""
        begun = TRAININGS[name].starts_from
        found = checkpoint.describe(self.out / begun)
        measured = {key: found[key] for key in ("metrics", "history")}
        checkpoint.save(self.out / name, self.models[begun], {**wanted, **measured})
        print(f"{name}: as {begun}; in a log of choices no ranker teaches the retriever")
        return self.models[begun]

    def _made_of_rows(self, name: str) -> dict[str, Any]:
        """What else the weights depend on, where it is not as it always was."""
        if name == LABELS:
            usual = KNOWN_LOGS.get(source_of(self.dataset), "impressions")
            return {} if self.log == usual else {"log": self.log}
        if TRAININGS[name].taught or self.sampling is None:
            return {}
        return {"negatives": self.sampling.identity()}

    def task(self, name: str, scorer: Scorer, hyper: Hyperparameters) -> Task:
        """What a model learns, and on what."""
        where = (self.dataset, hyper, self.device)
        if name == LABELS:
            contract.check_retriever(scorer)
            if self.log == "choices":
                return ChoiceRetrievalTask(scorer, *where)
            return RetrievalTask(scorer, *where)
        if name == RETRIEVE:
            labels, rank, prerank = (self.models[other] for other in (LABELS, RANK, PRERANK))
            sizes = (TEACH_USERS, Sizes().candidates)
            return TeachTask(scorer, labels, rank, prerank, *where, *sizes)
        contract.check(scorer)
        if TRAININGS[name].taught:
            teacher, keep = self.models["rank"], Sizes().survivors
            task = DistillTask(scorer, teacher, self._candidates, hyper, keep)
            if self.log == "choices":
                task.sharpness = SHARPNESS
            if self.sampling is not None or self.dataset.source.get("item_past"):
                task.label_weight = 0  # all labels are 1, or the past of the items counts them
            return task
        if isinstance(scorer, Blend) and self._made_of(name):
            return ChoiceRankTask(scorer, self.models[LABELS], *where, self.negatives)
        of_rows = RankTask(scorer, *where, self.negatives)
        of_rows.meet_unknowns = self._few(name)
        return of_rows

    @cached_property
    def _candidates(self) -> Candidates:
        """What the retriever returns: one search for all that are taught."""
        where = (self.models[LABELS], self.dataset, self.device)
        found = Candidates(*where, DISTILL_USERS, Sizes().candidates)
        print(f"prerankers are taught and compared on {found.drawn}, drawn at random")
        return found
