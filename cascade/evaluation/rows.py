"""Click metrics of several models on the same rows, and of the truth where it is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from tqdm import tqdm

from cascade.data.dataset import Batch
from cascade.evaluation import metrics
from cascade.evaluation.brute_force import Encoded, Floats, logits_of_rows
from cascade.models.scorer import Scorer


def row_metrics(
    scorers: Mapping[str, Scorer], batches: Iterable[Batch], items: Encoded, device: str = "cpu"
) -> dict[str, float]:
    """Click metrics of every model on the same rows.

    Args:
        scorers: by suffix of the metric's name: `{"": ranker, "_baseline": …}` gives `auc` and
            `auc_baseline`. Where the rows know their true probability, `bayes_auc` and so on
            are what the best possible model would get.
    """
    labels: list[Floats] = []
    truth: list[Floats] = []
    predicted: dict[str, list[Floats]] = {suffix: [] for suffix in scorers}
    for batch in tqdm(batches, desc="test rows", unit="batch"):
        users, chosen = Encoded(batch.user_dense, batch.user_ids), items.take(batch.item)
        labels.append(batch.label)
        if batch.probability is not None:
            truth.append(batch.probability)
        for suffix, scorer in scorers.items():
            predicted[suffix].append(_sigmoid(logits_of_rows(scorer, users, chosen, device)))
    label = np.concatenate(labels)
    found = {
        f"{name}{suffix}": value
        for suffix, parts in predicted.items()
        for name, value in metrics.row_metrics(label, np.concatenate(parts)).items()
    }
    if truth:
        best = metrics.row_metrics(label, np.concatenate(truth))
        found |= {f"bayes_{name}": value for name, value in best.items()}
    return {**found, "test_rows": len(label), "test_rate": float(label.mean())}


def _sigmoid(logits: Floats) -> Floats:
    """In PyTorch's float64, so that a certain model is not rounded to 0 or 1."""
    return torch.from_numpy(logits).double().sigmoid().numpy()
