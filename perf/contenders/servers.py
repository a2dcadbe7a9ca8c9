"""Starts each kind of server on a repository, waits until it answers, and ends it.

Each gets the machine as its own users would give it: one compute thread a process, a process or
bound function per core, and no log of every access.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from cascade.errors import CascadeError
from cascade.server import process
from cascade.server.binaries import loader_environment
from cascade.server.launcher import Ports, Server
from cascade.server.threads import cores
from perf.contenders import fastapi_app
from perf.contenders.pytriton_server import READY
from perf.contenders.wire import JSON, TRITON, Wire
from perf.record import ROOT

START_TIMEOUT_S = 180.0
EXIT_TIMEOUT_S = 20
START_ATTEMPTS = 4
# What PyTriton says then: nobody has answered, or nobody listens yet.
HANDSHAKE = ("waiting for config file", "get_config_from_handshake_server")


class ContenderError(CascadeError):
    """A server that was to be measured did not start."""


@dataclass(frozen=True)
class Endpoint:
    """A server that answers.

    Args:
        address: HOST:PORT of its HTTP service.
        grpc: HOST:PORT of its gRPC service, where it has one.
        wire: how to ask over HTTP.
        pid: its first process; the others descend from it.
    """

    address: str
    grpc: str | None
    wire: Wire
    pid: int


@contextmanager
def triton(repository: Path, extra_args: tuple[str, ...] = ()) -> Iterator[Endpoint]:
    """tritonserver on an exported repository, whatever its topology."""
    server = Server(
        repository,
        ports=Ports.free(),
        startup_timeout_s=START_TIMEOUT_S,
        extra_args=extra_args,
    )
    with server:
        yield Endpoint(server.http_url, server.url, TRITON, server.pid)


@contextmanager
def fastapi(repository: Path) -> Iterator[Endpoint]:
    """FastAPI under uvicorn with a worker per core; `fastapi_app` says what is in it."""
    port = _free_ports()[0]
    workers = cores()
    command = [
        *(sys.executable, "-m", "uvicorn", "perf.contenders.fastapi_app:app"),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)),
        *("--loop", "uvloop", "--http", "httptools", "--no-access-log"),
        # Clients keep their connections, as a proxy would; the default closes them after 5 s.
        *("--timeout-keep-alive", "300", "--backlog", "2048"),
    ]
    variables = {fastapi_app.REPOSITORY: str(repository.resolve())}

    ready = ("Application startup complete", workers)  # each says so when it has loaded
    with _running("FastAPI", command, variables, ready) as pid:
        yield Endpoint(f"127.0.0.1:{port}", None, JSON, pid)


@contextmanager
def pytriton(repository: Path) -> Iterator[Endpoint]:
    """PyTriton's own serving; see `pytriton_server`."""
    http, grpc = _free_ports()
    command = [
        *(sys.executable, "-m", "perf.contenders.pytriton_server"),
        *("--repository", str(repository.resolve())),
        *("--http-port", str(http), "--grpc-port", str(grpc)),
    ]
    # Its stubs embed a libpython and must find this interpreter's, not the system's.
    library = loader_environment((Path(sysconfig.get_config_var("LIBDIR")),))
    variables = {"LD_LIBRARY_PATH": library["LD_LIBRARY_PATH"]}
    with ExitStack() as stack:
        pid = _patiently(
            lambda: stack.enter_context(_running("PyTriton", command, variables, (READY, 1)))
        )
        yield Endpoint(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", TRITON, pid)


def _patiently(start: Callable[[], int]) -> int:
    """Start PyTriton, again where its stubs did not hear from it within a second: a limit that is
    written in it, and that a busy machine exceeds."""
    for _ in range(START_ATTEMPTS - 1):
        try:
            return start()
        except ContenderError as error:
            if not any(text in str(error) for text in HANDSHAKE):
                raise
    return start()


@contextmanager
def _running(
    name: str, command: list[str], variables: dict[str, str], ready: tuple[str, int]
) -> Iterator[int]:
    """Runs a server of one thread a process, from when its log holds a text so often. -> pid."""
    with tempfile.TemporaryDirectory(prefix="contender-") as folder:
        path = Path(folder) / "log"
        threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
        with path.open("wb") as log:
            server = subprocess.Popen(
                process.tied(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, **threads, "CASCADE_THREADS": "1", **variables},
                start_new_session=True,
            )
        try:
            _wait(name, server, path, ready)
            yield server.pid
        finally:
            _end(server)


def _wait(name: str, server: subprocess.Popen[bytes], log: Path, ready: tuple[str, int]) -> None:
    text, times = ready
    deadline = time.monotonic() + START_TIMEOUT_S
    while log.read_text(errors="replace").count(text) < times:
        if server.poll() is not None or time.monotonic() > deadline:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            what = (
                f"ended with {server.returncode}" if server.returncode else "did not start in time"
            )
            raise ContenderError(f"{name} {what}:\n{tail}")
        time.sleep(0.1)


def _end(server: subprocess.Popen[bytes]) -> None:
    """In order; what a server killed by force leaves behind is ended too."""
    try:
        family = psutil.Process(server.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.end(server, EXIT_TIMEOUT_S)
    for left in psutil.wait_procs(family, timeout=5)[1]:
        left.kill()


def _free_ports() -> tuple[int, int]:
    ports = Ports.free().resolve("127.0.0.1")
    return ports.http, ports.grpc
