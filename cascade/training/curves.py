"""Training curves as a picture."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def draw(path: Path, name: str, history: list[dict[str, float]]) -> None:
    """One panel per measure over the training steps."""
    measures = [key for key in history[0] if key not in ("step", "objective")]
    figure, axes = pyplot.subplots(
        1, len(measures), figsize=(4 * len(measures), 3), layout="constrained", squeeze=False
    )
    for axis, measure in zip(axes[0], measures, strict=True):
        steps = [record["step"] for record in history]
        axis.plot(steps, [record[measure] for record in history], marker="o", markersize=3)
        axis.set_title(measure.replace("_", " "), fontsize=10)
        axis.set_xlabel("batches")
        axis.grid(alpha=0.3)
    figure.suptitle(name)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
