"""The trainings of a cascade: retriever on in-batch negatives, rankers on clicks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from cascade.data.dataset import Batch, Dataset
from cascade.models.scorer import Scorer
from cascade.training.loop import Recipe
from cascade.training.losses import sampled_softmax

VALIDATION_ROWS = 50_000
VALIDATION_QUERIES = 1_000


@dataclass(frozen=True)
class Items:
    """The catalogue's features on the training device: dense [N, F_dense], ids [N, C]."""

    dense: Tensor
    ids: Tensor

    @classmethod
    def of(cls, dataset: Dataset, device: torch.device) -> Items:
        dense, ids = dataset.items()
        return cls(torch.tensor(dense, device=device), torch.tensor(ids, device=device))

    def states(self, scorer: Scorer, chunk: int = 16_384) -> Tensor:
        """Item states of the whole catalogue, [N, V]."""
        with torch.inference_mode():
            return torch.cat(
                [
                    scorer.item(self.dense[i : i + chunk], self.ids[i : i + chunk])
                    for i in range(0, len(self.ids), chunk)
                ]
            )


@dataclass(frozen=True)
class Rows:
    """A batch as tensors: users [B, ...], their item's catalogue row [B], label [B]."""

    dense: Tensor
    ids: Tensor
    item: Tensor
    label: Tensor

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> Rows:
        arrays = (batch.user_dense, batch.user_ids, batch.item, batch.label)
        return cls(*(torch.tensor(array, device=device) for array in arrays))

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, chosen: slice | Tensor) -> Rows:
        return Rows(self.dense[chosen], self.ids[chosen], self.item[chosen], self.label[chosen])


class RowTask:
    """What all trainings on (user, item, label) rows share: the rows."""

    def __init__(self, scorer: Scorer, dataset: Dataset, recipe: Recipe, device: torch.device):
        self.scorer, self.dataset, self.recipe, self.device = scorer, dataset, recipe, device
        self.module: nn.Module = scorer
        self.items = Items.of(dataset, device)
        self.steps_per_epoch = -(-dataset.rows("train") // recipe.batch_size)
        self.validation = dataset.read("validation", VALIDATION_ROWS)

    def batches(self, epoch: int, skip: int) -> Iterator[Rows]:
        for batch in self.dataset.batches(
            "train", self.recipe.batch_size, self.recipe.seed, epoch, skip
        ):
            yield Rows.of(batch, self.device)


class RankTask(RowTask):
    """Click probability by binary cross-entropy: rankers, and prerankers without a teacher."""

    def logits(self, rows: Rows) -> Tensor:
        item_dense, item_ids = self.items.dense[rows.item], self.items.ids[rows.item]
        logits: Tensor = self.scorer(rows.dense, rows.ids, item_dense, item_ids)
        return logits

    def loss(self, batch: Rows, step: int) -> Tensor:
        return functional.binary_cross_entropy_with_logits(self.logits(batch), batch.label)

    def validate(self) -> dict[str, float]:
        rows = Rows.of(self.validation, self.device)
        parts = [self.logits(rows[i : i + 8192]) for i in range(0, len(rows), 8192)]
        probability = torch.sigmoid(torch.cat(parts)).double().cpu().numpy()
        label = self.validation.label
        loss = float(log_loss(label, probability, labels=[0, 1]))
        auc = float(roc_auc_score(label, probability)) if 0 < label.mean() < 1 else float("nan")
        return {"objective": loss, "validation_log_loss": loss, "validation_auc": auc}


@dataclass(frozen=True)
class RetrievalObjective:
    """What a retriever has to learn from, which depends on how the rows came about.

    Args:
        click_weight: of the cross-entropy on labels beside the sampled softmax.
        temperature: of the cosine between the towers; small where users differ much.
    """

    click_weight: float
    temperature: float


OBJECTIVES = {
    # The system chose what to show: that an item is in the log says nothing about the user, the
    # label says it all.
    "impressions": RetrievalObjective(click_weight=20.0, temperature=0.25),
    # The user chose what to rate: that an item is in the log says most.
    "choices": RetrievalObjective(click_weight=0.5, temperature=0.05),
}


class Towers(nn.Module):
    """The two towers with what only their training needs: the level of a click's logit."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer
        self.bias = nn.Parameter(torch.tensor(-1.0))


class RetrievalTask(RowTask):
    """Sampled softmax over the items of a batch, plus cross-entropy on the labels."""

    def __init__(
        self,
        scorer: Scorer,
        dataset: Dataset,
        recipe: Recipe,
        device: torch.device,
        objective: RetrievalObjective = OBJECTIVES["impressions"],
    ):
        super().__init__(scorer, dataset, recipe, device)
        self.module = self.towers = Towers(scorer).to(device)
        self.objective = objective
        counts = np.zeros(dataset.item_count)
        for batch in dataset.batches("train", 65_536):
            counts += np.bincount(batch.item, minlength=len(counts))
        share = np.maximum(counts, 1) / counts.sum()
        self.log_q = torch.from_numpy(np.log(share)).float().to(device)

    def loss(self, batch: Rows, step: int) -> Tensor:
        user = self.scorer.user(batch.dense, batch.ids) / self.objective.temperature
        item = self.scorer.item(self.items.dense[batch.item], self.items.ids[batch.item])
        logit = (user * item).sum(1) + self.towers.bias
        click = functional.binary_cross_entropy_with_logits(logit, batch.label)
        loss = self.objective.click_weight * click
        positive = batch.label > 0
        if positive.any():
            loss = loss + sampled_softmax(user, item, batch.item, positive, self.log_q[batch.item])
        return loss

    def validate(self) -> dict[str, float]:
        """The loss, and recall@100 of validation positives among the whole catalogue."""
        rows, size = Rows.of(self.validation, self.device), self.recipe.batch_size
        losses = [self.loss(rows[i : i + size], 0) for i in range(0, len(rows), size)]
        loss = float(torch.stack(losses).mean())
        recall = self._recall(rows[(rows.label > 0).nonzero().squeeze(1)[:VALIDATION_QUERIES]])
        return {"objective": loss, "validation_loss": loss, "validation_recall_at_100": recall}

    def _recall(self, positives: Rows) -> float:
        states = self.items.states(self.scorer)
        hits = 0.0
        for i in range(0, len(positives), 256):
            part = positives[i : i + 256]
            scores = self.scorer.user(part.dense, part.ids) @ states.t()
            top = scores.topk(min(100, len(states)), dim=1).indices
            hits += float((top == part.item[:, None]).any(1).sum())
        return hits / max(1, len(positives))
