"""A retriever learns the ranker's order over the whole catalogue, of which it retrieves.

The labels of a log of impressions tell of items that were shown. What a retriever has to find are
the items that the ranker would put first, shown or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset
from tqdm import tqdm

from cascade.data.dataset import Dataset
from cascade.models.embeddings import embeddings_of
from cascade.models.scorer import Scorer
from cascade.schema import Side
from cascade.training.loop import Hyperparameters, Task
from cascade.training.tasks import WithNumber, catalogue, item_states, labelled, pair_logits

DRAWN = 8_192  # items of the catalogue that a batch is about
NEAR = 128  # of them that the student puts first for a user, whose order it has to learn
SHARED = 256  # of them that every user of the batch is asked about
TEMPERATURE = 0.5  # of the teacher's logits
SCALE = 10.0  # where training starts: how sharp the student's scores are
VALIDATION_USERS = 64
TOP, SHORTLIST = 10, 2_000  # the teacher's best of all are its best of a shortlist


def take_embeddings(student: Scorer, teacher: Scorer) -> bool:
    """Let a student begin with the teacher's embeddings; -> whether both models have some for the
    id features of both sides."""
    pairs = [
        (embeddings_of(student, features), embeddings_of(teacher, features))
        for side in get_args(Side)
        if (features := student.schema.ids(side))
    ]
    for own, other in pairs:
        if own is None or other is None:
            return False
        own.take(other)
    return bool(pairs)


class TeachTask(Task):
    """Of items drawn anew for each batch, the student has to give those that it puts first itself,
    and some at random, the distribution that the teacher's logits give them.

    The student begins with the teacher's embeddings, where the teacher has some for the same
    features, and with layers that are drawn. What the teacher says of an id is then there from the
    start, and the layers learn it for all ids alike.

    Args:
        student: a retriever as it is drawn.
        trained: the same one trained on labels. Its weights are validated, too, and stay where the
            teacher makes nothing better; the training begins with them where the teacher has no
            embeddings to begin with.
        teacher: the ranker.
        quick: the preranker, which scores a catalogue in a fraction of the time: of the items that
            it puts first, the teacher's best are wanted of the student in validation.
        users: training rows whose users are taught, drawn over the users.
        keep: candidates of a user, among which the teacher's ten best of all items should be.
    """

    trained = True

    def __init__(
        self,
        student: Scorer,
        trained: Scorer,
        teacher: Scorer,
        quick: Scorer,
        dataset: Dataset,
        hyper: Hyperparameters,
        device: torch.device,
        users: int,
        keep: int,
    ) -> None:
        self.student, self.teacher, self.hyper, self.device = student, teacher, hyper, device
        module = WithNumber(student, SCALE).to(device)
        self.drawn: dict[str, Tensor] = {}  # the weights of the first batch
        if take_embeddings(student, teacher):
            self.drawn = {key: value.clone() for key, value in student.state_dict().items()}
        student.load_state_dict(trained.state_dict())
        self.module: nn.Module = module
        self.scale = module.number  # how sharp the student's scores are
        self.items = catalogue(dataset, device)
        self.keep = min(keep, len(self.items))
        self.first = max(1, self.keep // 5)
        self.teacher_items = item_states(teacher, self.items)
        self.train = labelled(dataset.sample("train", users), device)
        self.validation = labelled(dataset.sample("validation", VALIDATION_USERS), device)
        self.wanted = self._best_of_all(quick, self.validation)
        self.steps_per_epoch = -(-len(self.train) // hyper.batch_size)

    def begin(self) -> None:
        if self.drawn:
            self.student.load_state_dict(self.drawn)

    def _best_of_all(self, quick: Scorer, rows: TensorDataset) -> Tensor:
        """The teacher's ten best of those that `quick` puts first in the catalogue, [B, 10]."""
        found, states = [], item_states(quick, self.items)
        with torch.inference_mode():
            for at in tqdm(range(len(rows)), "the best of the catalogue", leave=False):
                users = rows[at : at + 1][:2]
                logits = pair_logits(quick, quick.user(*users), states[None])
                first = logits.topk(min(SHORTLIST, logits.shape[1]), dim=1).indices
                own = pair_logits(
                    self.teacher, self.teacher.user(*users), self.teacher_items, first
                )
                found.append(first.gather(1, own.topk(min(TOP, own.shape[1]), dim=1).indices))
        return torch.cat(found)

    def batches(self, epoch: int, skip: int) -> Iterator[tuple[Tensor, Tensor]]:
        """-> training rows [B], and the items of the batch [DRAWN]."""
        order = np.random.default_rng((self.hyper.seed, epoch)).permutation(len(self.train))
        size = self.hyper.batch_size
        for step in range(skip, self.steps_per_epoch):
            draw = np.random.default_rng((self.hyper.seed, epoch, step))
            drawn = draw.permutation(len(self.items))[:DRAWN]
            chosen = order[step * size : (step + 1) * size]
            yield (
                torch.from_numpy(chosen).to(self.device),
                torch.from_numpy(drawn).to(self.device),
            )

    def loss(self, batch: tuple[Tensor, Tensor], step: int) -> Tensor:
        chosen, drawn = batch
        users = self.train[chosen][:2]
        user = self.student.user(*users)
        with torch.no_grad():
            asked = self._asked(user, self.student.item(*self.items[drawn]))  # [B, NEAR + SHARED]
            own = self.teacher.user(*users)
            teacher = pair_logits(self.teacher, own, self.teacher_items, drawn[asked])
            teacher /= TEMPERATURE
        known, where = torch.unique(asked, return_inverse=True)
        items = functional.embedding(where, self.student.item(*self.items[drawn[known]]))
        student = (items @ (user * self.scale).unsqueeze(-1)).squeeze(-1)
        return functional.cross_entropy(student, functional.softmax(teacher, dim=1))

    def _asked(self, user: Tensor, items: Tensor) -> Tensor:
        """Places among the drawn items: those that the student puts first for each user, and the
        same others for all, [B, K]; no place comes twice."""
        shared = torch.arange(min(SHARED, len(items)), device=user.device)
        rest = (user @ items[len(shared) :].t()).topk(min(NEAR, len(items) - len(shared)), dim=1)
        return torch.cat((rest.indices + len(shared), shared.expand(len(user), -1)), dim=1)

    def validate(self) -> dict[str, float]:
        """Shares of the teacher's ten best of the whole catalogue among the student's candidates,
        as many as are served and a fifth of them; the objective is the mean of both."""
        vectors = item_states(self.student, self.items)
        scores = self.student.user(*self.validation[:][:2]) @ vectors.t()
        found = scores.topk(self.keep, dim=1).indices
        same = self.wanted.unsqueeze(2) == found.unsqueeze(1)  # [B, 10, keep]
        kept, first = (float(same[..., :k].any(2).float().mean()) for k in (self.keep, self.first))
        return {
            "objective": -(kept + first) / 2,
            "validation_kept": kept,
            f"validation_kept_at_{self.first}": first,
        }
