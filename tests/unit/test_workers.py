"""Which processes are stubs, and of which model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cascade.server import cleanup, workers
from cascade.server.binaries import STUB

SERVER = "cascade-test-stubs"
WAITS = "import sys\nprint(flush=True)\nsys.stdin.read()\n"


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the server that looks like the stub of rank, release 3."""
    path = tmp_path / "rank" / "3" / "model.py"
    path.parent.mkdir(parents=True)
    path.write_text(WAITS)
    with start(f"/somewhere/{STUB}", str(path), "region") as process:
        yield process


def start(*words: str, folder: Path | None = None) -> subprocess.Popen[bytes]:
    """A Python that calls itself by the first of these words, once it runs the second."""
    process = subprocess.Popen(
        words,
        executable=sys.executable,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, cleanup.VARIABLE: SERVER},
        cwd=folder,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_stub_is_known_by_its_arguments(stub: subprocess.Popen[bytes]) -> None:
    (found,) = workers.alive(SERVER)
    assert (found.pid, found.model, found.version) == (stub.pid, "rank", 3)
    assert not workers.alive("another")
    assert not found.dead
    assert not found.gone


def test_a_stub_that_was_killed_is_dead_until_somebody_waits_for_it(
    stub: subprocess.Popen[bytes],
) -> None:
    (found,) = workers.alive(SERVER)
    stub.kill()
    os.waitid(os.P_PID, stub.pid, os.WEXITED | os.WNOWAIT)
    assert found.dead
    assert not found.gone
    assert not workers.alive(SERVER)
    stub.wait()
    assert not found.dead
    assert found.gone


def test_a_stub_that_ended_in_order_is_not_dead(stub: subprocess.Popen[bytes]) -> None:
    (found,) = workers.alive(SERVER)
    assert stub.stdin is not None
    stub.stdin.close()
    os.waitid(os.P_PID, stub.pid, os.WEXITED | os.WNOWAIT)
    assert not found.dead
    assert not found.gone


@pytest.mark.parametrize(
    "words", [(STUB, "model.py"), (STUB, "rank/new/model.py"), (STUB, "-c", WAITS)]
)
def test_a_process_with_other_arguments_is_no_stub(tmp_path: Path, words: tuple[str, ...]) -> None:
    """As that is which Triton starts first, to see whether it runs."""
    for name in words[1:]:
        if name.endswith(".py"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(WAITS)
    with start(*words, folder=tmp_path) as process:
        assert process.pid in cleanup.processes(SERVER)
        assert not workers.alive(SERVER)
