"""Trains one model on one data set and judges it on the test rows."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cascade.data.dataset import Dataset
from cascade.evaluation import metrics
from cascade.models import build, parse, preset
from cascade.models.scorer import Scorer
from cascade.training import checkpoint
from cascade.training.choices.rank import RANKED, ChoiceRankTask, likeliest
from cascade.training.choices.retrieve import ChoiceRetrievalTask
from cascade.training.choices.rows import Queries, ndcg, places
from cascade.training.loop import Task, fit
from cascade.training.tasks import (
    RankTask,
    RetrievalTask,
    catalogue,
    item_states,
    labelled,
    pair_logits,
    row_logits,
)
from perf.zoo.sets import SETS, Budget, named, retrieves

ROWS = 65_536  # of the test split at a time
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        model: its name, or `name:preset` for one that is not compared as `named` says.
        data: the prepared folder.
        out: for the checkpoint.
        retriever: checkpoint of the retriever whose lists a ranker orders; None for a retriever.
        label: the task that is trained alone; empty: all that the model has.
    """

    data_set: str
    model: str
    data: Path
    out: Path
    retriever: Path | None
    quick: bool
    label: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        """What the figures are kept under."""
        return f"{self.model}, {self.label} alone" if self.label else self.model

    @property
    def budget(self) -> Budget:
        kind = SETS[self.data_set]
        found = kind.retrieve if retrieves(self.model) else kind.rank
        return found.quick() if self.quick else found


def run(job: Job) -> dict[str, Any]:
    """Train, write the checkpoint, judge; -> the figures."""
    whole = Dataset.open(job.data)
    dataset = whole.with_label(job.label) if job.label else whole
    name, size = parse(named(job.model, SETS[job.data_set].choices))
    torch.manual_seed(job.seed)
    scorer = build(name, preset(name, size), dataset.schema)
    retriever = None if job.retriever is None else checkpoint.load(job.retriever, dataset.schema)
    task = _task(job, scorer, dataset, retriever)
    started = time.process_time()
    history = fit(task, job.budget.hyper, job.out, f"{job.data_set}, {job.model}")
    took = time.process_time() - started
    described = {"model": name, "preset": size, "config": preset(name, size)}
    checkpoint.save(
        job.out, scorer, {**described, "schema_hash": dataset.schema.hash, "history": history}
    )
    checkpoint.finish(job.out)
    scorer.eval()
    best = min(history, key=lambda record: record["objective"])
    steps = max(record["step"] for record in history)
    rows = dataset.rows("train") / task.steps_per_epoch  # read for a step
    found: dict[str, Any] = {
        "preset": size,
        "parameters": sum(p.numel() for p in scorer.parameters()),
        "rows_per_s": steps * rows / took,
        "epochs": steps / task.steps_per_epoch,
        "best_epoch": best["step"] / task.steps_per_epoch,
        "hyperparameters": asdict(job.budget.hyper),
    }
    if retrieves(job.model):
        return {**found, **judged_lists(scorer, dataset, job.budget.judged)}
    if SETS[job.data_set].several:
        return {**found, **judged_tasks(scorer, whole)}
    found |= judged_rows(scorer, dataset)
    if retriever is not None:
        assert isinstance(task, ChoiceRankTask)
        found |= judged_lists(retriever, dataset, job.budget.judged, scorer, beside(task))
    return found


def _task(job: Job, scorer: Scorer, dataset: Dataset, retriever: Scorer | None) -> Task:
    where = (dataset, job.budget.hyper, CPU)
    choices = SETS[job.data_set].choices
    if retrieves(job.model):
        return (ChoiceRetrievalTask if choices else RetrievalTask)(scorer, *where)
    if choices:
        assert retriever is not None
        some = job.budget.drawn, job.budget.queries
        return ChoiceRankTask(scorer, retriever, *where, None, *some, sharpness=1.0)
    task = RankTask(scorer, *where)
    task.meet_unknowns = SETS[job.data_set].unknowns
    return task


def judged_rows(scorer: Scorer, dataset: Dataset) -> dict[str, float]:
    """AUC, log loss, normalized entropy and calibration on the test rows, and the best possible AUC
    where the source knows it."""
    items, predicted, labels, best = catalogue(dataset, CPU), [], [], []
    for batch in dataset.batches("test", ROWS):
        predicted.append(torch.sigmoid(row_logits(scorer, labelled(batch, CPU), items)).numpy())
        labels.append(batch.label)
        if batch.probability is not None:
            best.append(batch.probability)
    label = np.concatenate(labels)
    found = metrics.row_metrics(label, np.concatenate(predicted))
    return {**found, **({"best_auc": metrics.auc(label, np.concatenate(best))} if best else {})}


def judged_tasks(scorer: Scorer, dataset: Dataset) -> dict[str, float]:
    """The AUC of each task of a model on the test rows that know it: of an amount, for whether
    there is any."""
    items, parts, labels = catalogue(dataset, CPU), [], []
    for batch in dataset.batches("test", ROWS):
        dense, ids, item, _ = labelled(batch, CPU)[:]
        with torch.inference_mode():
            logits = scorer(dense, ids, *items[item])
        assert batch.tasks is not None
        parts.append(logits.reshape(len(logits), -1).numpy())
        labels.append(batch.tasks)
    predicted, label = np.concatenate(parts), np.concatenate(labels)
    found: dict[str, float] = {}
    for place, task in enumerate(dataset.schema.tasks):
        if task.name in scorer.tasks:
            known = ~np.isnan(label[:, place])
            logit = predicted[known, scorer.tasks.index(task.name)]
            happened = (label[known, place] > 0).astype(np.float32)
            found[f"auc_{task.name}"] = metrics.auc(happened, logit)
    return found


def beside(task: ChoiceRankTask) -> float:
    """The weight of the ranker's logits beside 1 of the retriever's scores, by validation lists."""
    with torch.inference_mode():
        scores = task.retriever.user(*task.queries.rows[:][:2]) @ task.near.t()
    return likeliest(scores.gather(1, task.candidates).clone(), task.logits().clone(), task.own)


def judged_lists(
    retriever: Scorer,
    dataset: Dataset,
    queries: int,
    ranker: Scorer | None = None,
    weight: float = 0.0,
) -> dict[str, float]:
    """recall@100 of the retriever among the whole catalogue, and NDCG@10 of its list, or of its
    best candidates in the ranker's order, and in that of the retriever's scores plus the ranker's
    logits times `weight`: of test positives, without what their users had seen."""
    asked = Queries(dataset, CPU, queries, split="test")
    items = catalogue(dataset, CPU)
    states = item_states(retriever, items)
    ranked = None if ranker is None else item_states(ranker, items)
    deep, listed, added = [], [], []
    with torch.inference_mode():
        for at in range(0, len(asked), 256):
            dense, ids, chosen, _ = asked.rows[at : at + 256]
            scores = retriever.user(dense, ids) @ states.t()
            own = scores.gather(1, chosen[:, None])
            scores[asked.seen(at, at + 256)] = -torch.inf
            place = places(scores, own)
            deep.append(place)
            if ranker is not None and ranked is not None:
                near, rows = scores.topk(min(RANKED, scores.shape[1]), dim=1)
                logits = pair_logits(ranker, ranker.user(dense, ids), ranked, rows)
                there = rows == chosen[:, None]
                place = _places(logits, there)
                added.append(_places(near + weight * logits, there))
            listed.append(place)
    found = {"ndcg_at_10": float(ndcg(torch.cat(listed)).mean()), "queries": len(asked)}
    if ranker is None:
        return {**found, "recall_at_100": float((torch.cat(deep) < 100).double().mean())}
    beside = float(ndcg(torch.cat(added)).mean())
    return {**found, "ndcg_at_10_beside": beside, "weight_beside": weight}


def _places(logits: Tensor, there: Tensor) -> Tensor:
    """[Q]: where lists of these logits [Q, K] have the item that is `there` [Q, K], if any."""
    own = logits.masked_fill(~there, -torch.inf).amax(1, keepdim=True)
    return torch.where(there.any(1), places(logits, own), torch.inf)
