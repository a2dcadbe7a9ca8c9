"""Exponents of known power laws, memory of known allocations, and what the sweeps leave."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from cascade.spec import STAGES
from perf.harness import commands
from perf.harness.artifacts import Artifacts
from perf.harness.in_process import COSTS, Setting, costs, open_pipeline
from perf.harness.measurement import Memory
from perf.harness.record import ROOT, read
from perf.scaling import Scaling, exponent, exponents, write
from perf.scaling import report as scaling_report


@pytest.mark.parametrize("power", [0, 0.5, 1, 1.7])
def test_the_exponent_is_that_of_the_power_law(power: float) -> None:
    sizes = [10_000, 100_000, 1_000_000, 5_000_000]
    assert exponent(sizes, [3.0 * size**power for size in sizes]) == pytest.approx(power)


def test_noise_on_both_sides_of_the_law_cancels() -> None:
    sizes = [10, 100, 1000, 10_000]
    noise = (1.1, 1 / 1.1, 1 / 1.1, 1.1)
    costs_us = [size**0.5 * factor for size, factor in zip(sizes, noise, strict=True)]
    assert exponent(sizes, costs_us) == pytest.approx(0.5)


def test_exponents_go_by_sweep_and_leave_out_what_was_not_measured() -> None:
    points = [
        {"against": "items", "size": n, "total_us": n**0.25, "rank_us": n**0.5}
        for n in (100, 10_000)
    ]
    points.append({"against": "batch", "size": 1, "total_us": 1.0})
    assert exponents(points) == {
        "items": {"total_us": pytest.approx(0.25), "rank_us": pytest.approx(0.5)}
    }


ALLOCATING = """
import json, os
import numpy as np
from perf.harness.measurement import memory
pid = os.getpid()
before = memory([pid])
numbers = np.ones(64_000_000 // 8)
after, twice = memory([pid]), memory([pid, pid])
print(json.dumps([before, after, twice]))
"""


def test_what_a_process_holds_for_itself_is_anonymous() -> None:
    # In one of its own: what other tests have left behind may be freed at any time.
    ran = subprocess.run(
        [sys.executable, "-c", ALLOCATING], cwd=ROOT, capture_output=True, text=True, check=True
    )
    before, after, twice = (Memory(*held) for held in json.loads(ran.stdout))
    assert after.anonymous_mb - before.anonymous_mb == pytest.approx(64, abs=4)
    assert after.pss_mb <= after.rss_mb
    assert after.shared_mb + after.anonymous_mb <= after.rss_mb * 1.01
    assert twice.rss_mb == pytest.approx(2 * after.rss_mb, rel=0.05)


def test_a_command_is_timed_and_its_failure_is_told(tmp_path: Path) -> None:
    assert commands.run("json.tool", "--help") > 0
    with pytest.raises(SystemExit, match=r"json\.tool failed"):
        commands.run("json.tool", "no-such-file")
    log = tmp_path / "log"
    with pytest.raises(SystemExit, match="no-such-file"):
        commands.run("json.tool", "no-such-file", log=log)
    assert "json.tool no-such-file" in log.read_text().splitlines()[0]


@pytest.fixture(scope="module")
def made(criteo: Any) -> Artifacts:
    return Artifacts(criteo.checkpoints, criteo.repository, len(criteo.pipeline().item_ids))


def test_stages_in_turns_are_timed(made: Artifacts) -> None:
    pipeline, users = open_pipeline(made.repository), made.users()
    settings = {"one": Setting(pipeline, users), "four": Setting(pipeline, users, batch=4)}
    for us in costs(settings, rounds=1).values():
        assert min(us[f"{stage}_us"] for stage in STAGES) > 0
        assert us["total_us"] >= max(us[f"{stage}_us"] for stage in STAGES)


def test_the_sweeps_leave_points_plots_and_exponents(made: Artifacts, tmp_path: Path) -> None:
    results = tmp_path / "r.jsonl"
    options = Namespace(out=tmp_path / "out", results=results, device="cpu", rounds=1)
    options.sweeps, options.batches, options.items = ["batch", "items"], [1, 2], [made.items]
    scaling = Scaling(options, tmp_path)
    scaling._base = lambda: made  # type: ignore[method-assign]
    scaling._make = lambda items, ranker: made  # type: ignore[method-assign]
    options.ranker = "small"
    content = scaling.run()
    assert content == json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert "growth_exponent_items" not in content  # one catalogue does not grow
    assert set(content["exponents"]) == {"batch"}
    assert {p.name for p in (tmp_path / "out").glob("*.png")} == {"items.png", "batch.png"}
    lines = read(results)
    assert [(line["against"], line["size"]) for line in lines] == [
        ("batch", 1),
        ("batch", 2),
        ("items", made.items),
    ]
    assert {line["configuration"] for line in lines} == {"scaling-batch-cpu", "scaling-items-cpu"}
    assert lines[2]["bytes_per_item"]["prerank"] > 0
    assert "export_s" in scaling_report(content["points"][2:])


def test_exponents_and_ratios_are_in_the_file(tmp_path: Path) -> None:
    points = [
        {"against": "candidates", "size": n, **dict.fromkeys(COSTS, 3.0 * n**0.5)}
        for n in (500, 1000, 2000)
    ]
    content = write(tmp_path, points, {"pss_two_over_one": 1.2})
    assert content["growth_exponent_candidates"] == pytest.approx(0.5)
    assert content["pss_two_over_one"] == 1.2
    assert "total_us grows by the power 0.50" in scaling_report(points)
