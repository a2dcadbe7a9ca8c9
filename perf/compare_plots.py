"""The plots of a comparison: what latency a throughput costs everyone, and the percentiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.axes import Axes

from perf.compare_keys import BOUND, Line, Runs
from perf.compare_runs import CURVE
from perf.plots import save

COLOURS = {
    "fused": "#1a5276",
    "paired": "#2e86c1",
    "ensemble": "#7fb3d5",
    "flat": "#8e5ea2",
    "fastapi": "#e08e0b",
    "pytriton": "#2a9d6f",
}
DASHES = {"http": "-", "grpc": "--"}
SIZE = (8.4, 4.8)


def curve_plot(lines: Sequence[Line], title: str, path: Path) -> None:
    """p50 against requests per second in the closed loop; bars span the rounds."""
    runs = Runs(lines)

    def draw(axes: Axes) -> None:
        for name, protocol in _ways(runs):
            way = {"contender": name, "protocol": protocol, "mode": "concurrency"}
            points = [runs.pick(value=value, **way) for value in runs.values(**way)]
            axes.errorbar(
                [_mid(point, "throughput") for point in points],
                [_mid(point, "p50_ms") for point in points],
                xerr=np.transpose([_reach(point, "throughput") for point in points]),
                color=COLOURS.get(name),
                linestyle=DASHES[protocol],
                marker="o",
                markersize=4,
                linewidth=1.6,
                elinewidth=0.8,
                label=f"{name}, {protocol}",
            )
        if bound := runs.bound(BOUND):
            axes.axvline(bound, color="#555555", linestyle=":", linewidth=1.2, label="no server")
        axes.set_yscale("log")
        axes.set_xlim(left=0)
        axes.set(xlabel="requests per second", ylabel="p50, ms")

    _save(draw, title, path)


def percentile_plot(lines: Sequence[Line], share: float, title: str, path: Path) -> None:
    """Latency against percentile in the open loop, each at its own share; medians of rounds."""
    runs = Runs(lines)

    def draw(axes: Axes) -> None:
        for name, protocol in _ways(runs):
            found = runs.pick(contender=name, protocol=protocol, mode="rate", share=share)
            curves = [line["curve_ms"] for line in found if line["curve_ms"]]
            if curves:
                rate = _mid(found, "value")
                label = f"{name}, {protocol}, {rate:.0f}/s"
                axes.plot(
                    1 / (1 - CURVE / 100),
                    np.median(curves, axis=0),
                    color=COLOURS.get(name),
                    linestyle=DASHES[protocol],
                    linewidth=1.8,
                    label=label,
                )
        marks = [5, 50, 90, 99, 99.9]
        axes.set_xscale("log")
        axes.set_xticks([1 / (1 - m / 100) for m in marks], [f"p{m:g}" for m in marks])
        axes.minorticks_off()
        axes.set_yscale("log")
        axes.set(ylabel="latency from when the request was due, ms")

    _save(draw, title, path)


def _ways(runs: Runs) -> list[tuple[str, str]]:
    ways = {(line["contender"], line["protocol"]) for line in runs.lines}
    return sorted(way for way in ways if way[1] in DASHES)


def _mid(lines: Sequence[Line], key: str) -> float:
    return median(line[key] for line in lines)


def _reach(lines: Sequence[Line], key: str) -> tuple[float, float]:
    values = [line[key] for line in lines]
    return median(values) - min(values), max(values) - median(values)


def _save(draw: Callable[[Axes], None], title: str, path: Path) -> None:
    def with_legend(axes: Axes) -> None:
        draw(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)

    save(with_legend, title, path, SIZE)
