"""How fast a cost grows with a size: the exponent of the power law through the points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Point = Mapping[str, Any]

COSTS = ("total_us", "retrieve_us", "prerank_us", "rank_us")
WORK = ("distances", "retrieve_bytes", "prerank_bytes", "rank_bytes", "gather_ns", "us_per_user")


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Least squares of log(cost) against log(size): 1 is linear, 0.5 the square root, 0 constant.

    Raises:
        ValueError: fewer than two different sizes, or something that has no logarithm.
    """
    if len(set(sizes)) < 2:
        raise ValueError(f"sizes {list(sizes)} show no growth; give two different ones at least")
    if min((*sizes, *costs)) <= 0:
        raise ValueError("sizes and costs have to be above zero to grow by a power")
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def exponents(points: Iterable[Point]) -> dict[str, dict[str, float]]:
    """By sweep, the exponents of the costs, and those of the work behind them: where a cost grows
    faster than its work, the memory or the machine is the reason."""
    sweeps: dict[str, list[Point]] = {}
    for point in points:
        sweeps.setdefault(point["against"], []).append(point)
    return {
        against: {
            key: exponent([p["size"] for p in some], [p[key] for p in some])
            for key in (*COSTS, *WORK)
            if all(p.get(key, 0) > 0 for p in some)
        }
        for against, some in sweeps.items()
        if len({p["size"] for p in some}) > 1
    }
