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
from tests.programs import last_error

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


@contextmanager
def takes_nothing(kind: str) -> Iterator[int]:
    """The descriptor of an output of which nothing arrives."""
    if kind == "full":
        with open("/dev/full", "w") as full:
            yield full.fileno()
        return
    with pipe() as (reads, writes):
        reads.close()
        yield writes.fileno()
        os.dup2(os.open(os.devnull, os.O_WRONLY), writes.fileno())  # for the flush of its end


WORKS = """
import sys
from pathlib import Path
from cascade.errors import CascadeError, run
from cascade.telling import say
def main():
    say("begins")
    print("x" * 20_000)
    Path(sys.argv[1]).write_text("made")
    {ends}
run(main{how})
"""


def ran_into(
    kind: str, words: list[str], buffered: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs Python with a stdout that takes nothing, or is closed."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    command = [sys.executable, *words]
    how: dict[str, Any] = {"cwd": ROOT, "env": environment, "stderr": subprocess.PIPE, "text": True}
    if kind == "closed":
        return subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], **how)
    with takes_nothing(kind) as stdout:
        return subprocess.run(command, stdout=stdout, **how)


SAID = {"full": "No space left on device", "gone": "", "closed": "Bad file descriptor"}


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("kind", [*SAID])
@pytest.mark.parametrize(
    ("ends", "code", "error"),
    [
        ("", 1, "standard output"),
        ("return 3", 3, ""),
        ("raise CascadeError('wrong')", 1, "error: wrong\n"),
        ("sys.exit('error: in a step')", 1, "error: in a step\n"),
    ],
)
def test_work_goes_on_to_its_end_whatever_happens_to_stdout(
    tmp_path: Path, ends: str, code: int, error: str, kind: str, buffered: bool
) -> None:
    made = tmp_path / "made"
    work = WORKS.format(ends=ends, how=", to_end=True")
    ran = ran_into(kind, ["-c", work, str(made)], buffered)
    assert made.read_text() == "made"
    if error == "standard output":
        code = 141 if kind == "gone" else 1
        error = f"error: standard output: {SAID[kind]}; all else is done\n" if SAID[kind] else ""
    assert (ran.returncode, ran.stderr) == (code, error)


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("kind", [*SAID])
def test_a_program_that_prints_its_product_ends_with_its_stdout(
    tmp_path: Path, kind: str, buffered: bool
) -> None:
    made = tmp_path / "made"
    ran = ran_into(kind, ["-c", WORKS.format(ends="", how=""), str(made)], buffered)
    assert not made.exists()
    error = f"error: standard output: {SAID[kind]}\n" if SAID[kind] else ""
    assert (ran.returncode, ran.stderr) == (1 if error else 141, error)


@pytest.mark.parametrize("kind", [*SAID])
def test_a_line_that_a_server_cannot_say_is_no_error(kind: str) -> None:
    work = "from cascade.errors import run; from cascade.telling import say\nrun(lambda: say('a'))"
    ran = ran_into(kind, ["-c", work])
    assert (ran.returncode, ran.stderr) == (0, "")


HELP = "cascade.data cascade.training export clients.recommend perf.report perf.fixture"


@pytest.mark.parametrize("module", [*HELP.split(), "perf.own"])
def test_help_that_nobody_reads_is_no_traceback(module: str) -> None:
    ran = ran_into("gone", ["-m", module, "--help"])
    assert (ran.returncode, ran.stderr) == (141, "")


def test_programs_that_write_files_write_them_all(tmp_path: Path) -> None:
    data = ["--data", "synthetic:rows=500,items=50", "--out"]
    ran = ran_into("full", ["-m", "cascade.data", *data, str(tmp_path / "data")])
    assert ran.returncode == 1
    assert last_error(ran.stderr).endswith(f"{SAID['full']}; all else is done")
    assert (tmp_path / "data" / "source.json").is_file()
    trained = tmp_path / "trained"
    words = ["-m", "cascade.training", *data, str(trained), "--epochs", "0.1", "--device", "cpu"]
    ran = ran_into("gone", words, buffered=False)
    assert ran.returncode == 141
    assert "Traceback" not in ran.stderr
    assert (trained / "verdict.json").is_file()  # the last of its files


def test_a_step_of_a_program_does_not_lose_its_stdout() -> None:
    work = "from cascade.errors import run; from perf.harness import commands\n"
    work += "run(lambda: commands.run('perf.split', '--help') and None, to_end=True)"
    ran = ran_into("full", ["-c", work])
    assert ran.stderr == f"error: standard output: {SAID['full']}; all else is done\n"


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
