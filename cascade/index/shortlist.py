"""Builds and measures indexes; tries all kinds on a sample of the items to find those that can win.

The cost of one search grows with the catalogue in a known way (`GROWTH`), so a sample tells which
kinds can be the fastest over all items.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cascade.index.kinds import Floats, Kind, base, has_lists, library, list_count
from cascade.index.search import Index, build
from cascade.index.tuning import Truth, reach, timing

SAMPLE = 1 << 16  # items that all kinds are tried on
FINALISTS, STILL_IN = 3, 1.3  # go on to all items: so many, at most so many times the best guess
SCREENED_QUERIES = 128
# Exponent of the cost of one search against N at equal recall, by the effort parameter.
GROWTH = {"nprobe": 0.5, "efSearch": 0.1, None: 1.0}

Contender = tuple[Kind, float]  # a kind and its lists per sqrt(N); 0 if it has none


@dataclass(frozen=True)
class Candidate:
    """One measured point: a kind at one setting.

    Args:
        items: over how many it was measured; fewer than the catalogue's if a sample was enough to
            drop it. A candidate of the whole catalogue is a point of the frontier.
        recall: on other queries than those its effort was set on. For the wanted recall the choice
            is judged on them: effort is added until they reach it too.
        latency_us: median of one query on one thread.
        bytes_per_item: of the file. build_s: seconds of training and adding.
    """

    kind: Kind
    parameters: dict[str, int]
    items: int
    recall: float
    latency_us: float
    bytes_per_item: float
    build_s: float
    chosen: bool = False
    note: str = ""


@dataclass(frozen=True)
class Built:
    """An index, its size and its build time."""

    index: Index
    bytes_per_item: float
    build_s: float

    def point(self, recall: float, latency_us: float, note: str = "") -> Candidate:
        """The measured point at the present setting."""
        facts = self.index.facts
        return Candidate(
            facts.kind,
            facts.parameters,
            facts.items,
            round(recall, 5),
            round(latency_us, 1),
            self.bytes_per_item,
            self.build_s,
            note=note,
        )


def build_all(
    contenders: Sequence[Contender], vectors: Floats, seed: int, title: str
) -> list[Built]:
    """Build the contenders; those with the same number of lists share one k-means."""
    centroids: dict[int, Floats] = {}
    built: list[Built] = []
    for kind, density in progress(contenders, title):
        began = time.monotonic()
        lists = list_count(len(vectors), density) if density else None
        shared = centroids.get(lists) if lists else None
        index = build(vectors, kind, seed=seed, lists=lists, centroids=shared)
        seconds = round(time.monotonic() - began, 1)
        inner = base(index.raw)
        if lists and has_lists(index.facts.kind) and inner.d == index.facts.width:
            centroids[lists] = inner.quantizer.reconstruct_n(0, lists)
        built.append(Built(index, round(_file_bytes(index) / len(vectors), 1), seconds))
    return built


def _file_bytes(index: Index) -> int:
    """The size of the file that `save` would write."""
    written = 0

    def count(block: bytes) -> None:
        nonlocal written
        written += len(block)

    library.write_index(index.raw, library.PyCallbackIOWriter(count))
    return written


def progress(steps: Sequence[Any], title: str) -> Any:
    """The same steps behind a bar that disappears when they are done."""
    from tqdm import tqdm  # no part of what a server needs to load an index

    return tqdm(steps, desc=f"index: {title}", leave=False)


def shortlist(
    contenders: Sequence[Contender],
    vectors: Floats,
    queries: Floats,
    k: int,
    target: float,
    seed: int,
) -> tuple[list[Contender], list[Candidate]]:
    """All contenders on a sample of the items -> those that can win, and the measured others."""
    items = min(SAMPLE, len(vectors))
    rows = np.random.default_rng(seed).choice(len(vectors), items, replace=False)
    sample = vectors[np.sort(rows)]
    truth = Truth.of(sample, queries[:SCREENED_QUERIES], min(k, SAMPLE // 2))
    tuned_on, judged_on = truth.halves()
    built = build_all(contenders, sample, seed, "sample")
    for each in progress(built, "tune on the sample"):
        reach(each.index, tuned_on, target)
    # Whether a kind can reach the target is judged on the queries it was tuned on: on the others,
    # a kind that just reaches it is below it half of the time.
    tuned = [tuned_on.recall(each.index) for each in built]
    recalls = [judged_on.recall(each.index) for each in built]
    times_us = timing([each.index for each in built], judged_on.queries, truth.k, rounds=2)
    guesses_us = [
        time_us * float((len(vectors) / items) ** GROWTH[each.index.effort])
        if reached >= target
        else np.inf
        for each, reached, time_us in zip(built, tuned, times_us, strict=True)
    ]
    kept = finalists([kind for kind, _ in contenders], guesses_us)
    dropped = [
        each.point(recalls[i], times_us[i], _reason(guesses_us[i], tuned[i], len(vectors)))
        for i, each in enumerate(built)
        if i not in kept
    ]
    return [contenders[i] for i in kept], dropped


def finalists(kinds: Sequence[Kind], guesses_us: Sequence[float]) -> list[int]:
    """Which contenders can win: the best of each kind, of those the few that are near the best."""
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
