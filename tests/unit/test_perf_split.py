"""Derived graphs compared with the flat ones and with a model's own methods, on tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.foreign import onnx_model
from perf import split
from perf.harness.record import read


def test_all_answer_alike_and_the_work_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(split, "MODELS", dict.fromkeys(split.MODELS, "tiny"))
    monkeypatch.setattr(split, "WINDOW_S", 0.01)
    monkeypatch.setattr(onnx_model, "BATCHES", (1, 3))
    results = tmp_path / "results.jsonl"
    options = ("--items", 1200, "--users", 2, "--rounds", 1, "--results", results)
    split.main([*map(str, options)])
    (line,) = read(results)
    assert line["same_answers"] > 0.9
    assert min(line[f"{name}_per_s"] for name in split.CONTENDERS) > 0
    # Bottom 13-8-4, 27 vectors of 4, top 355-8-1: the user, and of 27 x 27 dots those of both.
    flat = 13 * 8 + 8 * 4 + 27 * 27 * 4 + 355 * 8 + 8
    assert {work["flat"] for work in line["work"].values()} == {flat}
    assert line["flat_multiply_adds"] == flat * 1200
    assert line["split_multiply_adds"] < line["flat_multiply_adds"] / 3
    printed = capsys.readouterr().out
    assert "split_vs_methods" in printed
