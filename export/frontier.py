"""What `--index auto` measured, drawn: recall against the time of one query."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

from cascade.index import FRONTIER

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def draw(folder: Path) -> None:
    """folder/frontier.json -> folder/frontier.png."""
    found = json.loads((folder / FRONTIER).read_text())
    points = [c for c in found["candidates"] if c["items"] == found["items"]]
    figure, axes = plt.subplots(figsize=(8, 5))
    for kind in dict.fromkeys(c["kind"] for c in points):
        line = sorted((c["latency_us"], c["recall"]) for c in points if c["kind"] == kind)
        axes.plot(*zip(*line, strict=True), marker="o", label=kind)
    for c in points:
        if c["chosen"]:
            axes.plot(c["latency_us"], c["recall"], "k*", markersize=16, label="chosen")
    axes.axhline(found["target"], color="gray", linestyle=":")
    axes.set(
        xscale="log",
        xlabel="one query on one thread, µs",
        ylabel=f"recall at {found['k']}",
        title=f"{found['items']:,} items",
    )
    axes.legend()
    figure.tight_layout()
    figure.savefig(folder / "frontier.png", dpi=120)
    plt.close(figure)
