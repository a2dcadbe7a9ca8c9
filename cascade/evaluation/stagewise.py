"""The cascade stage by stage: against its own ranker, and against what users chose.

The two are kept apart. How much of the ranker's best, over the whole catalogue, is left after each
stage is the price of not scoring everything. Where the held-out positives end up is the quality of
the lists, beside lists that cost nothing to make. What a user has seen is in no list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from cascade.evaluation import metrics
from cascade.evaluation.baselines.lists import Histories
from cascade.evaluation.brute_force import (
    Encoded,
    best_candidates,
    candidate_scores,
    full_order,
)
from cascade.evaluation.queries import EvaluationError, Queries
from cascade.filters_wire import MOST_EXCLUDED, encode_exclude
from cascade.index.topk import reaches
from cascade.item_keys import as_keys
from cascade.models.scorer import Scorer
from cascade.stages.pipeline import Pipeline

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Values = dict[str, npt.NDArray[np.floating[Any]]]

TOP = 10
CURVE = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
REQUEST_USERS = 64
LISTED = {  # by name: its values for queries, [B]
    f"ndcg_at_{TOP}": metrics.ndcgs,
    f"map_at_{TOP}": metrics.average_precisions,
    f"mrr_at_{TOP}": metrics.reciprocal_ranks,
    f"hit_rate_at_{TOP}": metrics.hit_rates,
}


@dataclass(frozen=True)
class Lists:
    """What each stage answered: encoded users [B], and catalogue rows [B, K], padded with -1."""

    users: Encoded
    retrieve: Ids
    prerank: Ids
    rank: Ids

    def take(self, rows: Any) -> Lists:
        """Those of some queries."""
        stages = (of[rows] for of in (self.retrieve, self.prerank, self.rank))
        return Lists(self.users.take(rows), *stages)


def ask(
    cascade: Pipeline,
    queries: Queries,
    item_ids: npt.NDArray[Any],
    seen: Histories | None = None,
) -> Lists:
    """Send every query through the stages one by one.

    Args:
        item_ids: [N], those of the data set's rows, integers or strings: the cascade counts rows in
            its release's order.
        seen: the rows that each query's request excludes, the latest first, as many as a request
            can name. The others are taken out of the lists.
    """
    item_ids = as_keys(item_ids)
    answers = []
    row_of_served = np.append(rows_of(cascade.item_ids, item_ids), -1)  # a pad, -1, stays -1
    starts = range(0, len(queries), REQUEST_USERS)
    for start in tqdm(starts, desc="cascade", unit="batch"):
        some = slice(start, start + REQUEST_USERS)
        raw = (queries.dense[some], queries.categorical[some])
        if seen is None:
            dense, ids, candidates = cascade.retrieve(*raw)
        else:
            excluded = np.empty((len(raw[0]), 1), object)
            for line in range(len(raw[0])):
                latest = seen.of(start + line)[:MOST_EXCLUDED]
                excluded[line, 0] = encode_exclude(item_ids[latest].tolist())
            dense, ids, candidates = cascade.retrieve(*raw, excluded)
        survivors = cascade.prerank(dense, ids, candidates)
        results, _ = cascade.rank(dense, ids, survivors)
        answered = rows_of(as_keys(results), item_ids)
        rows = (row_of_served[candidates], row_of_served[survivors], answered)
        answers.append((dense, ids, *rows))
    dense, ids, *lists = map(np.concatenate, zip(*answers, strict=True))
    if seen is not None:
        lists = [_without(rows, seen) for rows in lists]
    return Lists(Encoded(dense, ids), *lists)


def _without(lists: Ids, seen: Histories) -> Ids:
    """Lists [B, K] without what was seen; what comes behind moves up."""
    kept = np.where(seen.hold(lists), -1, lists)
    order = np.argsort(kept < 0, axis=1, kind="stable")
    return np.take_along_axis(kept, order, 1)


def places_of(ids: Ids, item_ids: Ids) -> Ids:
    """Item ids, or the keys of strings -> their rows in `item_ids` [N], in any shape; -1 where an
    id is not one of these."""
    order = np.argsort(item_ids)
    place = np.searchsorted(item_ids[order], ids).clip(max=len(item_ids) - 1)
    rows = order[place]
    return np.where(item_ids[rows] == ids, rows, -1)


def rows_of(ids: Ids, item_ids: Ids) -> Ids:
    """Item ids, or the keys of strings -> rows of the data set, in any shape; -1 stays -1."""
    rows = places_of(ids, item_ids)
    unknown = (ids >= 0) & (rows < 0)
    if unknown.any():
        raise EvaluationError(
            f"the cascade answered item {ids[unknown][0]}, which is not in the catalogue: the "
            "repository and the data set are not of one export"
        )
    return rows


def list_values(lists: Mapping[str, Ids], positives: Ids) -> Values:
    """What becomes of held-out positives [B, P] in lists [B, K], by name `MEASURE_LIST`: values of
    queries, [B]."""
    found: Values = {}
    for name, answer in lists.items():
        found |= {f"{key}_{name}": of(answer, positives, TOP) for key, of in LISTED.items()}
        for k in CURVE:
            if k <= max(TOP, answer.shape[1]):
                found[f"recall_at_{k}_{name}"] = metrics.recalls(answer, positives, k)
    return found


def kept_values(
    lists: Lists,
    ranker: Scorer,
    items: Encoded,
    prerankers: Mapping[str, Scorer],
    device: str = "cpu",
    seen: Histories | None = None,
    plain: Ids | None = None,
) -> Values:
    """How much of the ranker's own top 10 each stage keeps, by query, [B].

    `recall_retrieve`, `kept_after_prerank`, `kept_by_cascade`: of its top 10 over the whole
    catalogue, the share still there after each stage. `kept_by_prerank`: of its top 10 among what
    was retrieved, the share that the preranker keeps; `kept_by_NAME` the same for other models in
    its place, and `kept_by_retrieve_order` for none at all. `kept_by_rank`: of its top 10 among
    the survivors, the share in the answer, which is 1 if the server runs the same ranker.

    Args:
        seen: what is in no list, and in no top 10.
        plain: what the cascade answers where nothing is excluded, [B, K]: `kept_with_seen` is its
            share of the top 10 over the whole catalogue.
    """
    users = lists.users

    def scores(rows: Ids, scorer: Scorer = ranker) -> Floats:
        return candidate_scores(scorer, users, items, rows, device)

    most = 0 if seen is None else int(np.diff(seen.offsets).max(initial=0))
    rows, best = full_order(ranker, users, items, TOP + most, device)
    unseen = best if seen is None else np.where(seen.hold(rows), np.float32(-np.inf), best)
    retrieved, survived, answered = map(scores, (lists.retrieve, lists.prerank, lists.rank))
    keep = lists.prerank.shape[1]
    found: Values = {
        "recall_retrieve": shares_kept(retrieved, unseen, TOP),
        "kept_after_prerank": shares_kept(survived, unseen, TOP),
        "kept_by_cascade": shares_kept(answered, unseen, TOP),
        "kept_by_prerank": shares_kept(survived, retrieved, TOP),
        "kept_by_rank": shares_kept(answered, survived, TOP),
        "kept_by_retrieve_order": shares_kept(retrieved[:, :keep], retrieved, TOP),
    }
    if plain is not None:
        found["kept_with_seen"] = shares_kept(scores(plain), best, TOP)
    for name, scorer in prerankers.items():
        kept = best_candidates(lists.retrieve, scores(lists.retrieve, scorer), keep)
        found[f"kept_by_{name}"] = shares_kept(scores(kept), retrieved, TOP)
    return found


def shares_kept(scores: Floats, reference: Floats, k: int) -> npt.NDArray[np.floating[Any]]:
    """`cascade.index.topk.share_kept` of each query, [B]; NaN for one without a reference."""
    best = -np.sort(-reference, axis=1)[:, :k]
    wanted = (best > -np.inf).sum(1)
    kth_best = np.take_along_axis(best, np.maximum(wanted - 1, 0)[:, None], 1)
    reached = np.minimum(reaches(scores, np.where(wanted[:, None] > 0, kth_best, 0)).sum(1), wanted)
    return np.where(wanted > 0, reached / np.maximum(wanted, 1), metrics.NAN)


def survivors_of(
    lists: Lists,
    items: Encoded,
    prerankers: Mapping[str, Scorer],
    device: str = "cpu",
) -> dict[str, Ids]:
    """What other prerankers, and the retriever's order, would hand on of the same candidates."""
    keep = lists.prerank.shape[1]
    found = {"prerank": lists.prerank, "retrieve_order": lists.retrieve[:, :keep]}
    for name, scorer in prerankers.items():
        scores = candidate_scores(scorer, lists.users, items, lists.retrieve, device)
        found[name] = best_candidates(lists.retrieve, scores, keep)
    return found
