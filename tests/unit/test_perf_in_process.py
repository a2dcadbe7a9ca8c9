import os
from pathlib import Path

import numpy as np
import pytest

from perf.harness.in_process import Job, Recommend, measure, merged
from perf.harness.measurement import Load, Measurement, summarise
from perf.harness.payload import Payload, PayloadError, layout_of

SECOND = 1_000_000_000
USERS = Payload(np.arange(30, dtype=np.float32)[:, None], np.full((30, 1), b"x", object), "test")


def rows_to_file(repository: Path) -> Recommend:
    """Notes the rows that it is asked for, and with how many threads, in a file per process."""
    file = (repository / f"{os.getpid()}").open("a")

    def recommend(dense: np.ndarray, categorical: np.ndarray) -> None:
        assert categorical.shape == (len(dense), 1)
        rows = ",".join(f"{row:.0f}" for row in dense[:, 0])
        print(rows, os.environ["OMP_NUM_THREADS"], file=file, flush=True)

    return recommend


def fails(repository: Path) -> Recommend:
    """Loads in the process that comes first, fails in the other."""
    try:
        (repository / "first").mkdir()
    except FileExistsError:
        raise PayloadError("these weights are damaged") from None
    return lambda dense, categorical: None


def test_every_process_walks_through_the_users_by_itself(tmp_path: Path) -> None:
    measured = measure(Job(rows_to_file, tmp_path, USERS, batch=2, seconds=0.6), 2)
    assert (measured.model, measured.load.mode, measured.load.value) == (
        "in-process",
        "concurrency",
        2,
    )
    files = list(tmp_path.iterdir())
    assert len(files) == 2
    lines = [line.split() for file in files for line in file.read_text().splitlines()]
    assert {threads for _, threads in lines} == {"1"}
    for file in files:
        rows = [int(r) for line in file.open() for r in line.split()[0].split(",")]
        np.testing.assert_array_equal(np.diff(rows) % 30, 1)
    assert 0 < measured.requests <= len(lines) - 2 * 50  # without the warm-up
    assert measured.throughput == pytest.approx(measured.requests * 2 / measured.duration_s)


def test_an_error_in_one_process_ends_all(tmp_path: Path) -> None:
    with pytest.raises(PayloadError, match="these weights are damaged"):
        measure(Job(fails, tmp_path, USERS, batch=1, seconds=60), 2)


def figures(times: list[np.ndarray], batch: int, seconds: float) -> Measurement:
    return summarise(merged(times, seconds), Load("concurrency", len(times)), "x", batch)


def test_only_calls_count_that_ended_while_all_were_at_work() -> None:
    early = np.array([[0, 1, 2, 3], [1, 2, 3, 4]]) * SECOND + [[0], [1]]
    late = np.array([[1, 2, 3], [2, 3, 3.5]]) * SECOND
    measured = figures([early, late.astype(np.int64)], batch=4, seconds=3)
    # From 1 s to 4 s: three calls of one process (those after it began), three of the other.
    assert measured.requests == 6
    assert measured.throughput == pytest.approx(6 * 4 / 3)
    assert measured.latency_ms["max_ms"] == pytest.approx(1000)
    assert measured.latency_ms["p5_ms"] < 1000


def test_windows_that_disagree_are_unstable() -> None:
    steady = np.arange(0, 6 * SECOND, SECOND // 100)
    one = np.array([steady, steady + 1_000_000])
    assert figures([one], 1, 6).stable
    slow = np.where(steady > 4 * SECOND, 3_000_000, 1_000_000)
    assert not figures([np.array([steady, steady + slow])], 1, 6).stable
    assert not figures([one], 1, 60).stable  # a third without an answer


def test_a_folder_that_is_no_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(PayloadError, match="not an exported repository"):
        layout_of(tmp_path)
