"""A retriever learns from a log of choices: which item a user takes next."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cascade.data.dataset import Dataset
from cascade.models.scorer import Scorer
from cascade.training.choices.rows import Chosen, Queries, measures, places
from cascade.training.loop import Hyperparameters, Task
from cascade.training.tasks import Rows, catalogue, item_states, labelled
from cascade.training.unknowns import Unknowns

ALL = 32_768  # items of a catalogue that are candidates of every batch; of a larger one, this many
VECTOR_DROPOUT = 0.2  # of a user's vector
TEMPERATURE = 1 / 16  # of cosines, in a softmax over a catalogue


class ChoiceRetrievalTask(Task):
    """Softmax over the catalogue for the item that a user chose next.

    A catalogue of more than `ALL` items is sampled for each batch, half of it as the batch's own
    items, half uniformly, so that the loss stays within memory.
    """

    def __init__(
        self, scorer: Scorer, dataset: Dataset, hyper: Hyperparameters, device: torch.device
    ) -> None:
        self.scorer, self.hyper, self.device = scorer, hyper, device
        self.module: nn.Module = scorer
        self.items = catalogue(dataset, device)
        for table in scorer.modules():
            # Every batch has all items of a small catalogue: a sparse gradient would save nothing.
            if isinstance(table, nn.Embedding) and table.num_embeddings <= ALL:
                table.sparse = False
        self.unknown_items = Unknowns(dataset, "item")
        self.rows = Chosen(dataset, hyper.batch_size)
        self.steps_per_epoch = self.rows.steps_per_epoch
        self.queries = Queries(dataset, device)

    def batches(self, epoch: int, skip: int) -> Iterator[tuple[Rows, Tensor, Tensor]]:
        """-> rows, the candidates' rows of the catalogue [K], their ids [K, C]."""
        seed = self.hyper.seed
        for step, (_, chosen) in enumerate(self.rows.batches(seed, epoch, skip), skip):
            random = np.random.default_rng((seed, epoch, step, 1))
            rows = np.arange(len(self.items))
            if len(rows) > ALL:
                rows = np.unique(np.r_[chosen.item, random.choice(rows, ALL, replace=False)])
            candidates = torch.from_numpy(rows).to(self.device)
            ids = self.unknown_items.put(self.items[candidates][1], random)
            yield labelled(chosen, self.device)[:], candidates, ids

    def loss(self, batch: tuple[Rows, Tensor, Tensor], step: int) -> Tensor:
        (dense, ids, chosen, _), candidates, item_ids = batch
        user = self.scorer.user(dense, ids) * self._dropout(len(dense), step)
        items = self.scorer.item(self.items[candidates][0], item_ids)
        logits = user @ items.t() / (TEMPERATURE if self.scorer.unit_vectors else 1)
        if not len(chosen):  # all of these rows are too old
            return logits.sum()
        return functional.cross_entropy(logits, torch.searchsorted(candidates, chosen))

    def _dropout(self, count: int, step: int) -> Tensor:
        """[B, D], of which a part is 0; the same for the same step."""
        random = torch.Generator().manual_seed(self.hyper.seed * 1_000_003 + step)
        stay = torch.rand((count, self.scorer.user_width), generator=random) >= VECTOR_DROPOUT
        return (stay / (1 - VECTOR_DROPOUT)).to(self.device)

    def validate(self) -> dict[str, float]:
        """NDCG@10 and recall@100 of the lists of the whole catalogue without what was seen."""
        states = item_states(self.scorer, self.items)
        found = []
        for at in range(0, len(self.queries), 256):
            dense, ids, chosen, _ = self.queries.rows[at : at + 256]
            scores = self.scorer.user(dense, ids) @ states.t()
            own = scores.gather(1, chosen[:, None])
            scores[self.queries.seen(at, at + 256)] = -torch.inf
            found.append(places(scores, own))
        return measures(torch.cat(found))
