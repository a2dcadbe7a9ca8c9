"""The metrics of click models (rows) and of recommendations (lists).

Rows: labels [B] of 0 and 1, probabilities [B]. Lists: item rows [B, K], best first, and positives
[B, P], each padded with -1; relevance is binary. A metric that a set does not define is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import sklearn.metrics

Floats = npt.NDArray[np.floating[Any]]
Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Metrics = dict[str, float]

NAN = float("nan")


def auc(labels: Floats, scores: Floats) -> float:
    """Chance that a positive scores above a negative, ties half. NaN with one class alone."""
    positive = labels > 0.5
    if positive.all() or not positive.any():
        return NAN
    return float(sklearn.metrics.roc_auc_score(positive, scores))


def user_aucs(labels: Floats, scores: Floats, user: Ids) -> tuple[Floats, Ids]:
    """The AUC of each user's rows, [U] in ascending order of the users, NaN where a user has one
    class alone; and how many rows each has, [U]."""
    order = np.lexsort((scores, user))
    owner = np.unique(user[order], return_inverse=True)[1].ravel()
    positive, score = labels[order] > 0.5, scores[order]
    new = np.ones(len(order), np.bool_)
    new[1:] = (np.diff(owner) != 0) | (np.diff(score) != 0)
    equal = np.cumsum(new) - 1  # which run of equals of a user a row is in
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(order)) - 1
    ranks = ((first + last) / 2)[equal]  # equals share the middle of their places
    rows = np.bincount(owner)
    starts = np.cumsum(rows) - rows
    pos = np.bincount(owner, positive)
    rank_sum = np.bincount(owner, np.where(positive, ranks - starts[owner], 0.0))
    pairs = pos * (rows - pos)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(pairs > 0, (rank_sum - pos * (pos - 1) / 2) / pairs, NAN)
    return found, rows


def gauc(labels: Floats, scores: Floats, user: Ids) -> float:
    """Mean AUC of users, weighted by their rows, over the users with both classes (Zhu et al.,
    "Optimized cost per click in Taobao display advertising", KDD 2017); NaN without one."""
    found, rows = user_aucs(labels, scores, user)
    there = ~np.isnan(found)
    return float(np.average(found[there], weights=rows[there])) if there.any() else NAN


def log_loss(labels: Floats, probabilities: Floats) -> float:
    """Mean negative log likelihood, in nats; NaN without rows."""
    if not len(labels):
        return NAN
    p = probabilities.astype(np.float64)
    return float(sklearn.metrics.log_loss(labels > 0.5, p, labels=[False, True]))


def normalized_entropy(labels: Floats, probabilities: Floats) -> float:
    """Log loss over the entropy of the base rate (He et al., "Practical Lessons from Predicting
    Clicks on Ads at Facebook", ADKDD 2014): 1 is what knowing the rate alone achieves. NaN with
    one class alone, whose entropy is 0."""
    rate = float((labels > 0.5).mean()) if len(labels) else 0.0
    if rate in (0.0, 1.0):
        return NAN
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    return log_loss(labels, probabilities) / float(entropy)


def calibration(labels: Floats, probabilities: Floats) -> float:
    """Mean predicted over mean observed (He et al. 2014): 1 is right, above 1 promises too much.
    NaN without positives."""
    observed = float((labels > 0.5).sum())
    return float(probabilities.sum(dtype=np.float64)) / observed if observed else NAN


def accuracy(labels: Floats, probabilities: Floats) -> float:
    """Share of rows on the right side of one half; NaN without rows."""
    return float(np.mean((labels > 0.5) == (probabilities >= 0.5))) if len(labels) else NAN


def row_metrics(labels: Floats, probabilities: Floats) -> Metrics:
    """All of the above, by name."""
    kinds = (auc, log_loss, normalized_entropy, calibration, accuracy)
    return {metric.__name__: metric(labels, probabilities) for metric in kinds}


def amount_metrics(amounts: Floats, predicted: Floats) -> Metrics:
    """Amounts [B] of 0 or more and predicted means [B] -> `auc` of the rows above 0, `calibration`,
    the sum of what is predicted over that of the amounts, and `mean_squared_error`."""
    total, size = float(amounts.sum(dtype=np.float64)), len(amounts)
    errors = predicted.astype(np.float64) - amounts
    return {
        "auc": auc((amounts > 0).astype(np.float64), predicted) if size else NAN,
        "calibration": float(predicted.sum(dtype=np.float64)) / total if total else NAN,
        "mean_squared_error": float(np.mean(errors**2)) if size else NAN,
    }


def first_mentions(lists: Ids) -> Flags:
    """[B, K] -> true where an item stands for the first time in its list; never at a pad."""
    keys = _keys(lists, int(lists.max(initial=0)) + 1)
    first = np.zeros(lists.size, np.bool_)
    first[np.unique(keys, return_index=True)[1]] = True
    return first.reshape(lists.shape) & (lists >= 0)


def _keys(lists: Ids, span: int) -> Ids:
    """[B, K] -> one number per (list, item); all pads of a list share one."""
    lines = np.arange(len(lists), dtype=np.int64)[:, None]
    keys: Ids = lines * (span + 1) + np.maximum(lists, -1) + 1
    return keys


def hits(lists: Ids, positives: Ids) -> tuple[Flags, Ids]:
    """-> where the lists hit a positive [B, K], and how many distinct positives there are [B].

    An item listed twice hits once, at its better place.
    """
    span = max(int(lists.max(initial=0)), int(positives.max(initial=0))) + 1
    wanted = first_mentions(positives)
    found = np.isin(_keys(lists, span), _keys(positives, span)[wanted])
    return found & first_mentions(lists), wanted.sum(1)


def _mean(values: Floats) -> float:
    """Mean over the users with a positive; NaN when there is none."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else NAN


def _of_users(values: Floats, counts: Ids) -> Floats:
    """The values [B], NaN for a user without a positive."""
    return np.where(counts > 0, values, NAN)


def recalls(lists: Ids, positives: Ids, k: int) -> Floats:
    """Share of each user's positives in the first k, [B]; NaN for a user without one."""
    found, counts = hits(lists[:, :k], positives)
    return _of_users(found.sum(1) / np.maximum(counts, 1), counts)


def recall_at(lists: Ids, positives: Ids, k: int) -> float:
    """Share of a user's positives in the first k, mean over users with a positive."""
    return _mean(recalls(lists, positives, k))


def ndcgs(lists: Ids, positives: Ids, k: int) -> Floats:
    """Discounted gain of the first k over that of an ideal list of k, [B], NaN as above (Järvelin
    and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002)."""
    found, counts = hits(lists[:, :k], positives)
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discount)[np.clip(counts, 1, k) - 1]
    return _of_users((found * discount[: found.shape[1]]).sum(1) / ideal, counts)


def ndcg_at(lists: Ids, positives: Ids, k: int) -> float:
    """`ndcgs`, mean as above."""
    return _mean(ndcgs(lists, positives, k))


def average_precisions(lists: Ids, positives: Ids, k: int) -> Floats:
    """The precision at every hit in the first k, summed and divided by the hits that a list of k
    can have, [B], NaN as above."""
    found, counts = hits(lists[:, :k], positives)
    precision = np.cumsum(found, axis=1) / np.arange(1, found.shape[1] + 1)
    return _of_users((precision * found).sum(1) / np.clip(counts, 1, k), counts)


def map_at(lists: Ids, positives: Ids, k: int) -> float:
    """Mean average precision: `average_precisions`, mean as above."""
    return _mean(average_precisions(lists, positives, k))


def hit_rates(lists: Ids, positives: Ids, k: int) -> Floats:
    """1 where a positive is in the first k, 0 elsewhere, [B], NaN as above."""
    found, counts = hits(lists[:, :k], positives)
    return _of_users(found.any(1).astype(np.float64), counts)


def hit_rate_at(lists: Ids, positives: Ids, k: int) -> float:
    """HR: `hit_rates`, mean as above."""
    return _mean(hit_rates(lists, positives, k))


def reciprocal_ranks(lists: Ids, positives: Ids, k: int) -> Floats:
    """One over the place of the first hit in the first k, 0 without a hit, [B], NaN as above. The
    mean over users is MRR."""
    found, counts = hits(lists[:, :k], positives)
    return _of_users(found.any(1) / (found.argmax(1) + 1.0), counts)


def mrr_at(lists: Ids, positives: Ids, k: int) -> float:
    """MRR: `reciprocal_ranks`, mean as above."""
    return _mean(reciprocal_ranks(lists, positives, k))


def interval(
    statistic: Callable[[Ids], Floats], users: int, share: float = 0.95, draws: int = 200
) -> tuple[Floats, Floats]:
    """Percentile bootstrap over users (Efron, "Bootstrap methods: another look at the jackknife",
    Annals of Statistics 1979) -> the lower and the upper bounds [M].

    Args:
        statistic: M values from the numbers of the users drawn, [users], some of them repeated. A
            NaN does not count.
    """
    random = np.random.default_rng(0)
    found = np.array([statistic(random.integers(users, size=users)) for _ in range(draws)])
    bounds = np.full((2, found.shape[1]), NAN)
    there = ~np.isnan(found).all(axis=0)
    ends = [50 * (1 - share), 50 * (1 + share)]
    bounds[:, there] = np.nanpercentile(found[:, there], ends, axis=0)
    return bounds[0], bounds[1]
