"""The trainings of a cascade: the retriever on in-batch negatives, rankers on clicks.

The labels are those of a model's first task; the logits of further tasks are not trained here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import numpy as np
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from cascade.data.dataset import Batch, Dataset
from cascade.models.scorer import Scorer
from cascade.schema import Side
from cascade.training.loop import Hyperparameters
from cascade.training.negatives import Negatives, validation
from cascade.training.unknowns import Unknowns

VALIDATION_ROWS = 50_000
VALIDATION_QUERIES = 1_000
PAIRS = 8_192  # that are scored at once in inference

Rows = tuple[Tensor, Tensor, Tensor, Tensor]  # user dense [B, F_dense], user ids [B, C], their
# item's catalogue row [B], label [B]


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


class RowTask:
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

    def batches(self, epoch: int, skip: int) -> Iterator[Rows]:
        size, seed = self.hyper.batch_size, self.hyper.seed
        read = self.dataset.batches("train", size, seed, epoch, skip)
        for step, batch in enumerate(read, skip):
            if self.negatives is not None:
                batch = self.negatives.beside(batch, np.random.default_rng((seed, epoch, step)))
            yield labelled(batch, self.device)[:]


class RankTask(RowTask):
    """Click probability by binary cross-entropy: rankers, and prerankers without a teacher.

    `meet_unknowns` makes ids unknown as often as validation rows have unknown ones: a small log
    knows many an id from one row, which says nothing of the next.
    """

    meet_unknowns = False

    def logits(self, rows: Rows) -> Tensor:
        dense, ids, item, _ = rows
        return self.scorer.score_rows(dense, ids, *self.items[item])

    def loss(self, batch: Rows, step: int) -> Tensor:
        if not self.meet_unknowns:
            return functional.binary_cross_entropy_with_logits(self.logits(batch), batch[3])
        random = np.random.default_rng((self.hyper.seed, step))
        dense, ids, item, label = batch
        item_dense, item_ids = self.items[item]
        ids, item_ids = (
            self._unknowns[side].put(part, random)
            for side, part in (("user", ids), ("item", item_ids))
        )
        logits = self.scorer.score_rows(dense, ids, item_dense, item_ids)
        return functional.binary_cross_entropy_with_logits(logits, label)

    @cached_property
    def _unknowns(self) -> dict[str, Unknowns]:
        return {side: Unknowns(self.dataset, side) for side in get_args(Side)}

    def validate(self) -> dict[str, float]:
        rows = labelled(self.validation, self.device)
        parts = [self.logits(rows[i : i + 8192]) for i in range(0, len(rows), 8192)]
        probability = torch.sigmoid(torch.cat(parts)).double().cpu().numpy()
        label = self.validation.label
        loss = float(log_loss(label, probability, labels=[0, 1]))
        found = {"objective": loss, "validation_log_loss": loss}
        if 0 < label.mean() < 1:  # one class alone has no AUC
            found["validation_auc"] = float(roc_auc_score(label, probability))
        return found


@dataclass(frozen=True)
class RetrievalObjective:
    """How a retriever learns, which depends on how the items of the rows were chosen."""

    click_weight: float  # of the cross-entropy on labels beside the sampled softmax
    temperature: float  # of the cosine between the towers; small where users differ much


OBJECTIVES = {
    # The system chose what to show: only the label tells about the user.
    "impressions": RetrievalObjective(click_weight=20.0, temperature=0.25),
    # The user chose what to rate: that an item is in the log tells most.
    "choices": RetrievalObjective(click_weight=0.5, temperature=0.05),
}


class Towers(nn.Module):
    """A retriever with a parameter that only its training needs: the level of a click's logit."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer
        self.bias = nn.Parameter(torch.tensor(-1.0))


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
    """Sampled softmax over the items of a batch, plus cross-entropy on the labels."""

    def __init__(
        self,
        scorer: Scorer,
        dataset: Dataset,
        hyper: Hyperparameters,
        device: torch.device,
        objective: RetrievalObjective = OBJECTIVES["impressions"],
    ):
        super().__init__(scorer, dataset, hyper, device)
        self.module = self.towers = Towers(scorer).to(device)
        # Where all labels are 1, they teach nothing; the other items of a batch are the negatives.
        self.click_weight = objective.click_weight if dataset.has_negatives else 0.0
        self.objective = objective
        counts = np.zeros(dataset.item_count)
        for batch in dataset.batches("train", 65_536):
            counts += np.bincount(batch.item, minlength=len(counts))
        share = np.maximum(counts, 1) / counts.sum()
        self.log_q = torch.from_numpy(np.log(share)).float().to(device)

    def loss(self, batch: Rows, step: int) -> Tensor:
        dense, ids, shown, label = batch
        user = self.scorer.user(dense, ids) / self.objective.temperature
        item = self.scorer.item(*self.items[shown])
        logit = (user * item).sum(1) + self.towers.bias
        click = functional.binary_cross_entropy_with_logits(logit, label)
        loss = self.click_weight * click
        positive = label > 0
        if positive.any():
            loss = loss + sampled_softmax(user, item, shown, positive, self.log_q[shown])
        return loss

    def validate(self) -> dict[str, float]:
        """The loss, and recall@100 of validation positives among the whole catalogue."""
        rows, size = labelled(self.validation, self.device), self.hyper.batch_size
        losses = [self.loss(rows[i : i + size], 0) for i in range(0, len(rows), size)]
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
