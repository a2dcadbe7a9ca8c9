"""The trainings of a cascade: the retriever on in-batch negatives, rankers on labels of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from cascade.data.dataset import Batch, Dataset
from cascade.models.scorer import Scorer
from cascade.schema import Side
from cascade.training.loop import Hyperparameters, Task
from cascade.training.negatives import Negatives, validation
from cascade.training.objectives import LOSSES, binary_measures, objectives
from cascade.training.unknowns import Unknowns

VALIDATION_ROWS = 50_000
VALIDATION_QUERIES = 1_000
CLICK_WEIGHT = 20.0  # of the cross-entropy on labels beside the sampled softmax
TEMPERATURE = 0.25  # of the cosine between the towers; small where users differ much
PAIRS = 8_192  # that are scored at once in inference

Rows = tuple[Tensor, Tensor, Tensor, Tensor]  # user dense [B, F_dense], user ids [B, C], their
# item's catalogue row [B], label [B], or [B, T] where several tasks are learnt
Pairs = tuple[Rows, tuple[Tensor, Tensor]]  # rows, and their items: dense [B, F_dense], ids [B, C]


def catalogue(dataset: Dataset, device: torch.device) -> TensorDataset:
    """The items on the training device: dense [N, F_dense], ids [N, C]."""
    return TensorDataset(*(torch.tensor(array, device=device) for array in dataset.items()))


def item_states(scorer: Scorer, items: TensorDataset, chunk: int = 16_384) -> Tensor:
    """Item states of the whole catalogue, [N, V]."""
    parts = (items[i : i + chunk] for i in range(0, len(items), chunk))
    with torch.inference_mode():
        return torch.cat([scorer.item(*part) for part in parts])


def pair_logits(scorer: Scorer, user: Tensor, states: Tensor, rows: Tensor | None = None) -> Tensor:
    """Logits [B, K] of user states [B, U] beside item states [B or 1, K, V], or beside the `rows`
    [B, K] of item states [N, V]. A part at a time, whose layers stay in the processor's cache:
    twice as fast as all at once. For inference."""
    width = states.shape[1] if rows is None else rows.shape[1]
    step = max(1, PAIRS // len(user))
    parts = []
    for at in range(0, width, step):
        part = states[:, at : at + step] if rows is None else states[rows[:, at : at + step]]
        parts.append(scorer.score(user, part.expand(len(user), -1, -1)))
    return torch.cat(parts, dim=1)


def labelled(batch: Batch, device: torch.device) -> TensorDataset:
    """Rows on the training device: a slice of them is `Rows`."""
    arrays = (batch.user_dense, batch.user_ids, batch.item, batch.label)
    return TensorDataset(*(torch.tensor(array, device=device) for array in arrays))


def with_items(batch: Batch, items: TensorDataset, device: torch.device) -> Pairs:
    """Rows beside their items: as the catalogue has them, but for the past of training rows."""
    rows = labelled(batch, device)[:]
    dense, ids = items[rows[2]]
    if batch.item_past is not None:
        put_past(dense, torch.tensor(batch.item_past))
    return rows, (dense, ids)


def put_past(dense: Tensor, past: Tensor) -> None:
    """Give items [B, F_dense] the past [B, P] that they had at another moment, in place."""
    dense[:, dense.shape[1] - past.shape[1] :] = past


class RowTask(Task):
    """A training on (user, item, label) rows; `negatives` are drawn beside each of them."""

    def __init__(
        self,
        scorer: Scorer,
        dataset: Dataset,
        hyper: Hyperparameters,
        device: torch.device,
        negatives: Negatives | None = None,
    ):
        self.scorer, self.dataset, self.hyper, self.device = scorer, dataset, hyper, device
        self.module: nn.Module = scorer
        self.items = catalogue(dataset, device)
        self.steps_per_epoch = -(-dataset.rows("train") // hyper.batch_size)
        self.negatives = negatives
        self.validation = validation(dataset, VALIDATION_ROWS, negatives)

    def batches(self, epoch: int, skip: int) -> Iterator[Pairs]:
        size, seed = self.hyper.batch_size, self.hyper.seed
        read = self.dataset.batches("train", size, seed, epoch, skip)
        for step, batch in enumerate(read, skip):
            if self.negatives is not None:
                batch = self.negatives.beside(batch, np.random.default_rng((seed, epoch, step)))
            yield with_items(self.learnt(batch), self.items, self.device)

    def learnt(self, batch: Batch) -> Batch:
        """Rows whose `label` is what is learnt of them."""
        return batch


class RankTask(RowTask):
    """Click probability by binary cross-entropy: rankers, and prerankers without a teacher. A model
    of several tasks learns all that the rows know, as `cascade.training.objectives` says.

    `meet_unknowns` makes ids unknown as often as validation rows have unknown ones: a small log
    knows many an id from one row, which says nothing of the next.
    """

    meet_unknowns = False

    def __init__(
        self,
        scorer: Scorer,
        dataset: Dataset,
        hyper: Hyperparameters,
        device: torch.device,
        negatives: Negatives | None = None,
    ):
        super().__init__(scorer, dataset, hyper, device, negatives)
        self.objectives = objectives(scorer, dataset)

    def learnt(self, batch: Batch) -> Batch:
        if batch.tasks is None:
            return batch
        return replace(batch, label=batch.tasks[:, [each.label for each in self.objectives]])

    def loss(self, batch: Pairs, step: int) -> Tensor:
        (dense, ids, _, label), (item_dense, item_ids) = batch
        if self.meet_unknowns:
            random = np.random.default_rng((self.hyper.seed, step))
            ids = self._unknowns["user"].put(ids, random)
            item_ids = self._unknowns["item"].put(item_ids, random)
        logits = by_task(self.scorer(dense, ids, item_dense, item_ids))
        columns = zip(self.objectives, by_task(label).unbind(1), strict=True)
        losses = [o.task.weight * o.loss(logits[:, o.logit], column) for o, column in columns]
        return torch.stack(losses).sum()

    @cached_property
    def _unknowns(self) -> dict[str, Unknowns]:
        return {side: Unknowns(self.dataset, side) for side in get_args(Side)}

    def validate(self) -> dict[str, float]:
        """The measures of each task that is learnt, behind them its name where there are several;
        the objective is their loss in training."""
        batch = self.learnt(self.validation)
        logits = task_logits(self.scorer, labelled(batch, self.device), self.items)
        labels = batch.label.reshape(len(batch), -1)
        found: dict[str, float] = {}
        total = 0.0
        for place, each in enumerate(self.objectives):
            measures = each.measures(logits[:, each.logit], labels[:, place])
            total += each.task.weight * measures.get(LOSSES[each.task.kind], 0.0)
            suffix = f"_{each.task.name}" if len(self.objectives) > 1 else ""
            found |= {f"validation_{name}{suffix}": value for name, value in measures.items()}
        return {"objective": total, **found}


def by_task(values: Tensor) -> Tensor:
    """[B] or [B, T] -> [B, T]."""
    return values if values.dim() == 2 else values.unsqueeze(1)


def task_logits(scorer: Scorer, rows: TensorDataset, items: TensorDataset) -> Tensor:
    """Logits [B, T] of a ranker, float64, with the items as the catalogue has them."""
    parts = []
    with torch.inference_mode():
        for at in range(0, len(rows), PAIRS):
            dense, ids, item, _ = rows[at : at + PAIRS]
            parts.append(by_task(scorer(dense, ids, *items[item])))
    return torch.cat(parts).double()


def row_logits(scorer: Scorer, rows: TensorDataset, items: TensorDataset) -> Tensor:
    """The same of the first task, [B]."""
    return task_logits(scorer, rows, items)[:, 0]


def of_rows(
    scorer: Scorer, batch: Batch, items: TensorDataset, device: torch.device
) -> dict[str, float]:
    """Log loss and, where both labels are there, AUC of a ranker on the rows of validation."""
    found = binary_measures(batch.label, row_logits(scorer, labelled(batch, device), items))
    return {f"validation_{name}": value for name, value in found.items()}


class WithNumber(nn.Module):
    """A model and a number that only its training needs and learns."""

    def __init__(self, scorer: Scorer, start: float) -> None:
        super().__init__()
        self.scorer = scorer
        self.number = nn.Parameter(torch.tensor(start))


def sampled_softmax(
    user: Tensor, item: Tensor, item_rows: Tensor, positive: Tensor, log_q: Tensor
) -> Tensor:
    """In-batch sampled softmax with the popularity correction.

    Every row's item is a candidate for every positive row's user. An item comes into a batch as
    often as it is shown, so log Q is taken off its logit (Yi et al., RecSys 2019); the same item
    met again in another row is no negative and is masked.

    Args:
        user, item: [B, D], already divided by the temperature on one side.
        item_rows: [B] catalogue rows.
        positive: [B] positions of the positives as a bool mask.
        log_q: [B] log of each item's share of the training rows.
    """
    rows = positive.nonzero().squeeze(1)  # [P]
    logits = user[rows] @ item.t() - log_q  # [P, B]
    same = item_rows[rows].unsqueeze(1) == item_rows.unsqueeze(0)
    same[torch.arange(len(rows), device=rows.device), rows] = False
    return functional.cross_entropy(logits.masked_fill(same, -torch.inf), rows)


class RetrievalTask(RowTask):
    """Sampled softmax over the items of a batch, plus cross-entropy on the labels, for a log of
    impressions: the system chose what to show, so the label tells most about the user."""

    def __init__(
        self,
        scorer: Scorer,
        dataset: Dataset,
        hyper: Hyperparameters,
        device: torch.device,
    ):
        super().__init__(scorer, dataset, hyper, device)
        self.module = module = WithNumber(scorer, -1.0).to(device)
        self.bias = module.number  # the level of a click's logit
        # Where all labels are 1, they teach nothing; the other items of a batch are the negatives.
        self.click_weight = CLICK_WEIGHT if dataset.has_negatives else 0.0
        counts = np.zeros(dataset.item_count)
        for batch in dataset.batches("train", 65_536):
            counts += np.bincount(batch.item, minlength=len(counts))
        share = np.maximum(counts, 1) / counts.sum()
        self.log_q = torch.from_numpy(np.log(share)).float().to(device)

    def loss(self, batch: Pairs, step: int) -> Tensor:
        (dense, ids, shown, label), items = batch
        user = self.scorer.user(dense, ids) / TEMPERATURE
        item = self.scorer.item(*items)
        logit = (user * item).sum(1) + self.bias
        click = functional.binary_cross_entropy_with_logits(logit, label)
        loss = self.click_weight * click
        positive = label > 0
        if positive.any():
            loss = loss + sampled_softmax(user, item, shown, positive, self.log_q[shown])
        return loss

    def validate(self) -> dict[str, float]:
        """The loss, and recall@100 of validation positives among the whole catalogue."""
        rows, size = labelled(self.validation, self.device), self.hyper.batch_size
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        losses = [self.loss((part, self.items[part[2]]), 0) for part in parts]
        loss = float(torch.stack(losses).mean())
        positive = np.flatnonzero(self.validation.label > 0)[:VALIDATION_QUERIES]
        recall = self._recall(TensorDataset(*rows[positive]))
        return {"objective": loss, "validation_loss": loss, "validation_recall_at_100": recall}

    def _recall(self, positives: TensorDataset) -> float:
        states = item_states(self.scorer, self.items)
        hits = 0.0
        for i in range(0, len(positives), 256):
            dense, ids, item, _ = positives[i : i + 256]
            scores = self.scorer.user(dense, ids) @ states.t()
            top = scores.topk(min(100, len(states)), dim=1).indices
            hits += float((top == item[:, None]).any(1).sum())
        return hits / max(1, len(positives))
