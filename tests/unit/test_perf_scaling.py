"""Exponents of known power laws, memory of known mappings, and releases of other sizes."""

import json
import mmap
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascade.spec import PRERANK, RANK, RETRIEVE, STAGES, Sizes
from perf import alone, costs, memory, scaling_sweeps
from perf.artifacts import Artifacts
from perf.growth import exponent, exponents
from perf.large_tables import Served, ranker_parameters, report, summarise
from perf.measurement import Load, Measurement
from perf.record import ROOT
from perf.resized import Retuner, with_survivors
from perf.scaling import Scaling, write
from perf.scaling import report as scaling_report

MB = 10**6


@pytest.mark.parametrize("power", [0, 0.5, 1, 1.7])
def test_the_exponent_is_that_of_the_power_law(power: float) -> None:
    sizes = [10_000, 100_000, 1_000_000, 5_000_000]
    assert exponent(sizes, [3.0 * size**power for size in sizes]) == pytest.approx(power)


def test_noise_on_both_sides_of_the_law_cancels() -> None:
    sizes = [10, 100, 1000, 10_000]
    noise = (1.1, 1 / 1.1, 1 / 1.1, 1.1)
    costs_us = [size**0.5 * factor for size, factor in zip(sizes, noise, strict=True)]
    assert exponent(sizes, costs_us) == pytest.approx(0.5)


def test_one_size_shows_no_growth() -> None:
    with pytest.raises(ValueError, match="two different ones"):
        exponent([1000, 1000], [1.0, 2.0])
    with pytest.raises(ValueError, match="above zero"):
        exponent([1000, 2000], [1.0, 0.0])


def test_exponents_go_by_sweep_and_leave_out_what_was_not_measured() -> None:
    points = [
        {"against": "items", "size": n, "total_us": n**0.25, "distances": n**0.5}
        for n in (100, 10_000)
    ]
    points.append({"against": "batch", "size": 1, "total_us": 1.0})
    assert exponents(points) == {
        "items": {"total_us": pytest.approx(0.25), "distances": pytest.approx(0.5)}
    }


@pytest.fixture
def mapped_file(tmp_path: Path) -> Iterator[Path]:
    """A file of 8 MB, mapped and read by this process."""
    path = tmp_path / "folder with a space" / "pages.bin"
    path.parent.mkdir()
    path.write_bytes(b"x" * 8 * MB)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        assert pages[:: mmap.PAGESIZE].count(b"x") == -(-8 * MB // mmap.PAGESIZE)
        yield path


def test_mapped_pages_are_found_by_their_file(mapped_file: Path) -> None:
    (held,) = memory.mapped([os.getpid()], mapped_file.parent).values()
    assert held.rss_mb == pytest.approx(8, abs=0.1)
    assert held.anonymous_mb == 0
    assert list(memory.mapped([os.getpid()], mapped_file.parent)) == ["pages.bin"]
    assert memory.mapped([os.getpid()], mapped_file.parent / "nothing") == {}


ALLOCATING = """
import dataclasses, json, os
import numpy as np
from perf import memory
pid = os.getpid()
before = memory.of([pid])
numbers = np.ones(64_000_000 // 8)
after, twice = memory.of([pid]), memory.of([pid, pid])
print(json.dumps([dataclasses.asdict(held) for held in (before, after, twice)]))
"""


def test_what_a_process_holds_for_itself_is_anonymous() -> None:
    # In one of its own: what other tests have left behind may be freed at any time.
    ran = subprocess.run(
        [sys.executable, "-c", ALLOCATING], cwd=ROOT, capture_output=True, text=True, check=True
    )
    before, after, twice = (memory.Memory(**held) for held in json.loads(ran.stdout))
    assert after.anonymous_mb - before.anonymous_mb == pytest.approx(64, abs=4)
    assert after.pss_mb <= after.rss_mb
    assert after.shared_mb + after.anonymous_mb <= after.rss_mb * 1.01
    assert twice.rss_mb == pytest.approx(2 * after.rss_mb, rel=0.05)


def test_a_command_is_watched_and_its_failure_is_told() -> None:
    took_s, peak_mb = memory.run_watched("json.tool", "--help")
    assert took_s > 0
    assert peak_mb > 1
    with pytest.raises(SystemExit, match=r"json\.tool no-such-file failed"):
        memory.run_watched("json.tool", "no-such-file")


@pytest.fixture(scope="module")
def made(criteo: Any) -> Artifacts:
    return Artifacts.of(criteo.checkpoints, criteo.repository)


def test_stages_in_turns_are_timed_and_their_work_is_counted(made: Artifacts) -> None:
    opened, users = costs.open_stages(made.repository), made.users()
    both = {"one": opened, "four": opened}
    taken = costs.alternate(both, dict.fromkeys(both, users), {"four": 4}, rounds=1)
    for us in taken.values():
        assert min(us[f"{stage}_us"] for stage in STAGES) > 0
        assert us["clock_us"] > 0
        assert us["total_p25_us"] <= us["total_us"] <= us["total_p75_us"]
    found = costs.work_of(opened, users, count=4)
    row_bytes = (opened.folders[PRERANK] / "item_state.bin").stat().st_size / made.items
    assert found["prerank_bytes"] == opened.candidates * row_bytes
    assert found["distances"] > 0
    assert found["gather_ns"] > 0


def test_every_item_is_a_distance_where_all_lists_are_probed(made: Artifacts) -> None:
    opened, users = costs.open_stages(made.repository), made.users()
    found: Any = opened.stages[RETRIEVE]
    lists = found.index.facts.parameters.get("lists", 0)
    if lists:
        found.index.set_effort(lists)
    work = costs.search_work(opened, users, 3)
    assert work["distances"] == made.items + lists


def test_the_sizes_of_a_release_can_be_others(made: Artifacts, tmp_path: Path) -> None:
    with_survivors(costs.folders_of(made.repository)[PRERANK], tmp_path / "kept", 50)
    few = costs.open_stages(made.repository, 400, {PRERANK: tmp_path / "kept"})
    users = made.users()
    *user, candidates = few.stages[RETRIEVE](users.dense[:3], users.categorical[:3])
    assert candidates.shape == (3, 400)
    (survivors,) = few.stages[PRERANK](*user, candidates)
    assert survivors.shape == (3, 50)
    (more,) = costs.open_stages(made.repository).stages[PRERANK](*user, candidates)
    np.testing.assert_array_equal(survivors, more[:, :50])  # the best of the same order
    item_ids, _ = few.stages[RANK](*user, survivors)
    assert item_ids.shape == (3, Sizes().results)


def test_an_index_is_tuned_to_its_own_number_of_candidates(made: Artifacts) -> None:
    users, retuner = made.users(), Retuner(made, 0.9)
    opened = costs.open_stages(made.repository, candidates=100)
    assert retuner.tune(opened, users.dense, users.categorical)["recall"] >= 0.9
    found: Any = opened.stages[RETRIEVE]
    assert found.index.facts.recall_k == 100


def test_a_release_alone_tells_what_it_holds(made: Artifacts) -> None:
    found = alone.look(made.repository, made.users_file)
    assert found["load_s"] > 0
    state = costs.folders_of(made.repository)[RANK] / "item_state.bin"
    assert 0 < found["files_mb"] < found["rss_mb"]
    assert found["files_mb"] >= state.stat().st_size / MB / 2
    assert found["asked"] == len(made.users())


def test_the_sweeps_leave_points_plots_and_exponents(made: Artifacts, tmp_path: Path) -> None:
    points = [
        *scaling_sweeps.items([made], rounds=1),
        *scaling_sweeps.candidates(made, [300, 600], 0.9, rounds=1),
        *scaling_sweeps.kept(made, [20, 40], tmp_path, rounds=1),
        *scaling_sweeps.batches(made, [1, 2], rounds=1),
    ]
    content = write(tmp_path / "out", points)
    assert content == json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert content["growth_exponent_candidates"] == exponents(points)["candidates"]["total_us"]
    assert "growth_exponent_items" not in content  # one catalogue does not grow
    names = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert names == {"items.png", "items-memory.png", "candidates.png", "kept.png", "batch.png"}
    text = scaling_report(points[:1])
    assert f"{made.items:,} items: index" in text
    assert points[0]["bytes_per_item"][PRERANK] > 0


def test_points_become_lines_with_their_circumstances(made: Artifacts, tmp_path: Path) -> None:
    options = Namespace(
        out=tmp_path, results=tmp_path / "r.jsonl", device="cpu", rows=None, rounds=1
    )
    options.checkpoints, options.repository = made.checkpoints, made.repository
    options.sweeps, options.batches = ["batch"], [1, 2]
    Scaling(options, tmp_path).run()
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [(line["against"], line["size"]) for line in lines] == [("batch", 1), ("batch", 2)]
    assert all(line["configuration"] == "scaling-cpu" and line["hardware"] for line in lines)


def test_the_two_ratios_of_large_tables(made: Artifacts) -> None:
    def run(p99: float) -> Measurement:
        latency = {"p50_ms": 1.0, "p99_ms": p99}
        return Measurement("recommend", 1, Load("concurrency", 1), 9, latency_ms=latency)

    served = [
        Served(n, 1.0, memory.Memory(900, pss, 10, 10), {"rank/x.bin": memory.Memory(1, 1, 1, 0)})
        for n, pss in ((1, 500.0), (2, 600.0))
    ]
    measured = {"paper": [run(3), run(2), run(9)], "small": [run(2), run(2), run(2)]}
    found = summarise({"paper": made, "small": made}, served, measured)
    assert found["pss_two_over_one"] == pytest.approx(1.2)
    assert found["paper_p99_ratio"] == pytest.approx(1.5)
    assert found["releases"]["paper"]["ranker_parameters"] == ranker_parameters(made) > 1000
    assert "rank/x.bin" in report(found)
    assert json.loads(json.dumps(found)) is not None
    failed = Measurement("recommend", 1, Load("concurrency", 1), error="refused")
    with pytest.raises(ValueError, match="refused"):
        summarise({"paper": made, "small": made}, served, {**measured, "paper": [failed]})
