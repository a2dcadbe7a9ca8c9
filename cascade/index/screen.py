"""Which kinds of index can be the fastest: all of them, tried on a sample of the items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cascade.index.candidates import Candidate, Plan, build_all, progress
from cascade.index.clock import timing
from cascade.index.kinds import RECIPES, Floats, Kind
from cascade.index.tuning import Truth, reach

SAMPLE = 1 << 16  # items that all kinds are tried on
FINALISTS, STILL_IN = 3, 1.3  # go on to all items: so many, at most so many times the best guess
SCREENED_QUERIES = 128


def screen(
    plans: Sequence[Plan], vectors: Floats, queries: Floats, k: int, target: float, seed: int
) -> tuple[list[Plan], list[Candidate]]:
    """All plans on a sample of the items -> those that can win over all items, and the others."""
    items = min(SAMPLE, len(vectors))
    rows = np.random.default_rng(seed).choice(len(vectors), items, replace=False)
    sample = vectors[np.sort(rows)]
    truth = Truth.of(sample, queries[:SCREENED_QUERIES], min(k, SAMPLE // 2))
    tuned_on, judged_on = truth.halves()
    built = build_all(plans, sample, seed, "sample")
    for each in progress(built, "tune on the sample"):
        reach(each.index, tuned_on, target)
    # Whether a kind can reach the target is seen where it was tuned: on the other queries, one
    # that just reaches it is under it as often as not.
    tuned = [tuned_on.recall(each.index) for each in built]
    recalls = [judged_on.recall(each.index) for each in built]
    times_us = timing([each.index for each in built], judged_on.queries, truth.k, rounds=2)
    guesses_us = [
        _guess_us(each.index.facts.kind, time_us, len(vectors) / items)
        if reached >= target
        else np.inf
        for each, reached, time_us in zip(built, tuned, times_us, strict=True)
    ]
    kept = finalists([kind for kind, _ in plans], guesses_us)
    dropped = [
        each.candidate(recalls[i], times_us[i], _reason(guesses_us[i], tuned[i], len(vectors)))
        for i, each in enumerate(built)
        if i not in kept
    ]
    return [plans[i] for i in kept], dropped


def _guess_us(kind: Kind, time_us: float, growth: float) -> float:
    return time_us * float(growth ** RECIPES[kind].growth)


def finalists(kinds: Sequence[Kind], guesses_us: Sequence[float]) -> list[int]:
    """Which plans can win: the best of each kind, of those the few that are near the best."""
    ranked = sorted(range(len(kinds)), key=guesses_us.__getitem__)
    limit_us = STILL_IN * guesses_us[ranked[0]]
    best_of_kind: dict[Kind, int] = {}
    for i in ranked:
        if np.isfinite(guesses_us[i]) and guesses_us[i] <= limit_us:
            best_of_kind.setdefault(kinds[i], i)
    return list(best_of_kind.values())[:FINALISTS]


def _reason(guess_us: float, recall: float, items: int) -> str:
    if np.isinf(guess_us):
        return f"dropped on a sample: recall {recall:.3f} at the largest effort"
    return f"dropped on a sample: about {guess_us:.0f} us expected at {items} items"
