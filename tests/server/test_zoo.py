"""`make zoo`, for a moment and for a few models: trained, exported, timed, served, reported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from perf.harness.record import ROOT
from perf.zoo.claims import PARITY

MODELS = ("two_tower", "mf", "logistic", "dcnv2", "shared_bottom")


def test_a_quick_run_trains_serves_and_reports(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "perf.zoo", "--quick", "--out", str(tmp_path)]
    command += ["--data-sets", "synthetic", "tasks", "--models", *MODELS]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["models"] == len(MODELS)
    assert {*found["served"]} == {*MODELS}
    assert found["parity_max_abs"] <= PARITY
    planted, tasks = found["results"]["synthetic"], found["results"]["tasks"]
    assert 0.3 < planted["dcnv2"]["auc"] < planted["dcnv2"]["best_auc"]
    assert planted["dcnv2"]["split_vs_flat"] > 0
    alone = {name for name in tasks if name.endswith("alone")}
    assert alone == {f"shared_bottom, {task} alone" for task in ("click", "engagement", "revenue")}
    page = (tmp_path / "models.md").read_text()
    assert all(f"| `{model}:" in page for model in MODELS)
    assert (tmp_path / "models.png").stat().st_size > 1000
