"""Models of clicks on the same held-out rows: metrics, their draws over users, and reliability; and
of further tasks: metrics on the rows that know them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from tqdm import tqdm

from cascade.data.dataset import Batch
from cascade.evaluation import bootstrap, metrics
from cascade.evaluation.brute_force import Encoded, logits_of_rows
from cascade.evaluation.metrics import Floats, Ids, Metrics
from cascade.evaluation.verdict import Measured
from cascade.models.scorer import Scorer
from cascade.schema import Task, TaskKind

BINS = 10  # of the predicted probabilities, with as many rows each
MEASURES = {"auc": "AUC", "gauc": "GAUC", "log_loss": "log loss"}  # those that have draws


@dataclass
class OfTask:
    """One task of several.

    Attributes:
        observed: labels [R], NaN where a row does not know it.
        predicted: chances or means float64 [R], by suffix of the models that have the task.
        truth: [R], where the rows know it.
    """

    task: Task
    observed: Floats
    predicted: dict[str, npt.NDArray[np.floating[Any]]]
    truth: Floats | None = None

    def metrics(self) -> Metrics:
        """`auc_TASK` and so on, behind it the suffix of the model; `bayes_auc_TASK` and so on of
        the truth."""
        name, known = self.task.name, ~np.isnan(self.observed)
        kind = metrics.row_metrics if self.task.kind == "binary" else metrics.amount_metrics
        named = {f"{{}}_{name}{suffix}": p for suffix, p in self.predicted.items()}
        if self.truth is not None:
            named[f"bayes_{{}}_{name}"] = self.truth
        seen = self.observed[known]
        found: Metrics = {}
        for pattern, p in named.items():
            found |= {pattern.format(of): v for of, v in kind(seen, p[known]).items()}
        rate = float(seen.mean()) if len(seen) else metrics.NAN
        return {**found, f"test_rows_{name}": len(seen), f"test_rate_{name}": rate}


@dataclass
class Scored:
    """Rows of users and what models predicted of them.

    Attributes:
        label: [R]; user: int64 [R], a number of its own for a row whose user is not said.
        named: whether the log says whose the rows are.
        predicted: probabilities float64 [R], by suffix of the metrics' names.
        truth: [R], the true probabilities where the rows know them.
        tasks: where there are several, all of them.
    """

    label: Floats
    user: Ids
    named: bool
    predicted: dict[str, npt.NDArray[np.floating[Any]]]
    truth: Floats | None = None
    batches: list[Batch] = field(default_factory=list)
    tasks: list[OfTask] = field(default_factory=list)

    def metrics(self) -> Metrics:
        """Of every model: `auc` and so on, behind it the suffix; `bayes_auc` and so on are what the
        best possible model would get."""
        found: Metrics = {}
        for suffix, p in self.predicted.items():
            rows = metrics.row_metrics(self.label, p)
            found |= {f"{name}{suffix}": value for name, value in rows.items()}
            grouped = metrics.gauc(self.label, p, self.user) if self.named else metrics.NAN
            if grouped == grouped:
                found[f"gauc{suffix}"] = grouped
        if self.truth is not None:
            best = metrics.row_metrics(self.label, self.truth)
            found |= {f"bayes_{name}": value for name, value in best.items()}
        for of_task in self.tasks:
            found |= of_task.metrics()
        return {**found, "test_rows": len(self.label), "test_rate": float(self.label.mean())}

    def measured(self, found: Metrics) -> dict[str, dict[str, Measured]]:
        """The figures that have draws, by measure and suffix."""
        by_measure: dict[str, dict[str, Measured]] = {}
        for suffix, p in self.predicted.items():
            drawn = bootstrap.row_draws(self.label, p, self.user)
            for name in MEASURES:
                value = found.get(f"{name}{suffix}", metrics.NAN)
                if value == value:
                    figure = Measured(value, drawn[name], loss=name == "log_loss")
                    by_measure.setdefault(name, {})[suffix] = figure
        return by_measure

    def reliability(self) -> dict[str, list[list[float]]]:
        """By suffix: the mean prediction and the share of positives of rows with like predictions,
        in ascending order."""
        return {suffix: _reliability(self.label, p) for suffix, p in self.predicted.items()}


def score(
    scorers: Mapping[str, Scorer], batches: Iterable[Batch], items: Encoded, device: str = "cpu"
) -> Scored:
    """What every model predicts of the same rows. `scorers`: by suffix of the metric's name."""
    kept: list[Batch] = []
    logits: dict[str, list[Floats]] = {suffix: [] for suffix in scorers}
    for batch in tqdm(batches, desc="test rows", unit="batch"):
        kept.append(batch)
        users, chosen = Encoded(batch.user_dense, batch.user_ids), items.take(batch.item)
        for suffix, scorer in scorers.items():
            logits[suffix].append(logits_of_rows(scorer, users, chosen, device))
    label = np.concatenate([batch.label for batch in kept])
    users_of = [batch.user for batch in kept if batch.user is not None]
    own = -1 - np.arange(len(label), dtype=np.int64)
    user = np.concatenate(users_of) if users_of else own
    found = {suffix: np.concatenate(parts) for suffix, parts in logits.items()}
    return Scored(
        label,
        np.where(user < 0, own, user),
        bool(users_of),
        {suffix: _predicted("binary", of[:, 0]) for suffix, of in found.items()},
        _joined([batch.probability for batch in kept]),
        kept,
        _tasks(scorers, found, kept),
    )


def _tasks(
    scorers: Mapping[str, Scorer], logits: Mapping[str, Floats], batches: Sequence[Batch]
) -> list[OfTask]:
    """The tasks of the rows, where there are several, with what the models that learnt several
    predict."""
    observed = _joined([batch.tasks for batch in batches])
    if observed is None:
        return []
    truth = _joined([batch.truth for batch in batches])
    found = []
    for place, task in enumerate(next(iter(scorers.values())).schema.tasks):
        predicted = {
            suffix: _predicted(task.kind, logits[suffix][:, scorer.tasks.index(task.name)])
            for suffix, scorer in scorers.items()
            if len(scorer.tasks) > 1 and task.name in scorer.tasks
        }
        best = None if truth is None else truth[:, place]
        found.append(OfTask(task, observed[:, place], predicted, best))
    return found


def _predicted(kind: TaskKind, logits: Floats) -> npt.NDArray[np.float64]:
    """Logits [R] -> chances, or means of an amount; in float64, so that a certain model is not
    rounded to 0 or 1."""
    wide = torch.from_numpy(logits).double()
    made = wide.sigmoid() if kind == "binary" else functional.softplus(wide)
    return np.asarray(made.numpy())


def _joined(parts: Sequence[Floats | None]) -> Floats | None:
    """Columns of batches, one behind the other, where there are any."""
    there = [part for part in parts if part is not None]
    return np.concatenate(there) if there else None


def _reliability(label: Floats, p: npt.NDArray[np.floating[Any]]) -> list[list[float]]:
    parts = np.array_split(np.argsort(p, kind="stable"), min(BINS, len(p)))
    return [
        [float(p[some].mean()) for some in parts],
        [float((label[some] > 0.5).mean()) for some in parts],
    ]
