"""`python -m cascade.evaluation.ab_test --log FILE`: which of two releases gets more clicks.

The log is a Parquet or CSV file with a row for each item that was shown: `release`, `user` and
`clicked` (0 or 1). Releases are split by user, and the impressions of one user are alike; so the
variance is that of a ratio of sums over users (Deng, Knoblich and Lu, "Applying the Delta Method in
Metric Analytics", KDD 2018), and not that of independent impressions, whose intervals would be too
narrow. The interval of a lift is that of the logarithm of the ratio: the same two releases swapped
give the inverse ratio with the inverse bounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, log, sqrt
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv
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
    variance: float  # of `ctr`, over users; infinite of one user


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
    variance = inf
    if users > 1:
        residuals = clicks - ctr * impressions
        variance = float((residuals**2).sum() / (users - 1) / users / impressions.mean() ** 2)
    return Rate(release, users, int(impressions.sum()), int(clicks.sum()), float(ctr), variance)


def read(path: Path) -> list[Rate]:
    """The rates of all releases in a log, by number. Raises LogError: no such log, no rows, or
    columns that are missing, have another type or lack values."""
    table, names = _table(path)
    if missing := [name for name in COLUMNS if name not in names]:
        raise LogError(f"{path} lacks the columns {missing}; a log has {', '.join(COLUMNS)}")
    if twice := [name for name in COLUMNS if names.count(name) > 1]:
        raise LogError(f"{path} has two columns {twice[0]!r}; rename one")
    if not len(table):
        raise LogError(f"{path} has no rows; expected one for each item that was shown")
    releases = _integers(path, table, "release", "the number of a release")
    clicked = _integers(path, table, "clicked", "0 or 1")
    if not np.isin(clicked, (0, 1)).all():
        raise LogError(f"{path}: clicked is {np.setdiff1d(clicked, (0, 1))[:3]}; expected 0 or 1")
    release, of_row = np.unique(releases, return_inverse=True)
    user = _codes(path, table)
    pair, of_pair = np.unique(of_row.ravel() * (user.max() + 1) + user, return_inverse=True)
    shown = np.bincount(of_pair.ravel()).astype(float)
    clicks = np.bincount(of_pair.ravel(), clicked)
    owner = pair // (user.max() + 1)
    return [rate(int(r), shown[owner == i], clicks[owner == i]) for i, r in enumerate(release)]


def _table(path: Path) -> tuple[pa.Table, list[str]]:
    """A log and the names of its columns."""
    if not path.exists():
        raise LogError(f"there is no file {path}")
    if not path.is_file():
        raise LogError(f"{path} is not a file; expected a log, Parquet or CSV")
    kind = "CSV" if path.suffix.lower() == ".csv" else "Parquet"
    try:
        if kind == "CSV":
            table = csv.read_csv(path, csv.ReadOptions(use_threads=False))
        else:
            table = pq.ParquetFile(path).read(use_threads=False)
        return table, [*table.column_names]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        why = (str(error).splitlines() or ["it is broken"])[0]
        raise LogError(
            f"{path} cannot be read as {kind}: {why}; a log is a Parquet file, or ends in .csv"
        ) from error


def _values(path: Path, table: pa.Table, name: str, expected: str) -> pa.ChunkedArray:
    """A column all of whose values are there."""
    values = table[name]
    if values.null_count:
        row = int(np.argmax(values.is_null().to_numpy()))
        raise LogError(f"{path}, row {row + 1}: {name} is missing; expected {expected}")
    return values


def _integers(path: Path, table: pa.Table, name: str, expected: str) -> npt.NDArray[np.int64]:
    values = _values(path, table, name, expected)
    try:
        found: npt.NDArray[np.int64] = values.cast(pa.int64()).to_numpy()
    except pa.ArrowException as error:
        raise LogError(f"{path}: {name} is {values.type}; expected {expected}") from error
    return found


def _codes(path: Path, table: pa.Table) -> npt.NDArray[np.int64]:
    """A number from 0 on for each user."""
    values = _values(path, table, "user", "the id of a user")
    try:
        codes = values.combine_chunks().dictionary_encode().indices
    except pa.ArrowException as error:
        raise LogError(f"{path}: user is {values.type}; expected an integer or a string") from error
    found: npt.NDArray[np.int64] = codes.to_numpy().astype(np.int64)
    return found


def lift(old: Rate, new: Rate, confidence: float) -> Lift:
    """How many more clicks `new` gets than `old`, relative; the delta method for the logarithm of
    the ratio. Raises LogError: nothing of one of them was clicked."""
    for found in (old, new):
        if not found.clicks:
            raise LogError(
                f"nothing of release {found.release} was clicked: there is no lift to compute; "
                "log more impressions"
            )
    ratio = new.ctr / old.ctr
    half = half_interval(new.variance / new.ctr**2 + old.variance / old.ctr**2, confidence)
    low, high = (exp(log(ratio) + side) if half < 700 else side for side in (-half, half))
    return Lift(ratio - 1, max(low, 0.0) - 1, high - 1)


def report(rates: list[Rate], confidence: float) -> str:
    """A table, and a sentence for each release after the first."""
    headers = ("release", "users", "shown", "clicks", "CTR", f"{confidence:.0%}")
    rows = []
    for found in rates:
        half = half_interval(found.variance, confidence)
        counts = (f"{count:,}" for count in (found.users, found.impressions, found.clicks))
        interval = f"{found.ctr - half:.5f} to {found.ctr + half:.5f}" if half < inf else "–"
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
    half = [side if side < inf else 0 for side in half]
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
    parser.add_argument("--log", type=Path, required=True, help="release, user, clicked")
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--plot", type=Path, help="file for the picture (.png)")
    options = parser.parse_args(arguments)
    if not 0 < options.confidence < 1:
        raise LogError(f"--confidence {options.confidence:g} came; expected between 0 and 1")
    rates = read(options.log)
    print(report(rates, options.confidence))
    if options.plot:
        draw(rates, options.confidence, options.plot)


if __name__ == "__main__":
    run(main, to_end=True)
