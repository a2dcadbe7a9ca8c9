"""The trainings of a cascade, one after the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from cascade.data.dataset import Dataset
from cascade.data.source import DataError, Log
from cascade.models import build, contract, preset
from cascade.models.blend import Blend, BlendConfig
from cascade.models.registry import Recipe
from cascade.models.scorer import Scorer
from cascade.spec import PRERANK, RANK, RETRIEVE, Sizes
from cascade.training import bundle, checkpoint
from cascade.training.choices import ChoiceRetrievalTask
from cascade.training.curves import draw
from cascade.training.distill import Candidates, DistillTask
from cascade.training.log import KNOWN_LOGS, log_of, source_of
from cascade.training.loop import Hyperparameters, Task, fit
from cascade.training.negatives import Negatives, Sampling
from cascade.training.rank_choices import SHARPNESS, ChoiceRankTask, shown
from cascade.training.tasks import OBJECTIVES, RankTask, RetrievalTask
from cascade.training.teach import TeachTask

# What fits a million rows; a smaller set is passed over more often, up to MOST_EPOCHS times, and
# early stopping ends what overfits.
ROWS_IN_ALL = 1_000_000
MOST_EPOCHS = 12
DISTILL_USERS = 8_192
LABELS = "retrieve_labels"
TEACHERS = {"": (), "candidates": (LABELS, "rank"), "catalogue": ("prerank",)}
BASELINE = "baseline"  # the part of a recipe that no stage serves
TEACH_USERS = 4_096
RECIPES: dict[Log, Recipe] = {
    "impressions": Recipe("two_tower:default", "dlrm:small", "dlrm:criteo", "logistic:default"),
    "choices": Recipe("two_tower:factors", "dlrm:small", "dlrm:small", "logistic:default"),
}


@dataclass(frozen=True)
class Training:
    """One of the trainings."""

    model: str  # the stage of the recipe whose model is trained
    hyper: Hyperparameters
    # By the ranker on what the retriever returns, by the preranker on the catalogue, or by labels.
    taught: Literal["", "candidates", "catalogue"] = ""
    starts_from: str = ""  # an earlier training of the same model, whose weights it begins with


ON_ROWS = Hyperparameters(batch_size=512, lr=1e-3, embedding_lr=1e-2)
FEW_ROWS = 100_000  # fewer need more care
ON_FEW_ROWS = Hyperparameters(
    512, lr=3e-4, embedding_lr=1e-3, weight_decay=1.0, validations=10, patience=15
)
ON_CANDIDATES = Hyperparameters(
    batch_size=64, lr=3e-3, embedding_lr=1e-2, epochs=3, validations=4, patience=4
)
ON_CATALOGUE = Hyperparameters(
    batch_size=64, lr=1e-3, embedding_lr=5e-3, epochs=1, validations=4, patience=4
)
CHOICES_IN_ALL = 4_000_000  # rows of a log of choices, as ROWS_IN_ALL; `epochs` are the most
OF_CHOICES = {  # the trainings that a log of choices changes
    LABELS: Hyperparameters(
        512, 8, lr=3e-3, embedding_lr=3e-3, weight_decay=2e-2, validations=1, patience=4
    ),
    "rank": Hyperparameters(
        256, 3, lr=1e-3, embedding_lr=3e-3, weight_decay=2e-2, validations=2, patience=6
    ),
    "prerank_labels": Hyperparameters(
        256, 1, lr=1e-3, embedding_lr=3e-3, weight_decay=2e-2, validations=2, patience=4
    ),
}
TRAININGS = {  # in this order; a checkpoint has the name of its training
    LABELS: Training("retrieve", replace(ON_ROWS, embedding_lr=2e-2)),
    "baseline": Training("baseline", Hyperparameters(batch_size=1024, lr=1e-2, embedding_lr=1e-2)),
    "rank": Training("rank", ON_ROWS),
    "prerank_labels": Training("prerank", ON_ROWS),
    "prerank": Training("prerank", ON_CANDIDATES, "candidates", "prerank_labels"),
    "prerank_baseline": Training("baseline", ON_CANDIDATES, "candidates", "baseline"),
    "retrieve": Training("retrieve", ON_CATALOGUE, "catalogue", LABELS),
}


class Trainer:
    """Trains the models of a recipe and those that they are compared with.

    Args:
        out: a folder for each model is made in it.
        changes: fields of `Hyperparameters` that replace those of the table, for every model.
        log: how the items of the rows were chosen, a key of `OBJECTIVES`; by default as `log_of`
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
        self.log, self._why = log_of(dataset, log)
        self.recipe, self.changes = recipe.over(RECIPES[self.log]), changes
        if sampling is not None and dataset.has_negatives:
            raise DataError(
                f"negatives are drawn for logs of positives only, and {dataset.root} has "
                f"{dataset.rows('train') - dataset.positives:,} training rows of label 0; leave "
                "--negatives away"
            )
        self.sampling = None if dataset.has_negatives else sampling or Sampling()
        self.models: dict[str, Scorer] = {}

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
                self.models[name] = self._trained(name)

    def hyperparameters(self, name: str) -> Hyperparameters:
        """Those of the table, over as many epochs as the size of the data asks for."""
        training, rows = TRAININGS[name], self.dataset.rows("train")
        if self.log == "choices" and name in OF_CHOICES:
            found = OF_CHOICES[name]
            found = replace(found, epochs=max(1, min(found.epochs, CHOICES_IN_ALL // rows)))
            return replace(found, **self.changes)
        found = ON_FEW_ROWS if self._regularised(name) else training.hyper
        if not training.taught:
            epochs = max(1, min(MOST_EPOCHS, ROWS_IN_ALL // rows))
            size = min(found.batch_size, max(32, rows // 100))
            found = replace(found, epochs=found.epochs * epochs, batch_size=size)
        return replace(found, **self.changes)

    def _regularised(self, name: str) -> bool:
        """Whether a ranker learns from so few rows that it would learn them by heart."""
        training = TRAININGS[name]
        of_rows = training.model in (RANK, PRERANK) and not training.taught
        return of_rows and self.dataset.rows("train") < FEW_ROWS

    def _trained(self, name: str) -> Scorer:
        """Train one model and write its checkpoint and curves, or read it if it is there: trained
        by the same recipe and taught by the same models."""
        training, hyper = TRAININGS[name], self.hyperparameters(name)
        folder, schema = self.out / name, self.dataset.schema
        model, size = self.recipe.model(training.model)
        config, teachers = preset(model, size), TEACHERS[training.taught]
        begun = (training.starts_from,) if training.starts_from else ()
        parts = self._made_of(name)
        if parts:
            model, config = "blend", self._blended(model, config)
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
        torch.manual_seed(hyper.seed)
        scorer = build(model, config, schema).to(self.device)
        if isinstance(scorer, Blend) and parts:
            self._begin(scorer)
        for other in begun:
            scorer.load_state_dict(self.models[other].state_dict())
        history = fit(self._task(name, scorer, hyper), hyper, folder, name, made_from)
        best = min(history, key=lambda record: record["objective"])
        checkpoint.save(folder, scorer, {**wanted, "metrics": best, "history": history})
        checkpoint.finish(folder)
        draw(folder / "curves.png", name, history)
        if training.taught:
            kept = history[0]["validation_kept"], best["validation_kept"]
            print(_taught(name, PLACES[training.taught], *kept))
        return scorer.eval()

    def _made_of(self, name: str) -> tuple[str, ...]:
        """The trained models that a ranker of a log of choices has as parts."""
        if self.log != "choices" or TRAININGS[name].model not in (RANK, PRERANK):
            return ()
        return (LABELS, *([BASELINE] if self.recipe.model(BASELINE)[0] == "logistic" else []))

    def _blended(self, model: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """A ranker of a log of choices: the model of the recipe beside the retriever."""
        retriever, size = self.recipe.model(RETRIEVE)
        return asdict(BlendConfig(model, config, retriever, preset(retriever, size)))

    def _begin(self, scorer: Blend) -> None:
        """Begin with the retriever's order, and with what the baseline says of a user alone."""
        scorer.begin(self.models[LABELS], shown(self.dataset, self.models[LABELS], self.device))
        if BASELINE in self._made_of(RANK):
            scorer.wide.load_state_dict(self.models[BASELINE].state_dict())
            scorer.wide.forget_items()

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

    def _task(self, name: str, scorer: Scorer, hyper: Hyperparameters) -> Task:
        where = (self.dataset, hyper, self.device)
        if name == LABELS:
            contract.check_retriever(scorer)
            if self.log == "choices":
                return ChoiceRetrievalTask(scorer, *where)
            return RetrievalTask(scorer, *where, OBJECTIVES[self.log])
        if name == RETRIEVE:
            sizes = (TEACH_USERS, Sizes().candidates)
            return TeachTask(scorer, self.models["prerank"], *where, *sizes)
        contract.check(scorer)
        if name in OF_CHOICES and self.log == "choices":
            return ChoiceRankTask(scorer, self.models[LABELS], *where, self.negatives)
        if TRAININGS[name].taught:
            teacher, keep = self.models["rank"], Sizes().survivors
            task = DistillTask(scorer, teacher, self._candidates, hyper, keep)
            if self.log == "choices":
                task.sharpness = SHARPNESS
            if self.sampling is not None:
                task.label_weight = 0  # all labels are 1
            return task
        of_rows = RankTask(scorer, *where, self.negatives)
        of_rows.meet_unknowns = self._regularised(name)
        return of_rows

    @cached_property
    def _candidates(self) -> Candidates:
        """What the retriever returns: one search for all that are taught."""
        where = (self.models[LABELS], self.dataset, self.device)
        found = Candidates(*where, DISTILL_USERS, Sizes().candidates)
        print(f"prerankers are taught and compared on {found.drawn}, drawn at random")
        return found


PLACES = {  # in which a taught model keeps the ten best of its teacher
    "candidates": f"ten best of the ranker's among {Sizes().candidates} candidates",
    "catalogue": f"ten best of the catalogue, as the preranker sees it, among {Sizes().candidates}",
}


def _taught(name: str, what: str, before: float, after: float) -> str:
    """What distillation added, in words."""
    kept = f"keeps {after:.4f} of the {what}"
    if after > before:
        return f"{name}: taught, it {kept}; by labels alone it kept {before:.4f}"
    return (
        f"WARNING: {name}: distillation made nothing better, so the weights that were trained on "
        f"labels are kept: it {kept}"
    )
