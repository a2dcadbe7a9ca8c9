"""Models of clicks on the same held-out rows: metrics, their draws over users, and reliability."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from cascade.data.dataset import Batch
from cascade.evaluation import bootstrap, metrics
from cascade.evaluation.brute_force import Encoded, logits_of_rows
from cascade.evaluation.metrics import Floats, Ids, Metrics
from cascade.evaluation.verdict import Measured
from cascade.models.scorer import Scorer

BINS = 10  # of the predicted probabilities, with as many rows each
MEASURES = {"auc": "AUC", "gauc": "GAUC", "log_loss": "log loss"}  # those that have draws


@dataclass
class Scored:
    """Rows of users and what models predicted of them.

    Attributes:
        label: [R]; user: int64 [R], a number of its own for a row whose user is not said.
        named: whether the log says whose the rows are.
        predicted: probabilities float64 [R], by suffix of the metrics' names.
        truth: [R], the true probabilities where the rows know them.
    """

    label: Floats
    user: Ids
    named: bool
    predicted: dict[str, npt.NDArray[np.floating[Any]]]
    truth: Floats | None = None
    batches: list[Batch] = field(default_factory=list)

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
    predicted: dict[str, list[npt.NDArray[np.float64]]] = {suffix: [] for suffix in scorers}
    for batch in tqdm(batches, desc="test rows", unit="batch"):
        kept.append(batch)
        users, chosen = Encoded(batch.user_dense, batch.user_ids), items.take(batch.item)
        for suffix, scorer in scorers.items():
            logits = torch.from_numpy(logits_of_rows(scorer, users, chosen, device))
            # In float64, so that a certain model is not rounded to 0 or 1.
            predicted[suffix].append(logits.double().sigmoid().numpy())
    label = np.concatenate([batch.label for batch in kept])
    truth = [batch.probability for batch in kept if batch.probability is not None]
    users_of = [batch.user for batch in kept if batch.user is not None]
    own = -1 - np.arange(len(label), dtype=np.int64)
    user = np.concatenate(users_of) if users_of else own
    return Scored(
        label,
        np.where(user < 0, own, user),
        bool(users_of),
        {suffix: np.concatenate(parts) for suffix, parts in predicted.items()},
        np.concatenate(truth) if truth else None,
        kept,
    )


def _reliability(label: Floats, p: npt.NDArray[np.floating[Any]]) -> list[list[float]]:
    parts = np.array_split(np.argsort(p, kind="stable"), min(BINS, len(p)))
    return [
        [float(p[some].mean()) for some in parts],
        [float((label[some] > 0.5).mean()) for some in parts],
    ]
