"""The trainings of a cascade, one after the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure

from cascade.data.dataset import Dataset
from cascade.data.source import DataError, Log
from cascade.models import build, contract, preset
from cascade.models.registry import Recipe
from cascade.models.scorer import Scorer
from cascade.spec import RETRIEVE, Sizes
from cascade.training import bundle, checkpoint
from cascade.training.distill import Candidates, DistillTask
from cascade.training.loop import Hyperparameters, Task, fit
from cascade.training.negatives import Negatives, Sampling
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
KNOWN_LOGS: dict[str, Log] = {"movielens": "choices"}  # of sources that do not say it themselves


@dataclass(frozen=True)
class Training:
    """One of the trainings."""

    model: str  # the stage of the recipe whose model is trained
    hyper: Hyperparameters
    # By the ranker on what the retriever returns, by the preranker on the catalogue, or by labels.
    taught: Literal["", "candidates", "catalogue"] = ""
    starts_from: str = ""  # an earlier training of the same model, whose weights it begins with


ON_ROWS = Hyperparameters(batch_size=512, lr=1e-3, embedding_lr=1e-2)
ON_CANDIDATES = Hyperparameters(
    batch_size=64, lr=3e-3, embedding_lr=1e-2, epochs=3, validations=4, patience=4
)
ON_CATALOGUE = Hyperparameters(
    batch_size=64, lr=1e-3, embedding_lr=5e-3, epochs=1, validations=4, patience=4
)
TRAININGS = {  # in this order; a checkpoint has the name of its training
    LABELS: Training("retrieve", replace(ON_ROWS, embedding_lr=2e-2)),
    "rank": Training("rank", ON_ROWS),
    "baseline": Training("baseline", Hyperparameters(batch_size=1024, lr=1e-2, embedding_lr=1e-2)),
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
        self.recipe, self.changes = recipe, changes
        self.log, self._why = log_of(dataset, log)
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
        for name in (n for n, of in TRAININGS.items() if self.baseline or of.model != BASELINE):
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
        config, teachers = preset(model, size), TEACHERS[training.taught]
        begun = (training.starts_from,) if training.starts_from else ()
        made_from = {
            "model": model,
            "preset": size,
            "config": config,
            "schema_hash": schema.hash,
            "taught_by": {
                other: checkpoint.digest(self.out / other) for other in (*teachers, *begun)
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
        for other in begun:
            scorer.load_state_dict(self.models[other].state_dict())
        history = fit(self._task(name, scorer, hyper), hyper, folder, name, made_from)
        best = min(history, key=lambda record: record["objective"])
        checkpoint.save(folder, scorer, {**wanted, "metrics": best, "history": history})
        checkpoint.finish(folder)
        _draw(folder / "curves.png", name, history)
        if training.taught:
            kept = history[0]["validation_kept"], best["validation_kept"]
            print(_taught(name, PLACES[training.taught], *kept))
        return scorer.eval()

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
            usual = KNOWN_LOGS.get(_source(self.dataset), "impressions")
            return {} if self.log == usual else {"log": self.log}
        if TRAININGS[name].taught or self.sampling is None:
            return {}
        return {"negatives": self.sampling.identity()}

    def _task(self, name: str, scorer: Scorer, hyper: Hyperparameters) -> Task:
        where = (self.dataset, hyper, self.device)
        if name == LABELS:
            contract.check_retriever(scorer)
            return RetrievalTask(scorer, *where, OBJECTIVES[self.log])
        if name == RETRIEVE:
            sizes = (TEACH_USERS, Sizes().candidates)
            return TeachTask(scorer, self.models["prerank"], *where, *sizes)
        contract.check(scorer)
        if TRAININGS[name].taught:
            teacher, keep = self.models["rank"], Sizes().survivors
            task = DistillTask(scorer, teacher, self._candidates, hyper, keep)
            if self.sampling is not None:
                task.label_weight = 0  # all labels are 1
            return task
        return RankTask(scorer, *where, self.negatives)

    @cached_property
    def _candidates(self) -> Candidates:
        """What the retriever returns: one search for all that are taught."""
        where = (self.models[LABELS], self.dataset, self.device)
        found = Candidates(*where, DISTILL_USERS, Sizes().candidates)
        print(f"prerankers are taught and compared on {found.drawn}, drawn at random")
        return found


def log_of(dataset: Dataset, log: Log | None = None) -> tuple[Log, str]:
    """How the items of the rows were chosen, and why that is thought: as `log` says, as the source
    says, as it is known for, or by whether there are rows of label 0. Raises a DataError where a
    training row is no positive, and where a log of impressions has no negative."""
    if not dataset.positives:
        raise DataError(
            f"{dataset.root}: none of the {dataset.rows('train'):,} training rows has the label 1, "
            "so there is nothing to learn; give rows that users clicked or liked"
        )
    source = _source(dataset)
    if log is not None:
        found, why = log, "as --log says"
    elif dataset.source.get("log"):
        found, why = dataset.source["log"], "as the source says"
    elif source in KNOWN_LOGS:
        found, why = KNOWN_LOGS[source], f"as {source} is known for"
    elif dataset.has_negatives:
        found = "impressions"
        why = "because there are rows of label 0; pass --log choices where users found the items"
    else:
        found, why = "choices", "because every row is a positive"
    if found == "impressions" and not dataset.has_negatives:
        raise DataError(
            f"{dataset.root}: a log of impressions ({why}) has rows of label 0, and every training "
            "row here is a positive; pass --log choices"
        )
    return found, why


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


def _source(dataset: Dataset) -> str:
    return str(dataset.source["fingerprint"].get("source", ""))


def _draw(path: Path, name: str, history: list[dict[str, float]]) -> None:
    """Training curves: one panel per measure over the training steps."""
    measures = [key for key in history[-1] if key not in ("step", "objective")]
    width = 4 * len(measures)
    figure = Figure(figsize=(width, 3))
    figure.subplots_adjust(left=0.6 / width, right=1 - 0.2 / width, bottom=0.17, top=0.8)
    figure.suptitle(name)
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        points = [(record["step"], record[measure]) for record in history if measure in record]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3)
        axes.set_title(measure.replace("_", " "), fontsize=10)
        axes.set_xlabel("batches")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
