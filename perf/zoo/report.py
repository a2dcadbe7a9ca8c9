"""The page of the models: tables, and quality against time as a picture."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from cascade.models import MODELS
from perf.harness.table import number, picture, table
from perf.zoo.sets import FRONT, retrieves

COLUMNS = {  # of the tables: key, how it is written
    "auc": ("AUC", "{:.4f}"),
    "normalized_entropy": ("NE", "{:.4f}"),
    "calibration": ("calibration", "{:.3f}"),
    "auc_click": ("AUC click", "{:.4f}"),
    "auc_engagement": ("AUC engagement", "{:.4f}"),
    "auc_revenue": ("AUC revenue", "{:.4f}"),
    "recall_at_100": ("recall@100", "{:.4f}"),
    "ndcg_at_10": ("NDCG@10", "{:.4f}"),
    "ndcg_at_10_beside": ("NDCG@10 + two-tower", "{:.4f}"),
    "parameters": ("parameters", "{:,}"),
    "rows_per_s": ("rows/s", "{:,.0f}"),
    "split_us": ("split µs", "{:.0f}"),
    "flat_us": ("flat µs", "{:.0f}"),
    "split_vs_flat": ("split/flat", "{:.2f}"),
    "bytes_per_item": ("bytes/item", "{:.0f}"),
}
HEAD = """\
# Models

`make zoo` writes this page: every registered model, trained on the same rows with the same budget
and one seed, judged on the test rows, exported, and served by tritonserver. The figures compare
models at these budgets; they are not the best that a model can do. [add-a-model.md](add-a-model.md)
says how a model is added.

A preset is chosen as `model:preset` in a recipe: `--recipe rank=dcnv2:paper`."""
HOW = """\
AUC, NE (normalized entropy) and calibration are of the test rows. recall@100 and NDCG@10 are of
test positives, without what their users had seen: of the whole catalogue for retrievers, of the
two-tower's 200 best for rankers, in the ranker's order, and in that of the two-tower's score plus
the ranker's logit times a weight that validation lists choose, as rankers of a log of choices are
served. Rows/s are training rows a second of one core. Split and flat are
microseconds of one core for the rank stage of one user and 200 candidates, measured in turn; bytes
are of an item's state."""


def text(summary: Mapping[str, Any], image: str = "models.png") -> str:
    """The page; `image` is where the picture lies beside it."""
    parts = [HEAD, _models(), "## Figures", HOW]
    for name, figures in summary["results"].items():
        parts += [f"### {name}", *_tables(figures)]
    parts += [f"![Quality against time]({image})", "## Claims", _claims(summary)]
    if slow := summary["slow_splits"]:
        lines = "\n".join(f"- `{name}`: {kept}" for name, kept in slow.items())
        parts.append(
            "Where the split form is less than 1.5 times as fast as the flat one, this is computed "
            f"per candidate; `--flat` exports the flat form:\n\n{lines}"
        )
    return "\n\n".join(parts) + "\n"


def _models() -> str:
    rows = []
    for name, entry in MODELS.items():
        if name != "blend":
            first = (entry.model.__module__, entry.model.__name__)
            needs = ", ".join(entry.model.needs) or "–"
            rows.append([f"`{name}`", _about(*first), needs, ", ".join(entry.presets)])
    return table(["model", "what it is", "needs", "presets"], rows)


def _about(module: str, name: str) -> str:
    """The first sentence of a model's module."""
    said = (sys.modules[module].__doc__ or name).strip().split("\n\n")[0]
    return " ".join(said.split()).rstrip(".")


def _tables(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One table of the retrievers, one of the rankers."""
    found = []
    for retrievers in (True, False):
        some = {n: f for n, f in figures.items() if retrieves(n) == retrievers}
        keys = [key for key in COLUMNS if any(f.get(key) is not None for f in some.values())]
        rows = [[_named(n, f["preset"]), *(_cell(f, key) for key in keys)] for n, f in some.items()]
        best = next((f["best_auc"] for f in some.values() if "best_auc" in f), None)
        if rows:
            found.append(table(["model", *(COLUMNS[key][0] for key in keys)], rows))
        first = figures.get(FRONT, {}).get("ndcg_at_10", 0.0)
        alone = [f["ndcg_at_10"] for f in some.values() if "ndcg_at_10_beside" in f]
        if alone and max(alone) < first:
            found.append(
                "**Alone, no ranker orders these lists as well as the two-tower that made them**, "
                f"whose NDCG@10 is {first:.4f}."
            )
        if best is not None:
            found.append(f"The best possible AUC is {best:.4f}.")
    return found


def _named(name: str, preset: str) -> str:
    """`model:preset`, and what alone it learnt."""
    model, comma, alone = name.partition(",")
    return f"`{model.partition(':')[0]}:{preset}`{comma}{alone}"


def _cell(figures: Mapping[str, Any], key: str) -> str:
    value = figures.get(key)
    return "–" if value is None or value != value else COLUMNS[key][1].format(value)


def _claims(summary: Mapping[str, Any]) -> str:
    rows = []
    for claim in summary["claims"]:
        target = f"{claim['relation']} {claim['target']:g}"
        figure = f"{claim['figure']:.2g}" if claim["figure"] < 1e-3 else number(claim["figure"])
        figure = f"{claim['figure']:.4f}" if 1e-3 <= abs(claim["figure"]) < 10 else figure
        holds = "yes" if claim["holds"] else "**no**"
        rows.append([claim["meaning"], claim["key"], target, figure, holds])
    return table(["claim", "key", "target", "found", "holds"], rows)


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Quality of the rankers against the time of a request."""
    figures = summary["results"][summary["served_on"]]
    with picture(path, "Quality of a ranker against its time", (8.0, 5.0)) as axes:
        timed = {n: f for n, f in figures.items() if not retrieves(n) and "split_us" in f}
        axes.set_xscale("log")
        for found in timed.values():
            axes.scatter(found["split_us"], found["auc"], s=24, color="tab:blue")
        axes.figure.draw_without_rendering()  # type: ignore[union-attr]
        points = [(found["split_us"], found["auc"]) for found in timed.values()]
        taken = [Bbox([dot - 4, dot + 4]) for dot in axes.transData.transform(points)]
        for name, found in timed.items():
            taken.append(_label(axes, name, (found["split_us"], found["auc"]), taken))
        axes.set_xlabel("µs of one core for one user and 200 candidates, split form")
        axes.set_ylabel(f"AUC on {summary['served_on']}")


def _label(axes: Axes, name: str, point: tuple[float, float], taken: Sequence[Bbox]) -> Bbox:
    """Write a name beside its point, where it meets the fewest others and dots; -> its box."""
    found: list[tuple[int, int, Annotation, Bbox]] = []
    for y, (x, side) in product((5, -13, 15, -23), ((5, "left"), (-5, "right"), (0, "center"))):
        text = axes.annotate(name, point, (x, y), textcoords="offset points", ha=side)
        box = text.get_window_extent()
        found.append((box.count_overlaps(taken), len(found), text, box))
    _, _, best, box = min(found, key=lambda one: one[:2])
    for *_, text, _ in found:
        if text is not best:
            text.remove()
    return box
