"""What the logits of a model learn: the label of one task, or those of several.

A probability learns by binary cross-entropy. An amount learns by the Poisson deviance of
softplus(logit), which is least where the prediction is the mean, whatever the distribution
(McCullagh and Nelder, "Generalized Linear Models", 1989; Gneiting, "Making and Evaluating Point
Forecasts", JASA 2011): it takes zeros, and one large amount weighs less in it than in a squared
error. It is divided by the deviance of the mean of the training rows, so that it has no unit and is
1 for a model that knows that mean alone, whatever the amounts are counted in.

A row counts for the tasks whose label it knows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor
from torch.nn import functional

from cascade.data.dataset import Dataset
from cascade.data.source import TASK, DataError
from cascade.encoding import Floats
from cascade.models.scorer import Scorer
from cascade.schema import Task

LOSSES = {"binary": "log_loss", "amount": "deviance"}  # among the measures
LINEAR = -15.0  # a logit below which log(softplus(logit)) is the logit, as far as float32 tells


@dataclass(frozen=True)
class Objective:
    """One logit, and the label that it learns.

    Args:
        task: its kind says which loss is taken; `weight` is what the loss is multiplied by.
        logit: the column of the model's logits.
        label: the column of `Batch.tasks`.
        unit: of an amount, what its loss is divided by.
    """

    task: Task
    logit: int = 0
    label: int = 0
    unit: float = 1.0

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Logits [B] and labels [B], NaN = not known -> the mean loss of the rows that know it; 0
        where there is none."""
        known = ~label.isnan()
        if not known.all():
            logits, label = logits[known], label[known]
        if not len(label):
            return logits.sum()
        if self.task.kind == "binary":
            return functional.binary_cross_entropy_with_logits(logits, label)
        return amount_loss(logits, label) / self.unit

    def measures(self, logits: Tensor, label: Floats) -> dict[str, float]:
        """Logits float64 [B] and labels [B], NaN = not known -> the loss; where both kinds of rows
        are there, the AUC of label 1, or of an amount above 0; and what all predicted
        amounts are of all true ones."""
        known = ~np.isnan(label)
        logits, label = logits[torch.from_numpy(known).to(logits.device)], label[known]
        if not len(label):
            return {}
        if self.task.kind == "binary":
            return binary_measures(label, logits)
        amounts = torch.tensor(label, device=logits.device, dtype=logits.dtype)
        found = {"deviance": float(amount_loss(logits, amounts)) / self.unit}
        if amounts.any():
            predicted = functional.softplus(logits).sum()
            found["calibration"] = float(predicted / amounts.sum())
        return found | _auc(label > 0, logits.cpu().numpy())


def amount_loss(logits: Tensor, amounts: Tensor) -> Tensor:
    """Half the mean Poisson deviance of softplus(logits) [B] from amounts [B] of 0 or more; 0 where
    all are equal."""
    predicted = functional.softplus(logits)
    log_predicted = torch.where(logits < LINEAR, logits, predicted.clamp(min=1e-7).log())
    each = torch.xlogy(amounts, amounts) - amounts * log_predicted - amounts + predicted
    return each.mean()


def binary_measures(label: Floats, logits: Tensor) -> dict[str, float]:
    """Labels [B], and their logits float64 [B] -> `log_loss`, and `auc` where both labels are
    there."""
    probability = torch.sigmoid(logits).cpu().numpy()
    found = {"log_loss": float(log_loss(label, probability, labels=[0, 1]))}
    return found | _auc(label > 0, probability)


def _auc(positive: npt.NDArray[np.bool_], score: Floats) -> dict[str, float]:
    """`auc`, unless one class is alone."""
    if not 0 < positive.mean() < 1:
        return {}
    return {"auc": float(roc_auc_score(positive, score))}


def objectives(scorer: Scorer, dataset: Dataset) -> tuple[Objective, ...]:
    """What a model learns of the rows of a data set.

    One of a single task learns `label`. One of several learns those of its tasks that the schema
    has, and `label` by its first one, whatever its name. A `DataError`: the label is an amount, and
    the model gives a chance.
    """
    tasks = dataset.schema.tasks
    places = {task.name: place for place, task in enumerate(tasks)} if len(scorer.tasks) > 1 else {}
    places = {scorer.tasks[0]: 0} | places
    found = []
    for logit, (name, kind) in enumerate(zip(scorer.tasks, scorer.kinds, strict=True)):
        if name not in places:
            continue
        task = tasks[places[name]]
        if kind != task.kind:
            raise DataError(
                f"{dataset.root}: the label {task.name} is of the kind {task.kind}, and the task "
                f"{name} of {type(scorer).__name__} is {kind}; expected a model whose tasks are "
                "those of the schema"
            )
        found.append(Objective(task, logit, places[name], _unit(dataset, task, places[name])))
    if len(found) == 1:
        found = [replace(found[0], task=replace(found[0].task, weight=1.0))]
    return tuple(found)


def _unit(dataset: Dataset, task: Task, place: int) -> float:
    """Half the Poisson deviance of the mean amount from the amounts of the training rows."""
    if task.kind == "binary":
        return 1.0
    name = f"{TASK}{task.name}" if place else "label"
    amounts = dataset.columns("train", [name])[name].astype(np.float64)
    amounts = amounts[~np.isnan(amounts)]
    there = amounts[amounts > 0]
    if not len(there):
        raise DataError(
            f"{dataset.root}: no training row has an amount of {task.name} above 0, so there is "
            "nothing to learn of it; leave the task out"
        )
    found = float((there * np.log(there / amounts.mean())).sum() / len(amounts))
    return found if found > 0 else float(amounts.mean())  # all amounts may be equal
