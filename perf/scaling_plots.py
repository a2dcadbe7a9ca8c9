"""The plots of `perf.scaling`, on logarithmic axes: there a slope is an exponent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from perf.plots import SIZE, STAGE_COLOURS, STYLE, write

Points = Sequence[Mapping[str, Any]]

STAGES = {"retrieve_us": "retrieve", "prerank_us": "prerank", "rank_us": "rank"}
COSTS = {"total_us": "whole request", **STAGES}
COLOURS = ("#333333", *STAGE_COLOURS)


@dataclass(frozen=True)
class Plot:
    """One picture.

    Args:
        keys: what is drawn, and how the legend calls it.
        slope: of the line to compare the first of the keys with, and its name; None for no line.
    """

    title: str
    xlabel: str
    ylabel: str
    keys: Mapping[str, str]
    slope: tuple[float, str] | None = None
    log_y: bool = True


PLOTS = {
    "items": Plot(
        "Cost of a request against the catalogue, one thread",
        "items",
        "processor time, median, µs",
        COSTS,
        (0.5, "√N"),
    ),
    "candidates": Plot(
        "Cost of a request against the candidates",
        "candidates that leave retrieve",
        "processor time, median, µs",
        COSTS,
        (1, "linear"),
    ),
    "kept": Plot(
        "Cost of a request against what prerank keeps",
        "survivors that leave prerank",
        "processor time, median, µs",
        COSTS,
        (1, "linear"),
    ),
    "batch": Plot(
        "Cost of one user against the users of a batch",
        "users computed at once",
        "processor time per user, median, µs",
        {"us_per_user": "whole request"},
        log_y=False,
    ),
    "instances": Plot(
        "Throughput of the fused server, 16 requests in flight",
        "instances",
        "users per second",
        {"throughput": "users per second"},
        log_y=False,
    ),
}
MEMORY = {
    "items": Plot(
        "Memory of one process",
        "items",
        "MB",
        {"rss_mb": "resident", "files_mb": "its files", "anonymous_mb": "private"},
    ),
    "instances": Plot(
        "Memory of all processes of the fused server",
        "instances",
        "MB",
        {"rss_mb": "resident", "pss_mb": "proportional", "anonymous_mb": "private"},
        log_y=False,
    ),
}


def draw(points: Points, folder: Path) -> list[Path]:
    """Every plot that there are points for -> the files."""
    made = []
    for plots, suffix in ((PLOTS, ""), (MEMORY, "-memory")):
        for against, plot in plots.items():
            some = [point for point in points if point["against"] == against]
            if some:
                made.append(folder / f"{against}{suffix}.png")
                _figure(plot, some, made[-1])
    return made


def _figure(plot: Plot, points: Points, path: Path) -> None:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        _curves(axes, plot, points)
        axes.set(title=plot.title, xlabel=plot.xlabel, ylabel=plot.ylabel)
        axes.legend(fontsize=8)
        write(figure, path)


def _curves(axes: Axes, plot: Plot, points: Points) -> None:
    sizes = [point["size"] for point in points]
    for (key, label), colour in zip(plot.keys.items(), COLOURS, strict=False):
        axes.plot(sizes, [p[key] for p in points], "o-", color=colour, label=label)
    if plot.keys is COSTS:
        low, high = ([p[f"total_p{q}_us"] for p in points] for q in (25, 75))
        axes.fill_between(sizes, low, high, color=COLOURS[0], alpha=0.12, linewidth=0)
    if plot.slope:
        slope, label = plot.slope
        first = points[0][next(iter(plot.keys))]
        line = [first * (size / sizes[0]) ** slope for size in sizes]
        axes.plot(sizes, line, "--", color="#999999", linewidth=1, label=label)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    if plot.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_ylim(bottom=0)
