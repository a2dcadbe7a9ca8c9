"""What a training tells of itself: a sentence and a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from cascade.spec import Sizes

PLACES = {  # in which a taught model keeps the ten best of its teacher
    "candidates": f"ten best of the ranker's among {Sizes().candidates} candidates",
    "catalogue": f"ten best of the ranker's in the catalogue among {Sizes().candidates}",
}


def taught(name: str, by: str, before: float, after: float) -> str:
    """What distillation added, in words."""
    kept = f"keeps {after:.4f} of the {PLACES[by]}"
    if before == 1:
        return f"{name}: by labels alone it {kept}, and nothing was left to learn"
    if after > before:
        return f"{name}: taught, it {kept}; by labels alone it kept {before:.4f}"
    return (
        f"WARNING: {name}: distillation made nothing better, so the weights that were trained on "
        f"labels are kept: it {kept}"
    )


def draw(path: Path, name: str, history: list[dict[str, float]]) -> None:
    """Training curves: one panel per measure over the training steps."""
    measures = [key for key in history[-1] if key not in ("step", "objective")]
    width = 4 * len(measures)
    figure = Figure(figsize=(width, 3))
    figure.subplots_adjust(left=0.6 / width, right=1 - 0.2 / width, bottom=0.17, top=0.8)
    figure.suptitle(name)
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        points = [(record["step"], record[measure]) for record in history if measure in record]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3)
        if len(points) == 1:  # a curve of one validation is its number
            step, value = points[0]
            axes.annotate(f"{value:.4g}", (step, value), (6, 6), textcoords="offset points")
        axes.set_title(measure.replace("_", " "), fontsize=10)
        axes.set_xlabel("batches")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
