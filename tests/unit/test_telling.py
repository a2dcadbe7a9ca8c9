"""What tells of the work never fails it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest

from cascade.runtime.spans import START, Recorder
from cascade.telling import say, tell
from cascade.triton.metrics import Metrics
from cascade.triton.request_log import RequestLog

ROOT = Path(__file__).parents[2]


@contextmanager
def pipe() -> Iterator[tuple[IO[bytes], IO[str]]]:
    reader, writer = os.pipe()
    with open(reader, "rb") as reads, open(writer, "w") as writes:
        yield reads, writes


def fill(stream: IO[str]) -> None:
    """Write until a pipe is full."""
    os.set_blocking(stream.fileno(), False)
    with suppress(BlockingIOError):
        while True:
            os.write(stream.fileno(), b"x" * 4096)
    os.set_blocking(stream.fileno(), True)


def test_lines_arrive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tell("to stderr\n")
    say("to stdout")
    assert capsys.readouterr() == ("to stdout\n", "to stderr\n")
    memory = io.StringIO()
    assert tell("one\ntwo\n", memory)
    assert memory.getvalue() == "one\ntwo\n"
    with (tmp_path / "file").open("a") as file:
        assert tell("é" * 9000 + "\nlone \ud800\n", file)
    assert (tmp_path / "file").read_bytes() == "é".encode() * 9000 + b"\nlone \\ud800\n"
    with pipe() as (reads, writes):
        assert tell("x" * 9000 + "\n", writes)
        assert os.read(reads.fileno(), 1 << 16) == b"x" * 9000 + b"\n"


def test_a_stream_that_takes_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        assert not tell("a full disk\n", full)
    assert not tell("a closed stream\n", full)
    with pipe() as (reads, writes):
        fill(writes)
        assert not tell("a sleeping reader\n" * 1000, writes)
        assert b"a" not in os.read(reads.fileno(), 1 << 20)
        assert not tell("x" * (1 << 20) + "\n", writes)  # as much as has room
        reads.close()
        assert not tell("a reader that is gone\n", writes)
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", None)
    assert not tell("no stderr\n")
    say("no stdout")


def test_a_program_with_progress_bars_ends_well_on_a_full_disk(tmp_path: Path) -> None:
    data = ["--data", "synthetic:rows=500,items=50", "--out", str(tmp_path / "data")]
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "cascade.data", *data]
        ran = subprocess.run(command, cwd=ROOT, stderr=full, stdout=subprocess.PIPE, text=True)
    assert ran.returncode == 0
    assert "50 items" in ran.stdout


def test_spans_that_cannot_be_written_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    recorder = Recorder(tmp_path / "file" / "below")
    recorder.end(START)
    recorder.write()
    assert "the spans of 1 batches are lost: " in capsys.readouterr().err


class Backend:
    """Metrics as the server has them, which may be out of order."""

    def __init__(self) -> None:
        self.broken = False
        self.values: defaultdict[str, float] = defaultdict(float)

    def MetricFamily(self, name: str, description: str, kind: str) -> Any:
        self._check()
        return Family(self, name)

    MetricFamily.GAUGE, MetricFamily.COUNTER = "gauge", "counter"  # type: ignore[attr-defined]

    def _check(self) -> None:
        if self.broken:
            raise RuntimeError("no shared memory is left")


class Family:
    def __init__(self, backend: Backend, name: str) -> None:
        self._backend, self._name = backend, name

    def Metric(self, labels: dict[str, str]) -> Any:
        return Metric(self._backend, f"{self._name} {json.dumps(labels, sort_keys=True)}")


class Metric:
    def __init__(self, backend: Backend, key: str) -> None:
        self._backend, self._key = backend, key

    def set(self, value: float) -> None:
        self._backend._check()
        self._backend.values[self._key] = value

    def increment(self, by: float) -> None:
        self._backend._check()
        self._backend.values[self._key] += by


def test_metrics_that_cannot_be_published_are_published_later(
    capsys: pytest.CaptureFixture[str],
) -> None:
    backend = Backend()
    backend.broken = True
    log = RequestLog("rank", 3, every_request=True)
    metrics = Metrics(backend, "rank", 3, {}, log)
    metrics.batch(5, 0.001)
    metrics.publish()
    assert capsys.readouterr().err.count("metrics of rank cannot be published: ") == 1
    backend.broken = False
    metrics.close()
    users = 'cascade_batch_users_total {"model": "rank", "release": "3"}'
    assert backend.values[users] == 5
    assert metrics._publisher.is_alive() is False
    assert backend.values['cascade_log_ok {"model": "rank", "release": "3"}'] == 1


def test_a_log_that_takes_no_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    log = RequestLog("rank", 3, every_request=True)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        log.answered([("a", 1)], 0.001)
        assert not log.ok
        monkeypatch.undo()
    log.answered([("b", 1)], 0.001)
    assert log.ok
