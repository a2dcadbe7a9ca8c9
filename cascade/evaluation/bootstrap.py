"""Intervals by bootstrap over users (Efron, "Bootstrap methods: another look at the jackknife",
Annals of Statistics 1979): users are drawn with replacement, and all rows of one come along.

The draws of one number of users are always the same, so that the values of two models, draw by
draw, are paired: the interval of their difference is that of `ends(a - b)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade.evaluation import metrics

Floats = npt.NDArray[np.floating[Any]]
Ids = npt.NDArray[np.int64]

DRAWS = 1000
BLOCK = 2**22  # counts of users that are multiplied at once
ROW_DRAWS = 10**9  # of rows times draws for an AUC, which sums over all rows for each draw
FEWEST = 200
SMALLEST = 1e-15  # a probability of 0 has no logarithm


def draws(users: int, count: int = DRAWS) -> Iterator[Ids]:
    """How often each user was drawn, [users], `count` times."""
    random = np.random.default_rng(0)
    for _ in range(count):
        yield np.bincount(random.integers(users, size=users), minlength=users)


def of_users(values: Floats, user: Ids) -> Floats:
    """Values of queries [Q, M] -> the means of their users [U, M], in ascending order of the users;
    a NaN does not count."""
    owner = np.unique(user, return_inverse=True)[1].ravel()
    there = ~np.isnan(values)
    sums, counts = np.zeros((2, int(owner.max(initial=-1)) + 1, values.shape[1]))
    np.add.at(sums, owner, np.where(there, values, 0))
    np.add.at(counts, owner, there)
    return np.where(counts > 0, sums / np.maximum(counts, 1), metrics.NAN)


def means(values: Floats, count: int = DRAWS) -> Floats:
    """Values of users [U, M] -> their mean in each draw [count, M]; a NaN does not count."""
    there = ~np.isnan(values)
    return ratios(np.where(there, values, 0), there.astype(np.float64), count)


def ratios(numerator: Floats, denominator: Floats, count: int = DRAWS) -> Floats:
    """Sums over sums of users [U, M] in each draw [count, M]; NaN where there is none."""
    found, block = np.empty((count, numerator.shape[1])), []
    most = max(1, BLOCK // max(1, len(numerator)))
    for number, drawn in enumerate(draws(len(numerator), count), 1):
        block.append(drawn)
        if len(block) == most or number == count:
            counts = np.array(block, np.float64)
            above, below = counts @ numerator, counts @ denominator
            ratio = above / np.where(below > 0, below, 1)
            found[number - len(block) : number] = np.where(below > 0, ratio, metrics.NAN)
            block = []
    return found


def row_draws(labels: Floats, probabilities: Floats, user: Ids) -> dict[str, Floats]:
    """Rows [B] of users, and the probability of each -> `auc`, `gauc` and `log_loss` in each draw
    [D]. D is 1000; of more than a million rows, fewer for the AUC."""
    owner = np.unique(user, return_inverse=True)[1].ravel()
    p = np.clip(probabilities.astype(np.float64), SMALLEST, 1 - SMALLEST)
    loss = -np.log(np.where(labels > 0.5, p, 1 - p))
    rows = np.bincount(owner).astype(np.float64)
    summed = np.bincount(owner, loss).astype(np.float64)
    losses = ratios(summed[:, None], rows[:, None])[:, 0]
    each, _ = metrics.user_aucs(labels, probabilities, user)
    weight = np.where(np.isnan(each), 0, rows)
    weighted = np.nan_to_num(each) * weight
    grouped = ratios(weighted[:, None], weight[:, None])[:, 0]
    return {"auc": _aucs(labels, p, owner), "gauc": grouped, "log_loss": losses}


def _aucs(labels: Floats, scores: Floats, owner: Ids) -> Floats:
    """The AUC in each draw: rows count as often as their user was drawn."""
    order = np.argsort(scores, kind="stable")
    owner, positive = owner[order], labels[order] > 0.5
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))  # of equals
    count = int(np.clip(ROW_DRAWS // max(1, len(scores)), FEWEST, DRAWS))
    found = np.empty(count)
    for number, drawn in enumerate(draws(int(owner.max()) + 1, count)):
        weight = drawn[owner].astype(np.float64)
        pos, neg = (np.add.reduceat(weight * some, starts) for some in (positive, ~positive))
        pairs = pos.sum() * neg.sum()
        below = np.cumsum(neg) - neg / 2
        found[number] = (pos * below).sum() / pairs if pairs else metrics.NAN
    return found


def ends(found: Floats, share: float = 0.95) -> tuple[float, float]:
    """The interval of values in each draw [D], by percentiles; NaN without a value."""
    found = found[~np.isnan(found)]
    if not len(found):
        return metrics.NAN, metrics.NAN
    low, high = np.percentile(found, [50 * (1 - share), 50 * (1 + share)])
    return float(low), float(high)


def difference(a: Floats, b: Floats, share: float = 0.95) -> tuple[float, float]:
    """The interval of a - b, whose values came from the same draws; of the shorter length."""
    size = min(len(a), len(b))
    return ends(a[:size] - b[:size], share)


def tie(a: Floats, b: Floats, share: float = 0.95) -> bool:
    """Whether the interval of a - b holds 0, or there is none."""
    low, high = difference(a, b, share)
    return not (low > 0 or high < 0)
