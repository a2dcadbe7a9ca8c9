"""Chooses the list from the ranked items: for diversity, and some places at random.

Maximal marginal relevance (Carbonell and Goldstein, "The use of MMR, diversity-based reranking for
reordering documents and producing summaries", SIGIR 1998) takes one item after the other, each
time the one whose score, less its similarity to the items taken before, is largest.

Exploration draws the last places of a list by a softmax of the scores, one after the other and
without replacement (Plackett and Luce). The answer contains the probability of each draw: clicks
can be weighted by it as if every item had been shown (Horvitz and Thompson, 1952).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[Any]
Places = npt.NDArray[np.int64]


def relevance(scores: Floats) -> Floats:
    """Scores [P] scaled to 0 … 1, so that a weight means the same for every user."""
    low, high = scores.min(initial=np.inf), scores.max(initial=-np.inf)
    return (scores - low) / (high - low) if high > low else np.ones_like(scores)


def mmr(relevances: Floats, vectors: Floats, count: int, diversity: float) -> Places:
    """The places of `count` items (all, if they are fewer), in the order of the list.

    Args:
        relevances: [P], from 0 to 1. vectors: [P, D], of length 1.
        diversity: 1 - lambda of the paper: 0 = by relevance only, 1 = by dissimilarity only.
    """
    gain = (1 - diversity) * np.asarray(relevances, np.float64)
    nearest = np.full(len(gain), -np.inf)  # the largest similarity to the items taken
    taken = np.zeros(min(count, len(gain)), np.int64)
    left = np.ones(len(gain), bool)
    for place in range(len(taken)):
        worth = gain - diversity * nearest if place else gain
        taken[place] = best = int(np.argmax(np.where(left, worth, -np.inf)))
        left[best] = False
        # Not by BLAS, which would wake its threads for a product of microseconds.
        nearest = np.maximum(nearest, np.einsum("pd,d->p", vectors, vectors[best]))
    return taken


def explore(
    scores: Floats,
    listed: Places,
    drawn: int,
    temperature: float,
    random: np.random.Generator,
) -> tuple[Places, Floats]:
    """Draw the last places of a list from all items that are not before them.

    Args:
        scores: [P], probabilities of a click; their log-odds over the temperature are the logits.
        listed: places of the list without exploration.
        drawn: how many of its last places are drawn.

    Returns:
        The new list, and the probability [len(listed)] with which each item got its place, given
        those before: 1 where nothing was drawn.
    """
    found, propensities = listed.copy(), np.ones(len(listed))
    chances = np.clip(np.asarray(scores, np.float64), 1e-7, 1 - 1e-7)  # float32 reaches 0 and 1
    logits = np.log(chances / (1 - chances)) / temperature
    left = np.ones(len(scores), bool)
    first = max(0, len(listed) - drawn)
    left[listed[:first]] = False
    for place in range(first, len(listed)):
        weights = np.where(left, np.exp(logits - logits[left].max()), 0)
        weights /= weights.sum()
        found[place] = pick = int(random.choice(len(weights), p=weights))
        propensities[place] = weights[pick]
        left[pick] = False
    return found, propensities


def intra_list_similarity(vectors: Floats) -> float:
    """Mean cosine of the pairs of a list [R, D] of vectors of length 1 (Ziegler et al., WWW 2005);
    0 if there is no pair."""
    count = len(vectors)
    if count < 2:
        return 0.0
    return float(((vectors @ vectors.T).sum() - count) / (count * (count - 1)))
