"""The evaluation as tables, a plot and JSON. Every figure comes from the metrics by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate

from cascade.evaluation.stagewise import CURVE, TOP, Metrics

matplotlib.use("Agg")

ROW_METRICS = ("auc", "log_loss", "normalized_entropy", "calibration", "accuracy")
PRERANKERS = {  # the metric's name -> what the tables call it
    "kept_by_prerank": "served preranker",
    "kept_by_prerank_labels": "same model, not distilled",
    "kept_by_prerank_baseline": "baseline, distilled",
    "kept_by_baseline": "baseline, on labels",
    "kept_by_retrieve_order": "none: retriever's order",
}
INK, GREY, BLUE, ORANGE = "#222222", "#9aa0a6", "#2f6db5", "#d9822b"


def write(found: Metrics, folder: Path) -> str:
    """Write evaluation.json, evaluation.md and evaluation.png; -> the tables as text."""
    folder.mkdir(parents=True, exist_ok=True)
    text = tables(found)
    plain = {name: None if value != value else value for name, value in found.items()}
    (folder / "evaluation.json").write_text(json.dumps(plain, indent=1) + "\n")
    (folder / "evaluation.md").write_text(text)
    figure(found).savefig(folder / "evaluation.png", dpi=150)
    return text


def tables(found: Metrics) -> str:
    """Markdown whose columns also line up as plain text."""
    parts = []
    if "auc" in found:
        parts.append(f"Click prediction on {found['test_rows']:,} test rows\n\n{_models(found)}")
    parts.append(
        f"The cascade over {found['items']:,} items: the ranker's top {TOP} for {found['users']:,} "
        f"users, and {found['positives']:,} held-out positives\n\n{_stages(found)}"
    )
    parts.append(f"Prerankers, on the same retrieved candidates\n\n{_prerankers(found)}")
    return "\n\n".join(parts) + "\n"


def _models(found: Metrics) -> str:
    rows = []
    names = (("", "ranker", ""), ("", "baseline", "_baseline"), ("bayes_", "best possible", ""))
    for prefix, name, suffix in names:
        if f"{prefix}auc{suffix}" in found:
            values = [found[f"{prefix}{metric}{suffix}"] for metric in ROW_METRICS]
            rows.append([name, *(_number(value, 4) for value in values)])
    return _table(["model", *(metric.replace("_", " ") for metric in ROW_METRICS)], rows)


def _stages(found: Metrics) -> str:
    kept = {
        "popularity": (None, None),
        "retrieve": ("recall_retrieve", None),
        "prerank": ("kept_after_prerank", "kept_by_prerank"),
        "rank": ("kept_by_cascade", "kept_by_rank"),
    }
    measures = [f"{m}_at_{k}" for m, k in (("recall", 10), ("ndcg", 10), ("map", 10))]
    measures += ["recall_at_100", "recall_at_1000"]
    rows = []
    for stage, shares in kept.items():
        values = [found.get(name) if name else None for name in shares]
        values += [found.get(f"{measure}_{stage}") for measure in measures]
        rows.append([stage, *(_number(value, 3) for value in values)])
    headers = [measure.replace("_at_", "@").replace("map", "MAP") for measure in measures]
    headers = [header.replace("ndcg", "NDCG") for header in headers]
    return _table(["after", f"of top {TOP}", "of what came in", *headers], rows)


def _prerankers(found: Metrics) -> str:
    rows = [[label, _number(found[name], 3)] for name, label in PRERANKERS.items() if name in found]
    return _table(["preranker", f"keeps of the ranker's top {TOP}"], rows)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Names to the left, numbers, which are formatted already, to the right."""
    aligned = ("left", *["right"] * (len(headers) - 1))
    return str(tabulate(rows, headers, "pipe", colalign=aligned, disable_numparse=True))


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def figure(found: Metrics) -> Figure:
    """Left: what is left of the ranker's top 10, stage by stage, and by preranker. Right: how
    soon the retriever finds held-out positives, beside popularity."""
    drawn = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = drawn.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_shares(left, found)
    _draw_recall(right, found)
    return drawn


def _draw_shares(axes: Axes, found: Metrics) -> None:
    stages = {
        "recall_retrieve": "after retrieve",
        "kept_after_prerank": "after prerank",
        "kept_by_cascade": "in the answer",
    }
    bars: list[tuple[str, float, str]] = [(stages[n], found[n], BLUE) for n in stages]
    for name, label in PRERANKERS.items():
        if name in found:
            bars.append((label, found[name], ORANGE if name == "kept_by_prerank" else GREY))
    places = [i + (0.9 if i >= len(stages) else 0) for i in range(len(bars))]
    axes.barh(places, [bar[1] for bar in bars], color=[bar[2] for bar in bars], height=0.68)
    for place, (_, value, _) in zip(places, bars, strict=True):
        text = _number(value, 3)
        axes.text(value + 0.012 if value == value else 0.012, place, text, va="center", color=INK)
    axes.set_yticks(places, [bar[0] for bar in bars])
    axes.invert_yaxis()
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    for place, text in (
        (places[0] - 0.72, f"of the ranker's top {TOP} over the whole catalogue"),
        (places[len(stages)] - 0.72, f"of its top {TOP} among the retrieved, by preranker"),
    ):
        axes.text(0, place, text, fontsize=9, style="italic", color=INK, va="center", bbox=paper)
    axes.set_ylim(places[-1] + 0.55, places[0] - 1.05)
    axes.set_xlim(0, 1.12)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_title(f"Share kept ({found['users']:,} users)", loc="left", fontsize=11)
    _tidy(axes, "x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _draw_recall(axes: Axes, found: Metrics) -> None:
    curves: Mapping[str, Any] = {
        "retrieve": {"color": BLUE, "marker": "o"},
        "popularity": {"color": GREY, "marker": "s"},
    }
    for stage, style in curves.items():
        points = [(k, found[f"recall_at_{k}_{stage}"]) for k in CURVE]
        axes.plot(*zip(*points, strict=True), label=stage, markersize=4.5, linewidth=1.8, **style)
    axes.set_xscale("log")
    axes.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("K")
    axes.set_title(
        f"recall@K of the held-out item ({found['positives']:,} positives)", loc="left", fontsize=11
    )
    axes.legend(frameon=False, loc="upper left")
    _tidy(axes, "both")


def _tidy(axes: Axes, grid: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color="#e6e6e6", linewidth=0.8)
