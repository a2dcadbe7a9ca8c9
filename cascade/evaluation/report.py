"""The evaluation as tables, a plot and JSON. Every figure comes from the metrics by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate

from cascade.evaluation.evaluate import Evaluated
from cascade.evaluation.metrics import Metrics
from cascade.evaluation.stagewise import CURVE, TOP
from cascade.spec import STAGES as CASCADE

ROW_METRICS = ("auc", "log_loss", "normalized_entropy", "calibration", "accuracy")
TASK_METRICS = ("auc", "log_loss", "normalized_entropy", "calibration", "mean_squared_error")
ROWS = "test_rows_"  # before the name of a task
MODELS = {  # the pattern of the metric's name, by what the tables call the model
    "ranker": "{}",
    "preranker": "{}_prerank",
    "baseline": "{}_baseline",
    "logistic regression": "{}_logistic_regression",
    "LightGBM": "{}_lightgbm",
    "best possible": "bayes_{}",
}
BASELINES = {
    "popularity": "popularity",
    "recent": "recent popularity",
    "neighbours": "item neighbours",
    "ease": "EASE",
}
WITH_SEEN = {"with_seen": "rank, seen not left out"}
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


def write(found: Evaluated, folder: Path) -> str:
    """Write evaluation.json, evaluation.md and evaluation.png; -> the tables as text."""
    more = {
        "reliability": found.reliability,
        "notes": found.notes,
        "verdict": found.verdict.content(),
        "warnings": [*found.verdict.warnings],
    }
    return write_files(folder, tables(found), figure(found), found.metrics, found.intervals, more)


def write_files(
    folder: Path,
    text: str,
    drawn: Figure,
    metrics: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    more: Mapping[str, Any],
) -> str:
    """Write the three files of an evaluation, NaN as null in the JSON; -> the text."""
    folder.mkdir(parents=True, exist_ok=True)
    found = content(metrics, intervals, more)
    (folder / "evaluation.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "evaluation.md").write_text(text)
    drawn.savefig(folder / "evaluation.png", dpi=150)
    return text


def content(
    metrics: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Figures as JSON, NaN as null."""
    return {
        **{name: _plain(value) for name, value in metrics.items()},
        "intervals": {name: [*map(_plain, ends)] for name, ends in intervals.items()},
        **more,
    }


def _plain(value: float) -> float | None:
    return None if value != value else value


def tables(found: Evaluated) -> str:
    """Markdown whose columns also line up as plain text."""
    count = found.metrics
    seen = "; what a user had seen is in no list" if "ndcg_at_10_with_seen" in count else ""
    parts = [
        f"Click prediction on {_rows(count)}; in brackets the 95 % intervals, by bootstrap over "
        "users",
        _models(found),
        *_tasks(found.metrics),
        f"The cascade over {count['items']:,} items: the ranker's top {TOP} for {count['users']:,} "
        f"queries, and {count['positives']:,} held-out positives of {count['distinct_users']:,} "
        f"users{seen}",
        _stages(found),
        "Prerankers, on the same retrieved candidates",
        _prerankers(found),
        "\n".join(f"- {note}" for note in found.notes),
        "\n".join(["Verdict\n", *(f"- {line}" for line in found.verdict.lines())]),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _rows(found: Metrics) -> str:
    """What the models of the first table were tested on."""
    rows, sampled = f"{found['test_rows']:,} test rows", found.get("test_negatives_sampled")
    if "test_users" in found:
        rows += f" of {found['test_users']:,} users"
    if sampled is not None:
        positives = "the log has positives only, and these figures depend on how they were drawn"
        return f"{rows}, of which {sampled:,} are sampled negatives: {positives}"
    if found["test_rate"] in (0, 1):
        return f"{rows}, all of one label: what needs both labels is left open"
    return rows


def _models(found: Evaluated) -> str:
    measures = [*ROW_METRICS]
    if "gauc" in found.metrics:
        measures.insert(1, "gauc")
    rows = []
    for name, metric in MODELS.items():
        if metric.format("auc") in found.metrics:
            rows.append([name, *(_bracketed(found, metric.format(of), 4) for of in measures)])
    return aligned(["model", *map(_title, measures)], rows)


def _tasks(found: Metrics) -> list[str]:
    """Each task of several, by the models that have it, on the rows that know it."""
    rows = []
    for task in (name.removeprefix(ROWS) for name in found if name.startswith(ROWS)):
        known = [f"{found[ROWS + task]:,}", number(found[f"test_rate_{task}"], 4)]
        for model, pattern in MODELS.items():
            names = [pattern.format(f"{of}_{task}") for of in TASK_METRICS]
            if names[0] in found:
                rows.append([task, model, *known, *(number(found.get(n), 4) for n in names)])
    heads = ["task", "model", "rows", "mean", *map(_title, TASK_METRICS)]
    title = "Each task, on the rows that know it; of an amount the AUC is that of the rows above 0"
    return [title, aligned(heads, rows)] if rows else []


def _title(metric: str) -> str:
    known = {"auc": "AUC", "gauc": "GAUC", "normalized_entropy": "NE"}
    return known.get(metric, metric.replace("_", " "))


def _bracketed(found: Evaluated, name: str, digits: int) -> str:
    value = number(found.metrics.get(name), digits)
    low, high = found.intervals.get(name, (float("nan"),) * 2)
    return value if low != low else f"{value} ({number(low, digits)}–{number(high, digits)})"


def _stages(found: Evaluated) -> str:
    kept = {
        **{name: ("", "") for name in BASELINES},
        "retrieve": ("recall_retrieve", ""),
        "prerank": ("kept_after_prerank", "kept_by_prerank"),
        "rank": ("kept_by_cascade", "kept_by_rank"),
        "with_seen": ("kept_with_seen", ""),
    }
    measures = {
        "recall_at_10": "recall@10",
        "ndcg_at_10": "NDCG@10",
        "map_at_10": "MAP@10",
        "mrr_at_10": "MRR@10",
        "recall_at_100": "recall@100",
        "recall_at_1000": "recall@1000",
    }
    labels = {**BASELINES, **{stage: stage for stage in CASCADE}, **WITH_SEEN}
    rows = []
    for stage, shares in kept.items():
        if f"ndcg_at_10_{stage}" in found.metrics:
            cells = [number(found.metrics.get(name), 3) for name in shares]
            for measure in measures:
                name = f"{measure}_{stage}"
                one = _bracketed(found, name, 3) if measure == "ndcg_at_10" else None
                cells.append(one or number(found.metrics.get(name), 3))
            rows.append([labels[stage], *cells])
    return aligned(["after", f"of top {TOP}", "of what came in", *measures.values()], rows)


def _prerankers(found: Evaluated) -> str:
    survivors = "recall of survivors"
    recalled = "recall_of_survivors_prerank" in found.metrics
    rows = []
    for name, label in PRERANKERS.items():
        if name in found.metrics:
            of = name.replace("kept_by_", "recall_of_survivors_")
            cells = [_bracketed(found, one, 3) for one in ([name, of] if recalled else [name])]
            rows.append([label, *cells])
    headers = ["preranker", f"keeps of the ranker's top {TOP}"]
    return aligned([*headers, survivors] if recalled else headers, rows)


def aligned(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Names to the left, numbers, which are formatted already, to the right."""
    sides = ("left", *["right"] * (len(headers) - 1))
    return str(tabulate(rows, headers, "pipe", colalign=sides, disable_numparse=True))


def number(value: float | None, digits: int) -> str:
    """A dash where there is none, or NaN."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def figure(found: Evaluated) -> Figure:
    """Left: what is left of the ranker's top 10, stage by stage, and by preranker. Middle: how
    soon the retriever finds held-out positives, beside the baselines. Right: reliability."""
    drawn = Figure(figsize=(15, 4.4), layout="constrained")
    left, middle, right = drawn.subplots(1, 3, width_ratios=(1.15, 1, 1))
    _draw_shares(left, found.metrics)
    _draw_recall(middle, found.metrics)
    _draw_reliability(right, found)
    for axes in (left, middle, right):
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
    axes.set_title(f"Share kept ({found['users']:,} queries)", loc="left", fontsize=11)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _draw_recall(axes: Axes, found: Metrics) -> None:
    curves: Mapping[str, Any] = {
        "retrieve": {"color": BLUE, "marker": "o"},
        "popularity": {"color": GREY, "marker": "s"},
        "neighbours": {"color": GREY, "marker": "^"},
        "ease": {"color": ORANGE, "marker": "D"},
    }
    for stage, style in curves.items():
        if f"recall_at_{TOP}_{stage}" not in found:
            continue
        recalls = [found[f"recall_at_{k}_{stage}"] for k in CURVE]
        label = BASELINES.get(stage, stage)
        axes.plot(CURVE, recalls, label=label, markersize=4.5, linewidth=1.8, **style)
    axes.set_xscale("log")
    axes.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("K")
    title = f"recall@K of the held-out item ({found['positives']:,} positives)"
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend(frameon=False, loc="upper left")


def _draw_reliability(axes: Axes, found: Evaluated) -> None:
    """What was predicted, and how often it came, of rows with like predictions."""
    styles: Mapping[str, Any] = {
        "ranker": {"color": BLUE, "marker": "o"},
        "preranker": {"color": ORANGE, "marker": "s"},
        "LightGBM": {"color": GREY, "marker": "^"},
    }
    highest = 0.0
    for name, style in styles.items():
        if (suffix := MODELS[name].format("")) in found.reliability:
            predicted, came = found.reliability[suffix]
            highest = max(highest, *predicted, *came)
            axes.plot(predicted, came, label=name, markersize=4.5, linewidth=1.2, **style)
    axes.plot([0, highest], [0, highest], color=INK, linewidth=0.8, linestyle="dashed")
    axes.set_xlabel("predicted")
    axes.set_ylabel("share of positives")
    axes.set_title("Reliability, by tenths of the rows", loc="left", fontsize=11)
    axes.legend(frameon=False, loc="upper left")
