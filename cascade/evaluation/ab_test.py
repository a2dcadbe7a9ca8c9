"""`python -m cascade.evaluation.ab_test --log FILE`: which of two releases gets more clicks.

The log is a Parquet file with a row for each item that was shown: `release`, `user` and `clicked`
(0 or 1). Releases are split by user, and the impressions of one user are alike; so the variance is
that of a ratio of sums over users (Deng, Knoblich and Lu, "Applying the Delta Method in Metric
Analytics", KDD 2018), and not that of independent impressions, whose intervals would be too narrow.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from tabulate import tabulate

from cascade.errors import CascadeError, run

COLUMNS = ("release", "user", "clicked")


class LogError(CascadeError, ValueError):
    """A log that no comparison can be made from."""


def half_interval(variance: float, confidence: float) -> float:
    """Half the interval that holds a normal variable with that confidence."""
    return NormalDist().inv_cdf(0.5 + confidence / 2) * sqrt(variance)


@dataclass(frozen=True)
class Rate:
    """The click-through rate of one release."""

    release: int
    users: int
    impressions: int
    clicks: int
    ctr: float
    variance: float  # of `ctr`, over users


class Lift(NamedTuple):
    """The rate of a release over that of another one, (new - old) / old, and its interval."""

    lift: float
    low: float
    high: float


def rate(
    release: int, impressions: npt.NDArray[np.float64], clicks: npt.NDArray[np.float64]
) -> Rate:
    """Of one release, from the sums of its users, [U] each."""
    users, ctr = len(impressions), clicks.sum() / impressions.sum()
    residuals = clicks - ctr * impressions
    variance = float((residuals**2).sum() / max(1, users - 1) / users / impressions.mean() ** 2)
    return Rate(release, users, int(impressions.sum()), int(clicks.sum()), float(ctr), variance)


def read(path: Path) -> list[Rate]:
    """The rates of all releases in a log, by number."""
    if not path.exists():
        raise LogError(f"there is no file {path}")
    table = pq.read_table(path)
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise LogError(f"{path} lacks the columns {missing}; a log has {', '.join(COLUMNS)}")
    clicked = table["clicked"].cast(pa.int64()).to_numpy()
    if not np.isin(clicked, (0, 1)).all():
        raise LogError(f"{path}: clicked is {np.setdiff1d(clicked, (0, 1))[:3]}; expected 0 or 1")
    table = table.select(["release", "user"]).append_column("clicked", pa.array(clicked))
    wanted = [("clicked", "count"), ("clicked", "sum")]
    sums = table.group_by(["release", "user"]).aggregate(wanted)
    release = sums["release"].to_numpy()
    shown, clicks = (sums[f"clicked_{name}"].to_numpy().astype(float) for name in ("count", "sum"))
    return [rate(int(r), shown[release == r], clicks[release == r]) for r in np.unique(release)]


def lift(old: Rate, new: Rate, confidence: float) -> Lift:
    """How many more clicks `new` gets than `old`, relative; the delta method for a ratio."""
    if not old.clicks:
        raise LogError(f"nothing of release {old.release} was clicked: there is no lift over it")
    ratio = new.ctr / old.ctr
    variance = new.variance / old.ctr**2 + ratio**2 * old.variance / old.ctr**2
    half = half_interval(variance, confidence)
    return Lift(ratio - 1, ratio - 1 - half, ratio - 1 + half)


def report(rates: list[Rate], confidence: float) -> str:
    """A table, and a sentence for each release after the first."""
    headers = ("release", "users", "shown", "clicks", "CTR", f"{confidence:.0%}")
    rows = []
    for found in rates:
        half = half_interval(found.variance, confidence)
        counts = (f"{count:,}" for count in (found.users, found.impressions, found.clicks))
        interval = f"{found.ctr - half:.5f} to {found.ctr + half:.5f}"
        rows.append((found.release, *counts, f"{found.ctr:.5f}", interval))
    lines = [tabulate(rows, headers, "plain", stralign="right", disable_numparse=True)]
    for new in rates[1:]:
        more, low, high = lift(rates[0], new, confidence)
        sentence = f"release {new.release} over {rates[0].release}: {more:+.2%} "
        verdict = ": no difference can be told" if low <= 0 <= high else ""
        lines.append(f"{sentence}({low:+.2%} to {high:+.2%}){verdict}")
    return "\n".join(lines)


def draw(rates: list[Rate], confidence: float, path: Path) -> None:
    """The rates with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    half = [half_interval(found.variance, confidence) for found in rates]
    names = [f"release {found.release}" for found in rates]
    axes.errorbar(names, [found.ctr for found in rates], half, fmt="o", capsize=6)
    axes.margins(x=0.3)
    axes.set(ylabel="click-through rate", title=f"Clicks by release, {confidence:.0%} intervals")
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m cascade.evaluation.ab_test", description=__doc__
    )
    parser.add_argument("--log", type=Path, required=True, help="Parquet: release, user, clicked")
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--plot", type=Path, help="file for the picture (.png)")
    options = parser.parse_args(arguments)
    rates = read(options.log)
    print(report(rates, options.confidence))
    if options.plot:
        draw(rates, options.confidence, options.plot)


if __name__ == "__main__":
    run(main)
