"""Starts each kind of server on a repository, waits until it answers, and ends it.

Each gets the machine as its own users would give it: one compute thread a process, a process per
core, and no log of every access.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from cascade.errors import CascadeError
from cascade.server import process
from cascade.server.launcher import Ports, Server
from cascade.server.threads import cores
from perf.contenders import fastapi_app
from perf.contenders.wire import JSON, TRITON, Endpoint
from perf.harness.record import ROOT

START_TIMEOUT_S, EXIT_TIMEOUT_S = 180.0, 20
READY = "Application startup complete"  # each worker logs it when it has loaded


class ContenderError(CascadeError):
    """A server that was to be measured did not start."""


@contextmanager
def triton(repository: Path) -> Iterator[Endpoint]:
    """tritonserver on an exported repository, whatever its topology."""
    with Server(repository, startup_timeout_s=START_TIMEOUT_S) as server:
        yield Endpoint(server.http_url, server.url, TRITON, server.pid)


@contextmanager
def fastapi(repository: Path) -> Iterator[Endpoint]:
    """FastAPI under uvicorn with a worker per core; `fastapi_app` says what is in it."""
    port, workers = Ports.free().resolve("127.0.0.1").http, cores()
    command = [
        *(sys.executable, "-m", "uvicorn", "perf.contenders.fastapi_app:app"),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)),
        *("--loop", "uvloop", "--http", "httptools", "--no-access-log"),
        # Clients keep their connections, as a proxy would; the default closes them after 5 s.
        *("--timeout-keep-alive", "300", "--backlog", "2048"),
    ]
    one_thread = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    with tempfile.TemporaryDirectory(prefix="contender-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as file:
            server = subprocess.Popen(
                process.tied(command),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=ROOT,
                env={
                    **{**os.environ, **one_thread, "CASCADE_THREADS": "1"},
                    fastapi_app.REPOSITORY: str(repository.resolve()),
                },
                start_new_session=True,
            )
        try:
            _wait(server, log, workers)
            yield Endpoint(f"127.0.0.1:{port}", None, JSON, server.pid)
        finally:
            _end(server)


def _wait(server: subprocess.Popen[bytes], log: Path, workers: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while log.read_text(errors="replace").count(READY) < workers:
        if server.poll() is not None or time.monotonic() > deadline:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            what = f"ended with {server.poll()}" if server.poll() else "did not start in time"
            raise ContenderError(f"FastAPI {what}:\n{tail}")
        time.sleep(0.1)


def _end(server: subprocess.Popen[bytes]) -> None:
    """In order; the workers of a server that had to be killed are ended, too."""
    try:
        family = psutil.Process(server.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.end(server, EXIT_TIMEOUT_S)
    for left in psutil.wait_procs(family, timeout=5)[1]:
        left.kill()
