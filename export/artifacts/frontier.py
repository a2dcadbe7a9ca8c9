"""Draws what `--index auto` measured: recall against the time of one query."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

from cascade.index import FRONTIER

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PLOT = "frontier.png"


def draw(folder: Path) -> Path:
    """folder/frontier.json -> folder/frontier.png; up and to the left is better.

    A line joins the settings of one kind over all items. A hollow mark is a kind that was dropped
    on a sample of the items; its time is that of the sample.
    """
    found = json.loads((folder / FRONTIER).read_text())
    figure, axes = plt.subplots(figsize=(8, 5))
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for candidate in found["candidates"]:
        by_kind.setdefault(candidate["kind"], []).append(candidate)
    for number, (kind, candidates) in enumerate(by_kind.items()):
        _draw_kind(axes, kind, candidates, f"C{number % 10}")
    for c in found["candidates"]:
        if c["chosen"]:
            axes.plot(c["latency_us"], c["recall"], "k*", markersize=14, label="chosen", zorder=3)
    axes.axhline(found["target"], color="gray", linestyle=":", label="target")
    if found["exact_us"]:
        axes.axvline(found["exact_us"], color="black", linestyle="--", label="exact search")
    axes.set(
        xscale="log",
        xlabel="one query on one thread, microseconds",
        ylabel=f"recall at {found['k']}",
        title=f"{found['items']:,} items; hollow: dropped on a sample",
    )
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(folder / PLOT, dpi=120)
    plt.close(figure)
    return folder / PLOT


def _draw_kind(axes: Any, kind: str, candidates: list[dict[str, Any]], colour: str) -> None:
    kept = sorted((c["latency_us"], c["recall"]) for c in candidates if not c["note"])
    dropped = [(c["latency_us"], c["recall"]) for c in candidates if c["note"]]
    if kept:
        axes.plot(*zip(*kept, strict=True), marker="o", color=colour, label=kind)
    if dropped:
        label = None if kept else kind
        axes.scatter(*zip(*dropped, strict=True), facecolors="none", edgecolors=colour, label=label)
