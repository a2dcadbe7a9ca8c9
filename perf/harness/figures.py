"""How the pictures of all programs look."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

SIZE = (8.0, 4.5)
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
}


@contextmanager
def picture(path: Path, title: str, size: tuple[float, float] = SIZE) -> Iterator[Axes]:
    """Axes to draw into; the picture is written at the end of the block."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title)
        yield axes
        for kind in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            kind(FuncFormatter(lambda value, _: f"{value:g}"))
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without the version of matplotlib in it, equal lines give an equal file.
        figure.savefig(path, dpi=120, metadata={"Software": None})
