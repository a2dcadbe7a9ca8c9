"""The modules that are exported: the user tower, and the graph of a scoring stage. It takes
candidate rows, gathers their item state, scores, masks the pads, takes the top K and looks up the
ids, so that only the answer leaves it. That of a model of several tasks gives them all of every
candidate, because what they are worth together is decided later (`cascade.formula`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cascade.models import contract
from cascade.models.scorer import Scorer
from cascade.spec import Precision
from cascade.stages.tasks import LOWEST

VALUE = "value"  # the kind of a task of a third party's model, whose graph gives what it says
SURROGATE_ROWS = 4  # stand in for the catalogue during tracing; servers map the real rows


def user_half(scorer: Scorer) -> Scorer:
    """The same model without its `item_parts`: the item's tables stay behind."""
    return contract.without(scorer, scorer.item_parts()).eval()


def several(scorer: Scorer) -> tuple[str, ...]:
    """The tasks of a model that has more than one, or one that a formula makes the score of; empty
    for all others."""
    return scorer.tasks if len(scorer.tasks) > 1 or VALUE in scorer.kinds else ()


def outputs(scorer: Scorer, user: Tensor, items: Tensor) -> Tensor:
    """user state [B, U], item states [B, K, V] -> what a model says: logits [B, K], or what each of
    several tasks says, [B, K, T]."""
    if several(scorer):
        return said(scorer.cross(user, items), scorer.kinds)
    return scorer.score(user, items)


def said(logits: Tensor, kinds: Sequence[str]) -> Tensor:
    """Logits [..., T] -> what each says: a probability of a `binary` task, the mean of an `amount`;
    of another kind (`VALUE`), what came."""
    columns = []
    for task, kind in enumerate(kinds):
        logit = logits[..., task]
        if kind == "binary":
            logit = torch.sigmoid(logit)
        elif kind == "amount":
            logit = nn.functional.softplus(logit)
        columns.append(logit)
    return torch.stack(columns, dim=-1)


class UserTower(nn.Module):
    """user_dense [B, F_dense], user_ids [B, C] -> user_vector [B, D]."""

    def __init__(self, retriever: Scorer) -> None:
        super().__init__()
        self.scorer = user_half(retriever)

    def forward(self, user_dense: Tensor, user_ids: Tensor) -> Tensor:
        return self.scorer.user(user_dense, user_ids)


class CandidateLogits(nn.Module):
    """user_dense [B, F_dense], user_ids [B, C], rows [B, K] -> logits [B, K], -inf for a pad. The
    item state is stored in `precision`, and widened after the gather."""

    item_state: Tensor

    def __init__(self, scorer: Scorer, precision: Precision = "float32") -> None:
        super().__init__()
        self.scorer = user_half(scorer)
        self.precision = precision
        surrogate = torch.zeros(SURROGATE_ROWS, scorer.item_width)
        self.register_buffer("item_state", surrogate.to(getattr(torch, precision)))

    def forward(self, user_dense: Tensor, user_ids: Tensor, candidates: Tensor) -> Tensor:
        user = self.scorer.user(user_dense, user_ids)
        logits = self.scorer.score(user, self.items(candidates))
        return logits.masked_fill(candidates < 0, -torch.inf)

    def items(self, candidates: Tensor) -> Tensor:
        """The states [B, K, V] of rows [B, K]; that of row 0 in place of a pad."""
        # `embedding` rather than indexing: it becomes one Gather, and keeps the buffer's name.
        return nn.functional.embedding(candidates.clamp(min=0), self.item_state)


class CandidateTasks(CandidateLogits):
    """user_dense [B, F_dense], user_ids [B, C], rows [B, K] -> what every task says [B, K, T]; of a
    pad, that of row 0."""

    def forward(self, user_dense: Tensor, user_ids: Tensor, candidates: Tensor) -> Tensor:
        user = self.scorer.user(user_dense, user_ids)
        return outputs(self.scorer, user, self.items(candidates))


class TopCandidates(CandidateLogits):
    """user_dense [B, F_dense], user_ids [B, C], rows [B, K] -> the best `keep` of each user's rows,
    or item_ids and click probability of these; then, int64 [B, 1], how many candidates have a logit
    that is no finite number.

    A row of -1 is a pad: it loses against every item, and comes out as -1 with probability 0. An
    item without a finite logit loses against all others: runtimes differ in where TopK puts a NaN.
    """

    catalogue_ids: Tensor

    def __init__(
        self, scorer: Scorer, keep: int, with_ids: bool, precision: Precision = "float32"
    ) -> None:
        super().__init__(scorer, precision)
        self.keep, self.with_ids = keep, with_ids
        if with_ids:
            self.register_buffer("catalogue_ids", torch.zeros(SURROGATE_ROWS, 1, dtype=torch.long))

    def forward(  # type: ignore[override]
        self, user_dense: Tensor, user_ids: Tensor, candidates: Tensor
    ) -> tuple[Tensor, ...]:
        logits = super().forward(user_dense, user_ids, candidates)
        known = (logits.abs() < torch.inf) | (candidates < 0)  # false for NaN, too
        not_finite = (~known).sum(dim=1, keepdim=True)
        best, places = torch.where(known, logits, LOWEST).topk(self.keep, dim=1)
        rows = candidates.gather(1, places)
        if not self.with_ids:
            return rows, not_finite
        ids = nn.functional.embedding(rows.clamp(min=0), self.catalogue_ids).squeeze(-1)
        return ids.masked_fill(rows < 0, -1), torch.sigmoid(best), not_finite
