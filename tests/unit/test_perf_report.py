import re
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from matplotlib.image import imread

from perf import report
from perf.harness.measurement import Load, Measurement, Mode, StageTimes
from perf.harness.record import RecordError, append
from perf.harness.table import latency_table, number, table
from perf.report import write_report
from perf.suite import Suite

LATENCIES = ("p5_ms", "p50_ms", "p95_ms", "p99_ms", "p99_9_ms", "mean_ms", "max_ms")
HARDWARE = {"cpu": "Some CPU", "cores": 2, "memory_gib": 8.0, "gpu": None}


def environment(configuration: str, day: int, **changes: Any) -> dict[str, Any]:
    return {
        "sweep": f"2030-01-{day:02}T00:00:00+00:00",
        "configuration": configuration,
        "commit": "c0ffee" * 6,
        "dirty": False,
        "config_hash": "beef" * 16,
        "hardware": HARDWARE,
        "versions": {"server": "2.51.0"},
        "payload": {"source": "users.jsonl", "rows": 1500},
        **changes,
    }


def measurement(mode: Mode, value: float, seed: int = 1, **changes: Any) -> Measurement:
    """Figures that occur only once: 7.01, 7.02, ... of this seed."""
    figures: Iterator[float] = (7 * seed + at / 100 for at in range(1, 99))
    fields: dict[str, Any] = {
        "model": "recommend",
        "batch": 1,
        "load": Load(mode, value),
        "requests": 6000 + seed,
        "duration_s": 12.0,
        "throughput": 500.0 + seed,
        "latency_ms": {key: next(figures) for key in LATENCIES},
        "p99_range_ms": (next(figures), next(figures)),
        "stages": {
            name: StageTimes(*(next(figures) for _ in range(4)), 6000 + seed, 600)
            for name in ("retrieve", "rank")
        },
    }
    return Measurement(**{**fields, **changes})


def written(folder: Path, *lines: tuple[dict[str, Any], Measurement]) -> str:
    results = folder / "results.jsonl"
    results.unlink(missing_ok=True)
    for line in lines:
        append(results, line[0], line[1].to_dict())
    write_report([results], folder / "report.md")
    return (folder / "report.md").read_text()


def test_every_figure_of_a_run_is_in_the_report_and_no_other(tmp_path: Path) -> None:
    ours = environment("ensemble-cpu", 1)
    text = written(tmp_path, (ours, measurement("concurrency", 4)))
    row = next(line for line in text.splitlines() if line.startswith("| concurrency 4 "))
    assert re.findall(r"[\d.]+", row) == [
        "4", "501", "7.01", "7.02", "7.03", "7.04", "7.05", "7.06", "7.07", "7.08", "7.09", "6001",
    ]  # fmt: skip
    rows = [line for line in text.splitlines() if "retrieve" in line or " rank " in line]
    assert re.findall(r"[\d.]+", rows[0])[1:] == [
        "7.10", "7.11", "7.12", "7.13", "6001", "600", "10.0",
    ]  # fmt: skip
    assert "7.14" in rows[1]
    # With other lines all these figures go: none of them stands in the program.
    other = written(tmp_path, (ours, measurement("concurrency", 8, seed=2)))
    assert not set(re.findall(r"7\.\d\d", text)) & set(re.findall(r"7\.\d\d", other))
    assert "501" not in other
    assert not re.search(r"\d", re.sub(r"p99|p50", "", report.HOW_TO_READ))


def test_what_is_not_to_be_trusted_is_marked_wherever_it_stands(tmp_path: Path) -> None:
    ours = environment("ensemble-cpu", 1)
    text = written(
        tmp_path,
        (ours, measurement("concurrency", 1)),
        (ours, measurement("concurrency", 2, seed=3, stable=False)),
        (ours, measurement("rate", 250, seed=4, delayed_percent=24.53)),
        (ours, Measurement("recommend", 1, Load("rate", 900), failed=3, error="queue is full")),
    )
    rows = {
        name: [line for line in text.splitlines() if line.startswith(f"| {name} ")]
        for name in ("concurrency 1", "concurrency 2", "rate 250/s", "rate 900/s")
    }
    assert [len(rows[name]) for name in rows] == [3, 3, 3, 1]
    assert not any("**" in row for row in rows["concurrency 1"])
    assert "**unstable**" in rows["concurrency 2"][0]
    assert "**delayed** (24.5 %)" in rows["rate 250/s"][0]
    assert "**failed** (3): queue is full" in rows["rate 900/s"][0]


def test_every_configuration_and_batch_has_a_section(tmp_path: Path) -> None:
    lines = [
        (environment("a", 1), measurement("concurrency", 1, seed=1)),
        (environment("a", 2), measurement("concurrency", 1, seed=2)),
        (environment("a-quick", 4), measurement("concurrency", 1, seed=4)),
        (environment("a", 6), measurement("concurrency", 1, seed=6, batch=8)),
    ]
    text = written(tmp_path, *lines)
    assert re.findall(r"(?m)^## (a.*)$", text) == ["a", "a-batch-8", "a-quick"]
    measured = re.findall(r"\| concurrency 1 +\| +(\d+) ", text)
    assert measured == ["502", "506", "504"]  # the first sweep of `a` has been replaced


def test_lines_of_other_programs_have_their_tables(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    ours = environment("waterfall-fused-cpu", 1)
    append(results, ours, {"batch": 1, "parts_us": {"tower": 61.5}})
    ours["configuration"] = "scaling-items-cpu"
    append(results, ours, *({"against": "items", "size": n, "total_us": n / 8} for n in (80, 96)))
    ours["configuration"] = "compare-cpu"
    append(results, ours, {"figures": {"vs_bound": 0.84, "best": "fused", "spread": {}}})
    write_report([results], tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert re.search(r"\| tower +\| +61\.5 \|", text)
    assert re.search(r"\| 96 +\| +12\.0 \|", text)
    assert re.search(r"\| vs_bound +\| +0\.84 \|", text)


def test_the_pictures_are_drawn_and_follow_the_lines(tmp_path: Path) -> None:
    ours = environment("ensemble-cpu", 1)
    names = ("throughput", "stages")
    lines = [(ours, measurement("concurrency", 2**n, seed=n + 1)) for n in range(3)]
    lines += [(ours, measurement("rate", 100, seed=5))]
    text = written(tmp_path, *lines)
    before = {}
    for name in names:
        assert f"(plots/ensemble-cpu-{name}.png)" in text
        before[name] = imread(tmp_path / "plots" / f"ensemble-cpu-{name}.png")
        assert before[name][:, :, :3].std() > 0.02  # not a blank page
    changed = (ours, measurement("concurrency", 2, seed=6, stable=False))
    written(tmp_path, lines[0], changed, *lines[2:])
    for name in names:
        after = imread(tmp_path / "plots" / f"ensemble-cpu-{name}.png")
        assert after.shape != before[name].shape or (after != before[name]).any()


def test_a_picture_is_drawn_of_a_run_of_any_name(tmp_path: Path) -> None:
    ours = environment("geo/città $x$ $-cpu", 1)
    text = written(tmp_path, (ours, measurement("concurrency", 1, seed=1)))
    links = re.findall(r"\(plots/([^)]+)\)", text)
    assert len(links) == 2
    assert all((tmp_path / "plots" / unquote(link)).is_file() for link in links)


def test_no_results_is_an_error_that_says_how_to_get_some(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="python -m perf"):
        write_report([], tmp_path / "report.md")
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(RecordError, match="python -m perf"):
        report.main([str(empty), "--out", str(tmp_path / "report.md")])
    assert not (tmp_path / "report.md").exists()


def test_tables_are_aligned_and_keep_their_cells_apart() -> None:
    text = table(["load", "ms"], [["a", "1"], ["b|c", "100"]])
    assert text.splitlines() == [
        "| load   |   ms |",
        "|:-------|-----:|",
        "| a      |    1 |",
        r"| b\|c   |  100 |",
    ]
    line = measurement("concurrency", 1).to_dict()
    assert len({len(row) for row in latency_table([line, line]).splitlines()}) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1234, "0.12"), (9.996, "10.00"), (12.34, "12.3"), (1234.5, "1234"), (None, "–")],
)
def test_numbers_keep_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_the_claims_of_a_suite_stand_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, results = tmp_path / "out", tmp_path / "perf" / "results"
    (out / "compare").mkdir(parents=True)
    (out / "compare" / "curve.png").write_bytes(b"a picture")
    monkeypatch.setattr("perf.harness.record.RESULTS", results)
    monkeypatch.setattr("perf.suite.run", lambda *command: None)
    suite = Suite(Namespace(out=out, device="cpu", quick=False, items=1_000_000))
    suite.keep({"items": 1_000_000, "device": "cpu", "vs_fastapi_32": 1.31, "late": 3})
    write_report([results / "suite-cpu.jsonl"], tmp_path / "perf" / "report.md")
    text = (tmp_path / "perf" / "report.md").read_text()
    claims = {row.split("|")[2].strip(): row for row in text.splitlines() if row.startswith("| ")}
    assert "1.31" in claims["vs_fastapi_32"]
    assert "yes" in claims["vs_fastapi_32"]
    assert "**no**" in claims["late"]
    assert "p99_ms_half" not in claims, "what was not measured is absent"
    assert "(plots/suite-cpu-curve.png)" in text
    assert (tmp_path / "perf" / "plots" / "suite-cpu-curve.png").read_bytes() == b"a picture"
    assert "did not pay" in text
