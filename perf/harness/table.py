"""How the tables (Markdown, aligned for a terminal) and pictures of all programs look."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate

from perf.harness.measurement import PERCENTILES
from perf.harness.record import Line

LATENCIES = ("throughput", *PERCENTILES, "mean_ms", "max_ms")
STAGE_TIMES = ("queue_us", "input_us", "infer_us", "output_us")
STYLE: Any = {
    **{"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False},
    **{"axes.grid": True, "axes.axisbelow": True, "grid.color": "#e6e6e6"},
    **{"legend.fontsize": 8, "font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left"},
}
RELATIONS = {">=": operator.ge, "<=": operator.le, "=": operator.eq}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """First column to the left, figures to the right."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    align = ["left", *["right"] * (len(header) - 1)]
    options = {"tablefmt": "pipe", "colalign": align, "disable_numparse": True}
    return str(tabulate([list(header), *cells], "firstrow", **options))


def figures(frame: pd.DataFrame, corner: str = "") -> str:
    """A frame of numbers and texts as a table; its index is the first column."""
    rows = [
        [str(row), *(value if isinstance(value, str) else number(value) for value in values)]
        for row, *values in frame.itertuples()
    ]
    return table([corner, *map(str, frame.columns)], rows)


def number(value: float | None) -> str:
    """Three significant digits, never as a power of ten; a dash for None."""
    if value is None or value != value:
        return "–"
    size = abs(value)
    return f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2}f}"


def latency_table(lines: Sequence[Line]) -> str:
    """One row per run, with what limits its trust in the last column."""
    names = ["users/s", *map(_spaced, LATENCIES[1:]), "p99 by window", "requests", "marks"]
    rows = []
    for line in lines:
        p99 = " to ".join(map(number, line.get("p99_range_ms") or (None, None)))
        figures = [number(line.get(key)) for key in LATENCIES]
        rows.append([load(line), *figures, p99, str(line["requests"]), _marks(line)])
    return table(["load", *names], rows)


def stage_table(lines: Sequence[Line]) -> str:
    """One row per run and member: mean times per request, and how well it batched."""
    header = ["load", "stage", *map(_spaced, STAGE_TIMES), "users", "executions", "mean batch"]
    rows = []
    for line in lines:
        for name, stage in line["stages"].items():
            counts = str(stage["inference_count"]), str(stage["execution_count"])
            times = [number(stage[key]) for key in STAGE_TIMES]
            rows.append([load(line), name, *times, *counts, number(stage["mean_batch"])])
    return table(header, rows)


def _spaced(key: str) -> str:
    """`p99_9_ms` -> `p99.9 ms`, `queue_us` -> `queue µs`."""
    name, _, unit = key.rpartition("_")
    return f"{name.replace('_', '.')} {unit.replace('us', 'µs')}"


def load(line: Line) -> str:
    """What the clients did."""
    return f"{line['mode']} {line['value']:g}" + ("/s" if line["mode"] == "rate" else "")


def _marks(line: Line) -> str:
    """Why a figure is not to be trusted; empty if there is no reason."""
    found = [] if line["stable"] else ["**unstable**"]
    if line["error"]:
        found = [f"**failed** ({line['failed']}): {line['error']}"]
    if line["delayed_percent"]:
        found.append(f"**delayed** ({number(line['delayed_percent'])} %)")
    return ", ".join(found)


@dataclass(frozen=True)
class Claim:
    """What a key of a summary is to be, and what it says."""

    key: str
    relation: str
    value: float
    meaning: str

    def holds(self, found: float) -> bool:
        return bool(RELATIONS[self.relation](found, self.value))


def verdicts(summary: Mapping[str, Any], claims: Sequence[Claim]) -> str:
    """Each claim beside what was found."""
    rows = []
    for claim in (claim for claim in claims if claim.key in summary):
        found, target = summary[claim.key], f"{claim.relation} {claim.value:g}"
        holds = "yes" if claim.holds(found) else "**no**"
        rows.append([claim.meaning, claim.key, target, f"{found:.3g}", holds])
    return table(["claim", "key", "target", "found", "holds"], rows)


@contextmanager
def picture(path: Path, title: str, size: tuple[float, float] = (8.0, 4.5)) -> Iterator[Axes]:
    """Axes to draw into; the picture is written at the end of the block."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title, parse_math=False)  # names may hold $
        yield axes
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without the version of matplotlib in it, equal lines give an equal file.
        figure.savefig(path, dpi=120, metadata={"Software": None})
