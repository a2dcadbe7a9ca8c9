"""The cascade stage by stage: against its own ranker, and against what users chose.

The two are kept apart. How much of the ranker's best, over the whole catalogue, is left after each
stage is the price of not scoring everything. Where the held-out positives end up is the quality of
the lists, beside a popularity list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from cascade.data.dataset import Batch, Dataset
from cascade.errors import CascadeError
from cascade.evaluation import metrics
from cascade.evaluation.brute_force import (
    Encoded,
    best_candidates,
    candidate_scores,
    full_order,
    logits_of_rows,
)
from cascade.evaluation.metrics import Metrics
from cascade.index.topk import share_kept
from cascade.item_keys import as_keys
from cascade.models.scorer import Scorer
from cascade.stages.pipeline import Pipeline
from cascade.training.negatives import Negatives, Sampling
from cascade.training.negatives import held_out as negatives_beside

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

TOP = 10
CURVE = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
REQUEST_USERS = 64
BATCH = 8192
COMPARED = ("prerank_baseline", "prerank_labels", "baseline")  # tried in the preranker's place
SAMPLED_ROWS = 50_000  # of the test split, from whose positives the queries are drawn


class EvaluationError(CascadeError, ValueError):
    """Data set, checkpoints and repository that cannot be evaluated together."""


@dataclass(frozen=True)
class Queries:
    """Held-out events: the user as sent, [B, F_dense] and [B, F_cat], and the item chosen [B, 1].

    A user with several events is several queries, each with the history of its own moment.
    """

    dense: Floats
    categorical: npt.NDArray[Any]
    positives: Ids


@dataclass(frozen=True)
class Lists:
    """What each stage answered: encoded users [B], and catalogue rows [B, K], padded with -1."""

    users: Encoded
    retrieve: Ids
    prerank: Ids
    rank: Ids


def click_metrics(
    scorers: Mapping[str, Scorer], batches: Iterable[Batch], items: Encoded, device: str = "cpu"
) -> Metrics:
    """Click metrics of every model on the same rows.

    `scorers`: by suffix of the metric's name: `{"": ranker, "_baseline": …}` gives `auc` and
    `auc_baseline`. Where the rows know their true probability, `bayes_auc` and so on are what the
    best possible model would get.
    """
    labels: list[Floats] = []
    truth: list[Floats] = []
    predicted: dict[str, list[npt.NDArray[np.float64]]] = {suffix: [] for suffix in scorers}
    for batch in tqdm(batches, desc="test rows", unit="batch"):
        users, chosen = Encoded(batch.user_dense, batch.user_ids), items.take(batch.item)
        labels.append(batch.label)
        if batch.probability is not None:
            truth.append(batch.probability)
        for suffix, scorer in scorers.items():
            logits = torch.from_numpy(logits_of_rows(scorer, users, chosen, device))
            # In float64, so that a certain model is not rounded to 0 or 1.
            predicted[suffix].append(logits.double().sigmoid().numpy())
    label = np.concatenate(labels)
    found = {
        f"{name}{suffix}": value
        for suffix, parts in predicted.items()
        for name, value in metrics.row_metrics(label, np.concatenate(parts)).items()
    }
    if truth:
        best = metrics.row_metrics(label, np.concatenate(truth))
        found |= {f"bayes_{name}": value for name, value in best.items()}
    return {**found, "test_rows": len(label), "test_rate": float(label.mean())}


def held_out(dataset: Dataset, count: int, seed: int = 0) -> Queries:
    """Up to `count` positive rows of the test split, drawn at random from its first rows."""
    dense, categorical, item, label = dataset.raw_users("test", SAMPLED_ROWS)
    positive = np.flatnonzero(label > 0.5)
    if not len(positive):
        raise EvaluationError(
            f"{dataset.root}: none of the first {len(label)} test rows is a positive, so there is "
            "nothing to look for in the lists; prepare more rows"
        )
    chosen = np.random.default_rng(seed).permutation(positive)[:count]
    return Queries(dense[chosen], categorical[chosen], item[chosen, None])


def ask(cascade: Pipeline, queries: Queries, item_ids: npt.NDArray[Any]) -> Lists:
    """Send every query through the stages one by one. `item_ids` [N] are those of the data set's
    rows, integers or strings: the cascade counts rows in its release's order."""
    item_ids = as_keys(item_ids)
    answers = []
    row_of_served = np.append(rows_of(cascade.item_ids, item_ids), -1)  # a pad, -1, stays -1
    starts = range(0, len(queries.positives), REQUEST_USERS)
    for start in tqdm(starts, desc="cascade", unit="batch"):
        some = slice(start, start + REQUEST_USERS)
        dense, ids, candidates = cascade.retrieve(queries.dense[some], queries.categorical[some])
        survivors = cascade.prerank(dense, ids, candidates)
        results, _ = cascade.rank(dense, ids, survivors)
        answered = rows_of(as_keys(results), item_ids)
        rows = (row_of_served[candidates], row_of_served[survivors], answered)
        answers.append((dense, ids, *rows))
    dense, ids, *lists = map(np.concatenate, zip(*answers, strict=True))
    return Lists(Encoded(dense, ids), *lists)


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


def popularity(batches: Iterable[Batch], item_count: int, k: int) -> Ids:
    """The k items most often positive, [k], -1 where fewer ever were; ties go to the lower row.

    The baseline of every list metric: the same list for every user.
    """
    counts = np.zeros(item_count, np.int64)
    for batch in tqdm(batches, desc="popularity", unit="batch"):
        counts += np.bincount(batch.item[batch.label > 0.5], minlength=item_count)
    order = np.argsort(-counts, kind="stable")[:k]
    order = order[counts[order] > 0]
    return np.pad(order, (0, k - len(order)), constant_values=-1)


def list_metrics(lists: Lists, positives: Ids, popular: Ids) -> Metrics:
    """Recall, NDCG and MAP of held-out positives [B, P] after each stage, and of popularity."""
    named = {
        "popularity": np.broadcast_to(popular, (len(positives), len(popular))),
        "retrieve": lists.retrieve,
        "prerank": lists.prerank,
        "rank": lists.rank,
    }
    found: Metrics = {"positives": len(positives)}
    for stage, answer in named.items():
        found[f"ndcg_at_{TOP}_{stage}"] = metrics.ndcg_at(answer, positives, TOP)
        found[f"map_at_{TOP}_{stage}"] = metrics.map_at(answer, positives, TOP)
        for k in CURVE:
            if k <= max(TOP, answer.shape[1]):
                found[f"recall_at_{k}_{stage}"] = metrics.recall_at(answer, positives, k)
    return found


def kept_metrics(
    lists: Lists,
    ranker: Scorer,
    items: Encoded,
    prerankers: Mapping[str, Scorer],
    device: str = "cpu",
) -> Metrics:
    """How much of the ranker's own top 10 each stage keeps.

    `recall_retrieve`, `kept_after_prerank`, `kept_by_cascade`: of its top 10 over the whole
    catalogue, the share still there after each stage. `kept_by_prerank`: of its top 10 among what
    was retrieved, the share that the preranker keeps; `kept_by_NAME` the same for other models in
    its place, and `kept_by_retrieve_order` for none at all. `kept_by_rank`: of its top 10 among
    the survivors, the share in the answer, which is 1 if the server runs the same ranker.
    """
    users = lists.users

    def scores(rows: Ids, scorer: Scorer = ranker) -> Floats:
        return candidate_scores(scorer, users, items, rows, device)

    _, best = full_order(ranker, users, items, TOP, device)
    retrieved, survived, answered = map(scores, (lists.retrieve, lists.prerank, lists.rank))
    keep = lists.prerank.shape[1]
    found = {
        "users": len(users),
        "recall_retrieve": share_kept(retrieved, best, TOP),
        "kept_after_prerank": share_kept(survived, best, TOP),
        "kept_by_cascade": share_kept(answered, best, TOP),
        "kept_by_prerank": share_kept(survived, retrieved, TOP),
        "kept_by_rank": share_kept(answered, survived, TOP),
        "kept_by_retrieve_order": share_kept(retrieved[:, :keep], retrieved, TOP),
    }
    for name, scorer in prerankers.items():
        kept = best_candidates(lists.retrieve, scores(lists.retrieve, scorer), keep)
        found[f"kept_by_{name}"] = share_kept(scores(kept), retrieved, TOP)
    return found


def evaluate(
    dataset: Dataset,
    models: dict[str, Scorer],
    cascade: Pipeline,
    *,
    users: int,
    positives: int,
    rows: int | None = None,
    device: str = "cpu",
    sampling: Sampling | None = None,
) -> Metrics:
    """All metrics, by name.

    Args:
        models: by the name of their checkpoint: `rank`, and what there is of `COMPARED`.
        users: for how many of the queries the ranker scores the whole catalogue.
        positives: how many held-out positives are looked for in the lists.
        rows: of the test split that the click metrics see, rounded up to whole batches; all if
            None.
        sampling: how negatives are drawn beside the test rows of a log of positives only.
    """
    items = Encoded(*dataset.items())
    queries = held_out(dataset, max(users, positives))
    scorers = {"": models["rank"]}
    if "baseline" in models:
        scorers["_baseline"] = models["baseline"]
    limit = None if rows is None else -(-rows // BATCH)
    found: Metrics = {"items": len(items)}
    negatives = None if dataset.has_negatives else Negatives(dataset, sampling or Sampling())
    tested = negatives_beside(islice(dataset.batches("test", BATCH), limit), negatives)
    found |= click_metrics(scorers, tested, items, device)
    if negatives is not None:
        each = negatives.sampling.per_positive
        found["test_negatives_sampled"] = found["test_rows"] * each // (1 + each)
    popular = popularity(dataset.batches("train", BATCH), len(items), CURVE[-1])
    lists = ask(cascade, queries, dataset.item_ids())
    found |= list_metrics(lists, queries.positives, popular)
    prerankers = {name: models[name] for name in COMPARED if name in models}
    ranked = (lists.retrieve, lists.prerank, lists.rank)
    first = Lists(lists.users.take(slice(users)), *(rows[:users] for rows in ranked))
    found |= kept_metrics(first, models["rank"], items, prerankers, device)
    return found
