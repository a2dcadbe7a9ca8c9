"""The picture of what was measured on the way to an index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from cascade import index
from export.artifacts import retrieval


def measured(folder: Path, items: int, k: int) -> tuple[index.Index, list[index.Candidate]]:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((items, 8)).astype(np.float32)
    queries = random.standard_normal((16, 8)).astype(np.float32)
    built, found = index.auto(vectors, queries, k, 0.9, kinds=("flat", "sq8", "ivfsq8"))
    index.save_frontier(folder, built, 0.9, found)
    return built, found


def test_picture_shows_every_point_and_marks_the_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, found = measured(tmp_path, 1500, 20)
    marked: list[tuple[float, float]] = []
    lines, hollow = [0], [0]
    plot, scatter = Axes.plot, Axes.scatter

    def counted_plot(self: Axes, x, y, *rest, **named):  # type: ignore[no-untyped-def]
        if "k*" in rest:
            marked.append((x, y))
        else:
            lines[0] += len(x)
        return plot(self, x, y, *rest, **named)

    def counted_scatter(self: Axes, x, y, **named):  # type: ignore[no-untyped-def]
        hollow[0] += len(x)
        return scatter(self, x, y, **named)

    monkeypatch.setattr(Axes, "plot", counted_plot)
    monkeypatch.setattr(Axes, "scatter", counted_scatter)
    path = retrieval.draw_frontier(tmp_path)
    assert marked == [(built.facts.latency_us, built.facts.recall)]
    assert hollow[0] == sum(1 for c in found if c.note)
    assert lines[0] == sum(1 for c in found if not c.note)
    assert imread(path).std() > 0  # something was painted


def test_catalogue_without_a_choice_is_drawn_too(tmp_path: Path) -> None:
    measured(tmp_path, 30, 30)
    assert retrieval.draw_frontier(tmp_path) == tmp_path / "frontier.png"
    assert imread(tmp_path / "frontier.png").shape[2] in (3, 4)
