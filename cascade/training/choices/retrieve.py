"""A retriever learns from a log of choices: which item a user takes next."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cascade.data.dataset import Dataset
from cascade.models.scorer import Scorer
from cascade.training.choices.rows import Chosen, Queries, measures, places, seen
from cascade.training.loop import Hyperparameters, Task
from cascade.training.tasks import Rows, catalogue, item_states, labelled
from cascade.training.unknowns import Unknowns

ALL = 32_768  # items of a catalogue that are candidates of every batch; of a larger one, this many
VECTOR_DROPOUT = 0.2  # of a user's vector
TEMPERATURE = 1 / 16  # of cosines, in a softmax over a catalogue

Places = tuple[Tensor, Tensor]
ChoiceBatch = tuple[Rows, Tensor, Tensor, Places]  # the candidates' rows of the catalogue [K], in
# order, their ids [K, C], and what the rows' users had met: (row, place among the candidates)


class ChoiceRetrievalTask(Task):
    """Softmax over the catalogue for the item that a user chose next.

    What a user has met is no candidate, as it is none for a list, but for the item that was chosen.
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

    def batches(self, epoch: int, skip: int) -> Iterator[ChoiceBatch]:
        seed = self.hyper.seed
        for step, (_, chosen) in enumerate(self.rows.batches(seed, epoch, skip), skip):
            random = np.random.default_rng((seed, epoch, step, 1))
            rows = np.arange(len(self.items))
            if len(rows) > ALL:
                rows = np.unique(np.r_[chosen.item, random.choice(rows, ALL, replace=False)])
            candidates = torch.from_numpy(rows).to(self.device)
            ids = self.unknown_items.put(self.items[candidates][1], random)
            met = self._among(candidates, seen(self.queries.log, chosen, "train"))
            yield labelled(chosen, self.device)[:], candidates, ids, met

    def _among(self, candidates: Tensor, met: Places) -> Places:
        """Places (row, item of the catalogue) -> (row, place among the candidates), without the
        items that are no candidates."""
        row, item = (part.to(self.device) for part in met)
        place = torch.searchsorted(candidates, item).clamp(max=len(candidates) - 1)
        there = candidates[place] == item
        return row[there], place[there]

    def loss(self, batch: ChoiceBatch, step: int) -> Tensor:
        (dense, ids, chosen, _), candidates, item_ids, met = batch
        user = self.scorer.user(dense, ids) * self._dropout(len(dense), step)
        items = self.scorer.item(self.items[candidates][0], item_ids)
        logits = user @ items.t() / (TEMPERATURE if self.scorer.unit_vectors else 1)
        if not len(chosen):  # all of these rows are too old
            return logits.sum()
        place = torch.searchsorted(candidates, chosen)
        own = logits.gather(1, place[:, None])
        logits = logits.index_put(met, logits.new_tensor(-torch.inf))
        return functional.cross_entropy(logits.scatter(1, place[:, None], own), place)

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
