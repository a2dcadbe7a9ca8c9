import json
from pathlib import Path

import numpy as np
import pytest

from perf.harness.analyzer import AnalyzerError, delayed_percent, read_profile, stage_times
from perf.harness.measurement import Load, Measurement, StageTimes, latency_summary, summarise

SECOND = 1_000_000_000


def request(sent_ns: int, latency_ns: int | None) -> dict[str, object]:
    return {
        "timestamp": sent_ns,
        "request_inputs": {"dense": [1.0], "categorical": "raw"},
        "response_timestamps": [] if latency_ns is None else [sent_ns + latency_ns],
    }


def export(path: Path, requests: list[dict[str, object]], bounds: list[int]) -> Path:
    experiment = {"requests": requests, "window_boundaries": bounds}
    file = path / "profile.json"
    file.write_text(json.dumps({"experiments": [experiment]}))
    return file


def test_only_requests_that_ended_in_the_last_three_windows_count(tmp_path: Path) -> None:
    bounds = [second * SECOND for second in (10, 11, 12, 13, 14)]
    requests = [
        request(10 * SECOND, 500_000_000),  # in the first window: perf_analyzer dropped it
        request(11 * SECOND - 1_000_000, 2_000_000),  # sent before, ended inside: counts
        request(12 * SECOND, 3_000_000),
        request(13 * SECOND, 4_000_000),
        request(13 * SECOND, None),  # never answered
        request(14 * SECOND - 1_000_000, 9_000_000),  # ended after
    ]
    trace, load = read_profile(export(tmp_path, requests, bounds)), Load("concurrency", 1)
    assert trace.counted(load)[0].tolist() == [2.0, 3.0, 4.0]
    measured = summarise(trace, load, "recommend", batch=2)
    assert measured.duration_s == 3.0
    assert measured.throughput == 2.0
    assert measured.p99_range_ms == (2.0, 4.0)


def test_the_raw_bytes_of_a_request_do_not_hinder_the_reading(tmp_path: Path) -> None:
    file = export(tmp_path, [request(0, 5_000_000)], [0, SECOND])
    file.write_bytes(file.read_bytes().replace(b'"raw"', b'"\xc8\\u0000\\u0000\\u0000x"'))
    assert read_profile(file).counted(Load("concurrency", 1))[0].tolist() == [5.0]


def test_a_profile_without_requests_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(AnalyzerError, match="missing"):
        read_profile(tmp_path / "profile.json")
    (tmp_path / "profile.json").write_text("")
    with pytest.raises(AnalyzerError, match=r"empty.*NaN or infinity"):
        read_profile(tmp_path / "profile.json")
    with pytest.raises(AnalyzerError, match="no request that was answered"):
        read_profile(export(tmp_path, [request(0, None)], [0, SECOND]))


def test_the_summary_is_what_numpy_says() -> None:
    latency_ms = np.random.default_rng(0).lognormal(1, 1, 5000)
    summary = latency_summary(latency_ms)
    expected = np.percentile(latency_ms, [5, 50, 95, 99, 99.9])
    keys = ["p5_ms", "p50_ms", "p95_ms", "p99_ms", "p99_9_ms"]
    assert [summary[key] for key in keys] == pytest.approx(expected)
    assert summary["mean_ms"] == pytest.approx(latency_ms.mean())
    assert summary["max_ms"] == latency_ms.max()


def test_lateness_is_read_off_the_words_of_perf_analyzer() -> None:
    said = (
        "[WARNING] Perf Analyzer was not able to keep up with the desired request rate. "
        "24.53% of the requests were delayed."
    )
    assert delayed_percent(said) == 24.53
    assert delayed_percent("Throughput: 704 infer/sec") == 0


def test_stage_times_are_means_per_request_between_two_moments() -> None:
    keys = ("success", "failed", "queue", "input", "infer", "output", "inference", "execution")
    before = dict(zip(keys, (100, 1, 1000, 10, 20, 30, 100, 50), strict=True))
    after = dict(zip(keys, (110, 4, 51_000, 20_010, 400_020, 10_030, 110, 52), strict=True))
    assert stage_times(before, after) == StageTimes(5.0, 2.0, 40.0, 1.0, 10, 2)
    assert stage_times(before, after).mean_batch == 5
    nothing = stage_times(before, before)
    assert nothing == StageTimes(0, 0, 0, 0, 0, 0)
    assert nothing.mean_batch == 0


def test_a_measurement_is_written_flat() -> None:
    measurement = Measurement(
        model="recommend",
        batch=2,
        load=Load("rate", 12.5),
        latency_ms={"p50_ms": 3.0},
        delayed_percent=0.5,
        stages={"rank": StageTimes(1, 2, 3, 4, 10, 4)},
    )
    line = json.loads(json.dumps(measurement.to_dict()))
    assert (line["mode"], line["value"], line["p50_ms"]) == ("rate", 12.5, 3.0)
    assert (line["stable"], line["delayed_percent"], line["failed"]) == (True, 0.5, 0)
    assert line["stages"]["rank"]["mean_batch"] == 2.5
    assert "load" not in line
    assert "latency_ms" not in line
