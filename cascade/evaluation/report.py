"""The evaluation as tables, a plot and JSON. Every figure comes from the metrics by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate

from cascade.evaluation.metrics import Metrics
from cascade.evaluation.stagewise import CURVE, TOP

ROW_METRICS = ("auc", "log_loss", "normalized_entropy", "calibration", "accuracy")
STAGES = {
    "recall_retrieve": "after retrieve",
    "kept_after_prerank": "after prerank",
    "kept_by_cascade": "in the answer",
}
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
    return (
        f"Click prediction on {_rows(found)}\n\n{_models(found)}\n\n"
        f"The cascade over {found['items']:,} items: the ranker's top {TOP} for {found['users']:,} "
        f"users, and {found['positives']:,} held-out positives\n\n{_stages(found)}\n\n"
        f"Prerankers, on the same retrieved candidates\n\n{_prerankers(found)}\n"
    )


def _rows(found: Metrics) -> str:
    """What the models of the first table were tested on."""
    rows, sampled = f"{found['test_rows']:,} test rows", found.get("test_negatives_sampled")
    if sampled is not None:
        positives = "the log has positives only, and these figures depend on how they were drawn"
        return f"{rows}, of which {sampled:,} are sampled negatives: {positives}"
    if found["test_rate"] in (0, 1):
        return f"{rows}, all of one label: what needs both labels is left open"
    return rows


def _models(found: Metrics) -> str:
    rows = []
    for name, metric in {
        "ranker": "{}",
        "baseline": "{}_baseline",
        "best possible": "bayes_{}",
    }.items():
        if metric.format("auc") in found:
            values = [found[metric.format(measure)] for measure in ROW_METRICS]
            rows.append([name, *(number(value, 4) for value in values)])
    return aligned(["model", *(measure.replace("_", " ") for measure in ROW_METRICS)], rows)


def _stages(found: Metrics) -> str:
    kept = {
        "popularity": ("", ""),
        "retrieve": ("recall_retrieve", ""),
        "prerank": ("kept_after_prerank", "kept_by_prerank"),
        "rank": ("kept_by_cascade", "kept_by_rank"),
    }
    measures = {
        "recall_at_10": "recall@10",
        "ndcg_at_10": "NDCG@10",
        "map_at_10": "MAP@10",
        "recall_at_100": "recall@100",
        "recall_at_1000": "recall@1000",
    }
    rows = []
    for stage, shares in kept.items():
        names = (*shares, *(f"{measure}_{stage}" for measure in measures))
        rows.append([stage, *(number(found.get(name), 3) for name in names)])
    return aligned(["after", f"of top {TOP}", "of what came in", *measures.values()], rows)


def _prerankers(found: Metrics) -> str:
    rows = [[label, number(found[name], 3)] for name, label in PRERANKERS.items() if name in found]
    return aligned(["preranker", f"keeps of the ranker's top {TOP}"], rows)


def aligned(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Names to the left, numbers, which are formatted already, to the right."""
    sides = ("left", *["right"] * (len(headers) - 1))
    return str(tabulate(rows, headers, "pipe", colalign=sides, disable_numparse=True))


def number(value: float | None, digits: int) -> str:
    """A dash where there is none, or NaN."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def figure(found: Metrics) -> Figure:
    """Left: what is left of the ranker's top 10, stage by stage, and by preranker. Right: how
    soon the retriever finds held-out positives, beside popularity."""
    drawn = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = drawn.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_shares(left, found)
    _draw_recall(right, found)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(axis="x" if axes is left else "both", color="#e6e6e6", linewidth=0.8)
    return drawn


def _draw_shares(axes: Axes, found: Metrics) -> None:
    prerankers = {name: label for name, label in PRERANKERS.items() if name in found}
    names = [*STAGES, *prerankers]
    grey = len(prerankers) - ("kept_by_prerank" in found)
    colors = [BLUE] * len(STAGES) + [ORANGE] * (len(prerankers) - grey) + [GREY] * grey
    places = [i + (0.9 if i >= len(STAGES) else 0) for i in range(len(names))]
    values = [found[name] for name in names]
    bars = axes.barh(places, values, color=colors, height=0.68)
    axes.bar_label(bars, [number(value, 3) for value in values], padding=3, color=INK)
    axes.set_yticks(places, [*STAGES.values(), *prerankers.values()])
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    for place, text in (
        (places[0], f"of the ranker's top {TOP} over the whole catalogue"),
        (places[len(STAGES)], f"of its top {TOP} among the retrieved, by preranker"),
    ):
        style: dict[str, Any] = {"fontsize": 9, "style": "italic", "color": INK, "va": "center"}
        axes.text(0, place - 0.72, text, bbox=paper, **style)
    axes.set_ylim(places[-1] + 0.55, places[0] - 1.05)
    axes.set_xlim(0, 1.12)
    axes.set_title(f"Share kept ({found['users']:,} users)", loc="left", fontsize=11)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _draw_recall(axes: Axes, found: Metrics) -> None:
    curves: Mapping[str, Any] = {
        "retrieve": {"color": BLUE, "marker": "o"},
        "popularity": {"color": GREY, "marker": "s"},
    }
    for stage, style in curves.items():
        recalls = [found[f"recall_at_{k}_{stage}"] for k in CURVE]
        axes.plot(CURVE, recalls, label=stage, markersize=4.5, linewidth=1.8, **style)
    axes.set_xscale("log")
    axes.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("K")
    title = f"recall@K of the held-out item ({found['positives']:,} positives)"
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend(frameon=False, loc="upper left")
