"""A ranker learns from a log of choices: which of the items that the retriever returns a user
chose, and from all rows how likely a label is.

The log says nothing of items without an event; of those that the retriever returns, the one that
the user chose is the best. The order is learnt by a softmax over them, the level of the
probability by cross-entropy on the labels; what depends on the user alone changes no order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from cascade.data.dataset import Batch, Dataset
from cascade.models.blend import Blend
from cascade.models.scorer import Scorer
from cascade.training.choices.rows import (
    QUERIES,
    Chosen,
    Queries,
    gains,
    measures,
    ndcg,
    places,
    seen,
)
from cascade.training.loop import Hyperparameters, Task
from cascade.training.negatives import Negatives, validation
from cascade.training.tasks import (
    VALIDATION_ROWS,
    Pairs,
    Rows,
    WithNumber,
    catalogue,
    item_states,
    labelled,
    of_rows,
    pair_logits,
    put_past,
    row_logits,
    with_items,
)
from cascade.training.unknowns import Unknowns

NEAR = 500  # items that the retriever puts first, of which negatives are drawn
DRAWN = 32  # negatives of a positive
RANK_QUERIES = 3 * QUERIES  # of validation: a ranker changes less than their noise of a list
RANKED = 200  # candidates of a validation query
SHARPNESS = 30.0  # of a ranker that begins with the retriever's order


def usual(dataset: Dataset, model: Scorer, device: torch.device) -> Tensor:
    """The mean item state [V] over training rows: where an item of the log is."""
    items = dataset.sample("train", VALIDATION_ROWS).item
    with torch.no_grad():
        return item_states(model, catalogue(dataset, device))[torch.tensor(items)].mean(0)


def likeliest(logits: Tensor, added: Tensor, own: Tensor) -> float:
    """The weight of `added` beside 1 of `logits`, both [Q, K], that makes the items chosen, `own`
    [Q, K], likeliest in a softmax of any sharpness; at least 0."""
    there = own.any(1)
    if not there.any():
        return 0.0
    chosen = own[there].float().argmax(1)
    parts = [part[there].double() for part in (logits, added)]
    scales = [part.std().clamp(min=1e-9) for part in parts]
    numbers = torch.tensor([1.0, 0.0], dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([numbers], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        terms = zip(numbers, parts, scales, strict=True)
        found = functional.cross_entropy(sum(n * p / s for n, p, s in terms), chosen)
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    of_logits, of_added = (numbers.detach() / torch.stack(scales)).tolist()
    return max(0.0, of_added / of_logits) if of_logits > 0 else 0.0


class Choices(NamedTuple):
    """A batch.

    Attributes:
        rows: some of the rows that were read, beside their items.
        chosen: the P choices among all of them.
        negatives: of these, [P, drawn].
        past: as `ChoiceRankTask` reads it of the log, where there is one.
        random: draws the unknown items.
    """

    rows: Pairs
    chosen: Rows
    negatives: Tensor
    past: Tensor | None
    random: np.random.Generator


class ChoiceRankTask(Task):
    """Softmax over a chosen item and items of the retriever's list, plus cross-entropy on labels.
    The ranker begins with the retriever's order, which stays where the lists of validation become
    better by no more than noise.

    Args:
        scorer: the ranker; a `Blend` takes part in `finish`.
        retriever: trained; its lists without seen items are what is ranked.
        negatives: drawn beside rows for the cross-entropy, where the log has no label 0.
        drawn: how many items of the list stand beside a choice.
        queries: of validation, by which the ranker is judged.
        sharpness: where training starts: how much sharper a choice is than the chance of a label;
            1 for a ranker that begins with nothing.
    """

    trained = True

    def __init__(
        self,
        scorer: Scorer,
        retriever: Scorer,
        dataset: Dataset,
        hyper: Hyperparameters,
        device: torch.device,
        negatives: Negatives | None = None,
        drawn: int = DRAWN,
        queries: int = RANK_QUERIES,
        sharpness: float = SHARPNESS,
    ) -> None:
        self.scorer, self.retriever, self.drawn = scorer, retriever, drawn
        self.hyper, self.device = hyper, device
        module = WithNumber(scorer, sharpness).to(device)
        self.module: nn.Module = module
        self.sharpness = module.number
        self.items, self.negatives = catalogue(dataset, device), negatives
        self.near = item_states(retriever, self.items)
        self.unknown_items = Unknowns(dataset, "item")
        self.rows = Chosen(dataset, hyper.batch_size)
        self.steps_per_epoch = self.rows.steps_per_epoch
        self.queries = Queries(dataset, device, queries, after=QUERIES)
        self.candidates = self._candidates()
        self.own = self.candidates == self.queries.rows[:][2][:, None]  # [Q, RANKED]
        self.labelled = validation(dataset, VALIDATION_ROWS, negatives)
        self._dataset = dataset
        self.begun = gains(self._places())

    def _candidates(self) -> Tensor:
        """What the retriever returns for each validation query, [Q, RANKED]."""
        found = []
        with torch.inference_mode():
            for at in range(0, len(self.queries), 256):
                scores = self.retriever.user(*self.queries.rows[at : at + 256][:2]) @ self.near.t()
                scores[self.queries.seen(at, at + 256)] = -torch.inf
                found.append(scores.topk(min(RANKED, scores.shape[1]), dim=1).indices)
        return torch.cat(found)

    def batches(self, epoch: int, skip: int) -> Iterator[Choices]:
        seed = self.hyper.seed
        for step, (read, chosen) in enumerate(self.rows.batches(seed, epoch, skip), skip):
            random = np.random.default_rng((seed, epoch, step, 1))
            read = read.take(slice(self.hyper.batch_size))
            if self.negatives is not None:
                read = self.negatives.beside(read, random)
            choices = labelled(chosen, self.device)[:]
            negatives = self._drawn(choices, chosen, random)
            pairs = with_items(read, self.items, self.device)
            past = self._past(chosen, negatives)
            yield Choices(pairs, choices, negatives, past, random)

    def _past(self, chosen: Batch, negatives: Tensor) -> Tensor | None:
        """The past of a choice and of its negatives at its moment, [P, 1 + drawn, numbers]: at the
        end of the log, an item that was chosen has one event more than before."""
        if chosen.item_past is None or chosen.time is None:
            return None
        items = negatives.cpu().numpy()
        times = np.repeat(chosen.time, items.shape[1])
        found = self._dataset.item_past.encoded(items.ravel(), times).reshape(*items.shape, -1)
        both = np.concatenate((chosen.item_past[:, None], found), axis=1)
        return torch.from_numpy(both).to(self.device)

    def _drawn(self, rows: Rows, chosen: Batch, random: np.random.Generator) -> Tensor:
        with torch.no_grad():
            scores = self.retriever.user(*rows[:2]) @ self.near.t()
        scores[seen(self.queries.log, chosen, "train")] = -torch.inf
        scores.scatter_(1, rows[2][:, None], -torch.inf)
        near = scores.topk(min(NEAR, scores.shape[1] - 1), dim=1).indices
        unseen = torch.isfinite(scores).sum(1).clamp(min=1, max=near.shape[1]).cpu().numpy()
        columns = (random.random((len(near), self.drawn)) * unseen[:, None]).astype(np.int64)
        return near.gather(1, torch.from_numpy(columns).to(near.device))

    def loss(self, batch: Choices, step: int) -> Tensor:
        rows, chosen, negatives, past, random = batch
        (dense, ids, _, label), (item_dense, item_ids) = rows
        item_ids = self.unknown_items.put(item_ids, random)
        logits = self.scorer.score_rows(dense, ids, item_dense, item_ids)
        loss = functional.binary_cross_entropy_with_logits(logits, label)
        if len(chosen[2]):
            asked = torch.cat((chosen[2][:, None], negatives), dim=1)
            scores = self.scorer.score(
                self.scorer.user(*chosen[:2]), self._states(asked, past, random)
            )
            first = torch.zeros_like(chosen[2])
            loss = loss + functional.cross_entropy(scores * self.sharpness, first)
        return loss

    def _states(self, asked: Tensor, past: Tensor | None, random: np.random.Generator) -> Tensor:
        """Item states [P, K, V] of catalogue rows [P, K]. Without a past, each item's is computed
        once."""
        if past is None:
            known, where = torch.unique(asked, return_inverse=True)
            dense, ids = self.items[known]
            states = self.scorer.item(dense, self.unknown_items.put(ids, random))
            return functional.embedding(where, states)
        dense, ids = self.items[asked.flatten()]
        put_past(dense, past.flatten(0, 1))
        states = self.scorer.item(dense, self.unknown_items.put(ids, random))
        return states.reshape(*asked.shape, -1)

    def validate(self) -> dict[str, float]:
        """NDCG@10 of the retriever's candidates in the ranker's order, and the loss on labels. The
        objective has to be better than at the start by more than noise: by two standard errors of
        the difference, over the queries."""
        found_at = self._places()
        found = measures(found_at)
        apart = gains(found_at) - self.begun
        found["objective"] += 2 * float(apart.std(correction=0)) / len(apart) ** 0.5
        return {**found, **of_rows(self.scorer, self.labelled, self.items, self.device)}

    def _places(self, logits: Tensor | None = None) -> Tensor:
        """[Q]: where the order of each query's candidates has the item chosen, by these logits or
        by the ranker's."""
        logits = self.logits() if logits is None else logits
        score = logits.masked_fill(~self.own, -torch.inf).amax(1, keepdim=True)
        return torch.where(self.own.any(1), places(logits, score), torch.inf)

    def logits(self) -> Tensor:
        """[Q, RANKED]: of each query's candidates."""
        states, found = item_states(self.scorer, self.items), []
        with torch.inference_mode():
            for at in range(0, len(self.queries), 256):
                user = self.scorer.user(*self.queries.rows[at : at + 256][:2])
                found.append(pair_logits(self.scorer, user, states, self.candidates[at : at + 256]))
        return torch.cat(found)

    def finish(self) -> Iterator[str]:
        """After training of a blend: weigh co-visitation, and calibrate; -> what that did, in
        words."""
        if isinstance(self.scorer, Blend):
            if "covisits" in self.scorer.names:
                yield self.weigh(self.scorer)
            yield self.calibrate(self.scorer)

    def weigh(self, blend: Blend) -> str:
        """Give co-visitation the weight that makes the choices of validation queries likeliest, if
        that makes their lists better by more than two standard errors; -> what it did, in words.

        A training row cannot tell: the matrix counts what its user chose there.
        """
        weight = blend.covisits_weight
        weight.fill_(0)
        before = self.logits().clone()
        weight.fill_(1)
        added = self.logits() - before
        weight.fill_(likeliest(before, added, self.own))
        old, new = (gains(self._places(logits)) for logits in (before, before + weight * added))
        apart = new - old
        if not float(apart.mean()) > 2 * float(apart.std(correction=0)) / len(apart) ** 0.5:
            weight.fill_(0)
            return "without co-visitation, which makes lists no better by more than noise"
        found = (float(ndcg(self._places(x)).mean()) for x in (before, before + weight * added))
        return "with co-visitation, NDCG@10 of validation lists {:.4f} -> {:.4f}".format(*found)

    def calibrate(self, blend: Blend) -> str:
        """Scale and shift all logits to the labels of validation rows (Platt, "Probabilistic
        Outputs for Support Vector Machines", 1999), which changes no order; -> what it did, in
        words."""
        if self.negatives is not None:
            return "not calibrated: beside drawn items a score is no chance"
        if not blend.factored:
            return "not calibrated, for its own model is no factorisation"
        label = self.labelled.label
        if not 0 < label.mean() < 1:
            return "not calibrated: the validation rows have one label alone"
        before = of_rows(self.scorer, self.labelled, self.items, self.device)
        logits = row_logits(self.scorer, labelled(self.labelled, self.device), self.items)
        fitted = LogisticRegression(C=np.inf).fit(logits.cpu().numpy()[:, None], label)
        scale, shift = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
        if scale <= 0:
            return "not calibrated: labels fall where scores rise"
        blend.calibrate(scale, shift)
        after = of_rows(self.scorer, self.labelled, self.items, self.device)
        losses = (found["validation_log_loss"] for found in (before, after))
        return "calibrated, log loss of validation rows {:.4f} -> {:.4f}".format(*losses)
