"""What a held-out table says about a repository, as tables, a plot and JSON."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from cascade.evaluation.report import BLUE, GREY, INK, ROW_METRICS, aligned, number, write_files
from cascade.evaluation.served.judge import LIST_METRICS, Judged
from cascade.evaluation.stagewise import TOP
from cascade.spec import STAGES

LISTED = ("popularity", *STAGES)
MEASURES = {  # by name, before `_STAGE`
    "left": "positives left",
    **dict(zip(LIST_METRICS, (f"recall@{TOP}", f"NDCG@{TOP}", f"MRR@{TOP}"), strict=True)),
}


def write(found: Judged, folder: Path) -> str:
    """Write evaluation.json, evaluation.md and evaluation.png; -> the tables as text."""
    what = (tables(found), figure(found), found.metrics, found.intervals)
    return write_files(folder, *what, {"notes": found.notes})


def tables(found: Judged) -> str:
    """Markdown whose columns also line up as plain text."""
    count = found.metrics
    parts = [
        f"Release {count['release']} over {count['items']:,} items, on {count['table_rows']:,} "
        "held-out rows; in brackets the 95 % intervals, by bootstrap over users",
        f"Lists of {count['users']:,} users, with {count['positives']:,} positives\n\n"
        f"{_lists(found)}",
    ]
    if "auc" in count:
        parts.append(f"The ranker on {count['scored_rows']:,} rows with labels\n\n{_rows(found)}")
    if found.notes:
        parts.append("\n".join(f"- {note}" for note in found.notes))
    return "\n\n".join(parts) + "\n"


def _lists(found: Judged) -> str:
    rows = [
        [stage, f"{found.metrics[f'size_{stage}']:,}"]
        + [_bracketed(found, f"{measure}_{stage}", 3) for measure in MEASURES]
        for stage in LISTED
        if f"left_{stage}" in found.metrics
    ]
    return aligned(["after", "items", *MEASURES.values()], rows)


def _rows(found: Judged) -> str:
    rows = [
        [name.replace("_", " "), _bracketed(found, name, 4)]
        for name in ROW_METRICS
        if name in found.metrics
    ]
    return aligned(["metric", "ranker"], rows)


def _bracketed(found: Judged, name: str, digits: int) -> str:
    low, high = found.intervals[name]
    value = number(found.metrics[name], digits)
    return f"{value} ({number(low, digits)} to {number(high, digits)})"


def figure(found: Judged) -> Figure:
    """The share of positives left, and the metrics of the ten best, after each stage."""
    drawn = Figure(figsize=(11, 3), layout="constrained")
    stages = [stage for stage in LISTED if f"left_{stage}" in found.metrics]
    panels = drawn.subplots(1, len(MEASURES), sharey=True)
    for axes, (measure, title) in zip(panels, MEASURES.items(), strict=True):
        values = [found.metrics[f"{measure}_{stage}"] for stage in stages]
        bounds = [found.intervals[f"{measure}_{stage}"] for stage in stages]
        errors = [
            [max(0.0, value - low) for value, (low, _) in zip(values, bounds, strict=True)],
            [max(0.0, high - value) for value, (_, high) in zip(values, bounds, strict=True)],
        ]
        colors = [GREY if stage == "popularity" else BLUE for stage in stages]
        axes.barh(stages, values, xerr=errors, color=colors, ecolor=INK, capsize=3, height=0.68)
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", nbins=4)
        axes.set_title(title, loc="left", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    panels[0].invert_yaxis()
    return drawn
