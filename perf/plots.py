"""The plots of the report. A hollow marker is a measurement that was unstable or delayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from perf.table import Line

# Light to dark as the percentile rises; readable in print and for the colour-blind.
PERCENTILE_COLOURS = {
    "p50_ms": "#7fb3d5",
    "p95_ms": "#2e86c1",
    "p99_ms": "#1a5276",
    "p99_9_ms": "#c0392b",
}
STAGE_COLOURS = ("#2e86c1", "#e08e0b", "#2a9d6f", "#8e5ea2", "#b03a5b")
REST_COLOUR = "#c8c8c8"
SIZE = (7.2, 4.2)
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
}


def latency_plot(lines: Sequence[Line], title: str, path: Path) -> None:
    """Percentiles against concurrency."""
    runs = [line for line in lines if line["mode"] == "concurrency" and line["requests"]]

    def draw(axes: Axes) -> None:
        values = [run["value"] for run in runs]
        for key, colour in PERCENTILE_COLOURS.items():
            _curve(axes, values, [run[key] for run in runs], runs, colour, name(key))
        axes.set_xscale("log", base=2)
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(bottom=0)
        axes.set(xlabel="requests in flight", ylabel="latency, ms")
        _legend(axes, runs)

    save(draw, title, path)


def throughput_plot(
    lines: Sequence[Line], title: str, path: Path, bound: float | None = None
) -> None:
    """What latency a throughput costs: closed loop (lines) and Poisson rates (crosses).

    Args:
        bound: users per second of the same code without a server, if it was measured.
    """
    runs = [line for line in lines if line["requests"]]
    closed = [run for run in runs if run["mode"] == "concurrency"]
    open_loop = [run for run in runs if run["mode"] == "rate"]

    def draw(axes: Axes) -> None:
        for key in ("p50_ms", "p99_ms"):
            colour = PERCENTILE_COLOURS[key]
            x, y = [r["throughput"] for r in closed], [r[key] for r in closed]
            _curve(axes, x, y, closed, colour, f"{name(key)}, closed loop")
            if open_loop:
                x, y = [r["throughput"] for r in open_loop], [r[key] for r in open_loop]
                _curve(axes, x, y, open_loop, colour, f"{name(key)}, Poisson rate", "D", ":")
        for run in closed:
            where = (run["throughput"], run["p99_ms"])
            axes.annotate(
                f"{run['value']:g}", where, (0, 7), textcoords="offset points", ha="center", size=8
            )
        if bound is not None:
            _draw_bound(axes, bound)
        axes.set_yscale("log")  # near the limit the open loop is many times slower
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlim(left=0)
        axes.set(
            xlabel="users per second (at each point: requests in flight)", ylabel="latency, ms"
        )
        _legend(axes, runs)

    save(draw, title, path)


def _draw_bound(axes: Axes, bound: float) -> None:
    axes.axvline(bound, color="#555555", linestyle="--", linewidth=1)
    axes.annotate(
        "bound: in process",
        (bound, 0.5),
        (-4, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        rotation=90,
        va="center",
        ha="right",
        size=8,
        color="#555555",
    )


def stages_plot(lines: Sequence[Line], title: str, path: Path) -> None:
    """Where the mean latency goes at each load: queue and compute of each stage, and the rest
    (network, client, ensemble), bottom to top. Closed and open loop have a scale of their own."""
    runs = [line for line in lines if line["requests"] and line["stages"]]
    panels = {
        "requests in flight": [run for run in runs if run["mode"] == "concurrency"],
        "Poisson, requests per second": [run for run in runs if run["mode"] == "rate"],
    }
    panels = {label: runs for label, runs in panels.items() if runs}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0] * 1.25, SIZE[1]), layout="constrained")
        handles: list[Patch] = []
        for number, (label, some) in enumerate(panels.items(), 1):
            axes = figure.add_subplot(1, len(panels), number)
            handles = _stage_bars(axes, some)
            marked = " (* unstable or delayed)" if any(map(suspect, some)) else ""
            axes.set(xlabel=label + marked, ylabel="" if number > 1 else "mean per request, ms")
            axes.set_ylim(bottom=0)
        figure.legend(handles=handles[::-1], loc="outside right upper", fontsize=8)
        figure.suptitle(title, x=0.01, ha="left", size=STYLE["axes.titlesize"])
        write(figure, path)


def _stage_bars(axes: Axes, runs: Sequence[Line]) -> list[Patch]:
    """Stacked bars of some runs; returns what the legend says, bottom to top."""
    stages = list(runs[0]["stages"])
    bottom = [0.0] * len(runs)

    def add(heights: Sequence[float], **style: Any) -> None:
        axes.bar(range(len(runs)), heights, bottom=bottom, width=0.68, linewidth=0.6, **style)
        bottom[:] = [b + h for b, h in zip(bottom, heights, strict=True)]

    handles = []
    for stage, colour in zip(stages, STAGE_COLOURS, strict=False):
        times = [run["stages"][stage] for run in runs]
        queue_ms = [time["queue_us"] / 1000 for time in times]
        add(queue_ms, facecolor="white", edgecolor=colour, hatch="/////")
        add([_compute_ms(time) for time in times], facecolor=colour, edgecolor=colour)
        handles.append(
            Patch(facecolor="white", edgecolor=colour, hatch="/////", label=f"{stage}, waiting")
        )
        handles.append(Patch(facecolor=colour, label=stage))
    rest = [max(0.0, run["mean_ms"] - ms) for run, ms in zip(runs, bottom, strict=True)]
    add(rest, facecolor=REST_COLOUR, edgecolor=REST_COLOUR)
    handles.append(Patch(facecolor=REST_COLOUR, label="network, client,\nensemble"))
    ticks = [f"{run['value']:.5g}{'*' if suspect(run) else ''}" for run in runs]
    axes.set_xticks(range(len(runs)), ticks)
    axes.grid(False, axis="x")
    return handles


def name(key: str) -> str:
    """`p99_9_ms` -> `p99.9`."""
    return key.removesuffix("_ms").replace("_", ".")


def suspect(line: Line) -> bool:
    """Whether a measurement carries a mark."""
    return not line["stable"] or bool(line["delayed"])


def _compute_ms(stage: Line) -> float:
    return float(stage["input_us"] + stage["infer_us"] + stage["output_us"]) / 1000


def _curve(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    runs: Sequence[Line],
    colour: str,
    label: str,
    marker: str = "o",
    line: str = "-",
) -> None:
    axes.plot(x, y, line, color=colour, linewidth=1.8, marker=marker, markersize=6, label=label)
    for a, b, run in zip(x, y, runs, strict=True):
        if suspect(run):
            axes.plot(a, b, marker, markersize=6, color=colour, markerfacecolor="white", zorder=3)


def _legend(axes: Axes, runs: Sequence[Line]) -> None:
    handles = axes.get_legend_handles_labels()[0]
    if any(map(suspect, runs)):
        style: dict[str, Any] = {"marker": "o", "markerfacecolor": "white", "linestyle": "none"}
        handles.append(Line2D([], [], color="#555555", label="unstable or delayed", **style))
    if handles:
        axes.legend(handles=handles, fontsize=8, loc="upper left")


def save(
    draw: Callable[[Axes], None], title: str, path: Path, size: tuple[float, float] = SIZE
) -> None:
    """Draw into a figure of one panel, and write it."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_title(title)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        write(figure, path)


def write(figure: Figure, path: Path) -> None:
    """Save a figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version of matplotlib in it, equal lines give an equal file.
    figure.savefig(path, dpi=150, metadata={"Software": None})
