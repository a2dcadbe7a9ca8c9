"""A plan: every setting with what it keeps and costs, and the cheapest that keeps enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cascade.artifact import Array
from cascade.evaluation import metrics
from cascade.evaluation.brute_force import Encoded
from cascade.evaluation.stagewise import places_of
from cascade.training.bundle import HELD_OUT_FILE
from export.artifacts.guard import HeldOut
from export.context import Build, Source
from export.planning import quality, timing
from export.planning.grid import Limits, PlanError, Setting, Tried
from export.planning.opened import Opened
from export.users import raw_users

KEEP, USERS, LEAST_USERS = 0.95, 200, 50
FULL_ORDER_S = 30.0  # for the whole catalogue; beyond, no more users than the least are asked
ROUNDING = 1e-9  # of a mean over users
MOST_USERS = 1 << 16  # of users.parquet, from which they are drawn


@dataclass(frozen=True)
class Asked:
    """What a plan is asked for. Raises PlanError.

    Args:
        keep: the least share of the ranker's own best that an answer must hold.
        users: how many held-out users are asked, drawn at random. None: `USERS`, or fewer where the
            ranker takes long to score the whole catalogue for them.
    """

    keep: float = KEEP
    users: int | None = None
    tried: Tried = field(default_factory=Tried)

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise PlanError(f"--keep {self.keep:g}: expected a share above 0 and at most 1")
        if self.count < 2:
            raise PlanError(f"--users {self.users}: expected 2 or more, for an interval")

    @property
    def count(self) -> int:
        """The most users that are asked."""
        return USERS if self.users is None else self.users


@dataclass(frozen=True)
class Point:
    """A setting and what was measured at it."""

    candidates: int
    survivors: int
    effort: int | None
    kept: float  # share of the ranker's own best over all items, mean over users
    kept_low: float  # the ends of its 95 % interval, a bootstrap over users
    kept_high: float
    ndcg_at_10: float | None  # of held-out positives; None without any
    us_per_request: float  # of one user: the three stages in process, median
    us_per_user_of_16: float  # the same of 16 users at once, divided by 16

    @property
    def setting(self) -> Setting:
        return Setting(self.candidates, self.survivors, self.effort)


@dataclass(frozen=True)
class Plan:
    """What was measured and chosen; `release.json` has it under `plan`."""

    keep: float
    results: int  # how many of the ranker's own best are looked for
    items: int
    users: int
    positives: int
    threads: int
    effort: str | None  # what `effort` of a point means: nprobe or efSearch
    default: Point  # the sizes that the export has without a plan
    chosen: Point
    reached: bool  # whether the chosen point keeps enough
    speedup: dict[str, dict[str, float]]  # by users at once: whole requests in turn
    points: list[Point]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def pick(points: Sequence[Point], keep: float) -> tuple[Point, bool]:
    """The cheapest point that keeps enough, and True; or, where none does, the one that keeps most,
    and False."""
    enough = [point for point in points if point.kept >= keep - ROUNDING]
    if enough:
        return min(enough, key=lambda p: p.us_per_request), True
    return max(points, key=lambda p: (p.kept, -p.us_per_request)), False


def front(points: Sequence[Point]) -> list[Point]:
    """The points than which none is both cheaper and keeps as much, from the cheapest on."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.us_per_request, -p.kept)):
        if not found or point.kept > found[-1].kept:
            found.append(point)
    return found


def measure(build: Build, base: Build, scratch: Path, asked: Asked) -> Plan:
    """Plan the sizes of `build` with `base`, an export of it in the sizes that it has without one.
    Raises PlanError: too few users, or sizes that do not fit."""
    source = Source.load(build.checkpoints)
    opened = Opened(base, scratch)
    limits = _limits(build, opened, len(source.items))
    settings = limits.settings(build.sizes, asked.tried)
    raw, items, results = drawn_users(source, asked.count), len(source.items), build.sizes.results
    seconds = math.inf if asked.users else FULL_ORDER_S
    users = opened.encode(*raw)
    best = quality.best_of_all(opened, users, items, results, seconds, LEAST_USERS)
    users = users.take(slice(len(best)))
    shares = quality.kept(quality.answers(opened, settings, users, results), best)
    low, high = metrics.interval(lambda some: shares[some].mean(0), len(shares))
    ndcgs, positives = _ndcgs(opened, settings, source, asked.count)
    alone_us, batch_us = (
        timing.requests_us(opened, settings, raw, at_once, rounds)
        for at_once, rounds in ((1, timing.ROUNDS), (timing.BATCH, timing.BATCH_ROUNDS))
    )
    points = [
        Point(
            s.candidates,
            s.survivors,
            s.effort,
            float(shares[:, i].mean()),
            float(low[i]),
            float(high[i]),
            ndcgs[i],
            round(alone_us[i], 1),
            round(batch_us[i] / timing.BATCH, 1),
        )
        for i, s in enumerate(settings)
    ]
    chosen, reached = pick(points, asked.keep)
    default = points[settings.index(limits.setting(build.sizes))]
    speedup = compared((opened, default.setting), (opened, chosen.setting), raw)
    effort = opened.index.effort if opened.index else None
    return Plan(
        asked.keep,
        results,
        items,
        len(users),
        positives,
        opened.serving.threads,
        effort,
        default,
        chosen,
        reached,
        speedup,
        points,
    )


def compared(
    default: tuple[Opened, Setting], chosen: tuple[Opened, Setting], users: timing.Users
) -> dict[str, dict[str, float]]:
    """Whole requests of two cascades in turn, by the number of users at once."""
    first, second = (timing.whole(*each, users) for each in (default, chosen))
    return {
        str(at_once): timing.head_to_head(first, second, len(users[0]), at_once)
        for at_once in (1, timing.BATCH)
    }


def drawn_users(source: Source, count: int) -> tuple[Array, Array]:
    """Raw held-out users, drawn at random. Raises PlanError: there are fewer than two."""
    dense, categorical = raw_users(source, MOST_USERS)
    if len(dense) < 2:
        raise PlanError(
            f"{source.folder / 'users.parquet'} holds {len(dense)} users; a plan needs 2 or more"
        )
    some = np.random.default_rng(0).permutation(len(dense))[:count]
    return dense[some], categorical[some]


def least_of(build: Build) -> int:
    """How many items an answer is chosen from."""
    return max(build.sizes.results, build.product.pool)


def _limits(build: Build, opened: Opened, items: int) -> Limits:
    least, found = least_of(build), opened.index
    if found is None or found.effort is None:
        return Limits(items, least, None, 0, build.preranks)
    parameters = found.facts.parameters
    most = parameters.get("lists", items)
    return Limits(items, least, parameters[found.effort], most, build.preranks)


def _ndcgs(
    opened: Opened, settings: Sequence[Setting], source: Source, count: int
) -> tuple[Sequence[float | None], int]:
    """NDCG@10 of up to `count` held-out positives at every setting, and how many there were."""
    path = source.folder / HELD_OUT_FILE
    none: Sequence[float | None] = [None] * len(settings)
    if not path.exists():
        return none, 0
    places = places_of(source.items.item_ids, opened.item_ids)
    rows = HeldOut.load(path, places, source.schema)
    positive = np.random.default_rng(0).permutation(np.flatnonzero(rows.labels > 0.5))[:count]
    if not len(positive):
        return none, 0
    users = Encoded(*(values[positive] for values in rows.users))
    found = quality.answers(opened, settings, users, opened.sizes.results)
    return quality.ndcg(found, rows.items[positive]), len(positive)
