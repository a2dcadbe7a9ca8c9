"""The waterfall as a picture: one bar per batch, its pieces in the order of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from perf.plots import STYLE, write
from perf.waterfall_trace import HOP, last

# Colours say whose time it is, not which piece: neighbours of one colour have a white edge.
OWNERS = {
    "client": "#6c7a89",
    "gRPC and network": "#b0b7bd",
    "Triton": "#76b900",
    "hop to a stage's process": "#c0392b",
    "Python adapter": "#e08e0b",
    "retrieve": "#1a5276",
    "prerank": "#2e86c1",
    "rank": "#8e5ea2",
}
LABELLED_SHARE = 0.02  # of the bar; a narrower piece has no room for its name


def owner(name: str) -> str:
    """Whose time an interval is."""
    first, kind = name.split(".")[0], last(name)
    if kind in HOP:
        return "hop to a stage's process"
    if kind in ("read", "answer"):
        return "Python adapter"
    if kind in ("encode", "tower", "search"):
        return "retrieve"
    known = {"client": "client", "grpc": "gRPC and network", "prerank": "prerank", "rank": "rank"}
    return "Triton" if kind == "queue" else known.get(first, "Triton")


def draw(bars: Mapping[str, Mapping[str, float]], title: str, path: Path) -> None:
    """Write the picture.

    Args:
        bars: by title, microseconds by interval.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 1.0 + 1.9 * len(bars)), layout="constrained")
        axes = figure.subplots(len(bars), 1, squeeze=False)[:, 0]
        for place, (name, parts) in zip(axes, bars.items(), strict=True):
            _bar(place, parts)
            place.set_title(f"{name}: {sum(parts.values()) / 1000:.2f} ms", fontsize=9)
        axes[-1].set_xlabel("microseconds since the client asked")
        used = [owner(part) for parts in bars.values() for part in parts]
        figure.legend(
            handles=[Patch(color=c, label=o) for o, c in OWNERS.items() if o in used],
            loc="outside lower center",
            ncols=4,
            fontsize=8,
        )
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
        write(figure, path)


def _bar(axes: Axes, parts: Mapping[str, float]) -> None:
    start_us, whole_us = 0.0, sum(parts.values())
    for name, value in parts.items():
        style: Any = {"color": OWNERS[owner(name)], "edgecolor": "white", "linewidth": 0.6}
        axes.barh(0, value, left=start_us, height=0.6, **style)
        if value >= LABELLED_SHARE * whole_us:
            _label(axes, start_us + value / 2, name.split("."), value, value / whole_us > 0.06)
        start_us += value
    axes.set(xlim=(0, whole_us), ylim=(-0.35, 0.35), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)


def _label(axes: Axes, x: float, words: Sequence[str], value: float, wide: bool) -> None:
    text = "\n".join([*words, f"{value:.0f}"]) if wide else f"{' '.join(words)} {value:.0f}"
    style: Any = {"ha": "center", "va": "center", "fontsize": 7, "color": "white"}
    axes.text(x, 0, text, rotation=0 if wide else 90, **style)
