"""A preranker learns the ranker's order where it will be used: on what the retriever returns."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset
from tqdm import tqdm

from cascade import index
from cascade.data.dataset import Batch, Dataset
from cascade.data.sample import distinct_users
from cascade.data.source import Split
from cascade.encoding import Floats
from cascade.models.scorer import Scorer
from cascade.training.loop import Hyperparameters, Task
from cascade.training.tasks import Rows, catalogue, item_states, labelled, pair_logits

VALIDATION_USERS = 512
TUNING_USERS = 128


class Candidates:
    """What the retriever returns for rows drawn over the users of a split: [B, K] catalogue rows.

    One search serves all the prerankers that are compared. The index is tuned as it is for serving;
    where it finds fewer than K it pads with -1, and a pad's weight is zero.
    """

    def __init__(
        self, retriever: Scorer, dataset: Dataset, device: torch.device, users: int, k: int
    ) -> None:
        self.device, self.retriever = device, retriever
        self.items = catalogue(dataset, device)
        vectors = item_states(retriever, self.items).cpu().numpy()
        self.index = index.build(vectors, "ivf")
        self.k = min(k, len(vectors))
        drawn: dict[Split, Batch] = {
            "train": dataset.sample("train", users),
            "validation": dataset.sample("validation", VALIDATION_USERS),
        }
        self.drawn = ", ".join(
            f"{len(rows):,} {split} rows"
            + (f" of {distinct_users(rows):,} users" if dataset.has_users else "")
            for split, rows in drawn.items()
        )
        validation = labelled(drawn["validation"], device)
        index.tune(self.index, vectors, self._queries(validation[:TUNING_USERS]), self.k)
        self.train = self._search(labelled(drawn["train"], device), "train")
        self.validation = self._search(validation, "validation")

    def _queries(self, rows: Rows) -> Floats:
        """User vectors [B, D]."""
        with torch.inference_mode():
            vectors: Floats = self.retriever.user(*rows[:2]).cpu().numpy()
        return vectors

    def _search(self, rows: TensorDataset, name: str) -> tuple[TensorDataset, Tensor]:
        starts = tqdm(range(0, len(rows), 1024), desc=f"retrieve for {name}", leave=False)
        found = [self.index.search(self._queries(rows[i : i + 1024]), self.k) for i in starts]
        return rows, torch.from_numpy(np.concatenate(found)).to(self.device)


def distillation(student: Tensor, teacher: Tensor, sharpness: float = 1.0) -> Tensor:
    """Learn the teacher's order and level over one user's candidates: logits [B, K] of both.

    The listwise part (Hinton et al., 2015, over candidates instead of classes) weighs the top of
    the teacher's list; the pointwise part keeps the student a click probability.
    """
    wanted = functional.softmax(teacher * sharpness, dim=1)
    order = functional.cross_entropy(student * sharpness, wanted)
    level = functional.binary_cross_entropy_with_logits(student, torch.sigmoid(teacher))
    return order + level


class DistillTask(Task):
    """The student scores a sample of each user's candidates as the teacher does; the row's own
    item and label are mixed in. The student has learnt from labels before, so the weights that it
    comes with are validated, too, and stay where the teacher makes nothing better."""

    trained = True
    best_possible = -1.0  # all that the teacher puts first is kept

    def __init__(
        self,
        student: Scorer,
        teacher: Scorer,
        candidates: Candidates,
        hyper: Hyperparameters,
        keep: int,
        sample: int = 128,  # candidates drawn for each user and step
        label_weight: float = 0.1,  # of the true label beside the teacher
    ) -> None:
        self.module: nn.Module = student
        self.student = student
        self.teacher, self.hyper, self.keep = teacher, hyper, keep
        self.rows, self.found = candidates.train
        self.validation = candidates.validation
        self.sharpness = 1.0  # of all logits, where their order is learnt
        self.sample, self.label_weight = min(sample, candidates.k), label_weight
        self.items = candidates.items
        self.teacher_items = item_states(teacher, self.items)
        self.steps_per_epoch = -(-len(self.rows) // hyper.batch_size)

    def batches(self, epoch: int, skip: int) -> Iterator[tuple[Tensor, Tensor]]:
        """-> rows [B] and their candidates [B, 1 + S], the row's own item first."""
        random = np.random.default_rng((self.hyper.seed, epoch))
        order = torch.from_numpy(random.permutation(len(self.rows)))
        for step in range(skip, self.steps_per_epoch):
            start = step * self.hyper.batch_size
            chosen = order[start : start + self.hyper.batch_size].to(self.found.device)
            draw = np.random.default_rng((self.hyper.seed, epoch, step))
            columns = torch.from_numpy(draw.permutation(self.found.shape[1])[: self.sample])
            own = self.rows[chosen][2].unsqueeze(1)
            yield chosen, torch.cat((own, self.found[chosen][:, columns]), dim=1)

    def loss(self, batch: tuple[Tensor, Tensor], step: int) -> Tensor:
        chosen, items = batch
        *users, _, clicked = self.rows[chosen]
        known, where = torch.unique(items.clamp(min=0), return_inverse=True)
        states = self.student.item(*self.items[known])
        # One lookup per distinct item, as in serving; the gradient adds up over its places.
        student = self.student.score(self.student.user(*users), functional.embedding(where, states))
        with torch.no_grad():
            user = self.teacher.user(*users)
            teacher = pair_logits(self.teacher, user, self.teacher_items, items.clamp(min=0))
        pads = items < 0
        student, teacher = (logits.masked_fill(pads, -30.0) for logits in (student, teacher))
        label = functional.binary_cross_entropy_with_logits(student[:, 0], clicked)
        return distillation(student, teacher, self.sharpness) + self.label_weight * label

    def validate(self) -> dict[str, float]:
        """Share of the teacher's top 10 of the candidates that the student keeps."""
        rows, found = self.validation
        student_items = item_states(self.student, self.items)
        kept = 0.0
        for i in range(0, len(found), 64):
            users, items = rows[i : i + 64], found[i : i + 64]
            best = _top(self.teacher, self.teacher_items, users, items, 10)
            held = _top(self.student, student_items, users, items, self.keep)
            kept += float((best.unsqueeze(2) == held.unsqueeze(1)).any(2).float().mean(1).sum())
        share = kept / len(found)
        return {"objective": -share, "validation_kept": share}


def _top(model: Scorer, states: Tensor, users: Rows, items: Tensor, k: int) -> Tensor:
    """Places of the k best of each user's candidates [B, K] -> [B, k]; a pad, -1, comes last."""
    logits = pair_logits(model, model.user(*users[:2]), states, items.clamp(min=0))
    return logits.masked_fill(items < 0, -torch.inf).topk(min(k, items.shape[1]), 1).indices
