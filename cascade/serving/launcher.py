"""Starts tritonserver safely, waits until it answers a real request, and leaves nothing behind.

    with Server(repository) as server:
        client = grpc.InferenceServerClient(server.url)

The server listens on the loopback interface unless told otherwise. When this process ends in
whatever way, the server ends too: `stop` does it in order, the kernel tells the server when this
process dies, and `reap`, which every start calls, clears what a `kill -9` left.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from cascade.serving import binaries, probe, process, reaper, server_log
from cascade.serving.reaper import reap
from cascade.serving.threads import cores, threads_per_process

__all__ = ["Ports", "Server", "ServerError", "reap"]

POLL_S = 0.1
REQUEST_TIMEOUT_S = 10.0
NOT_YET = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")
# By default gRPC waits ever longer between attempts: up to two minutes after a long load.
QUICK_RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]
GPU_DEVICE = Path("/dev/nvidiactl")


class ServerError(RuntimeError):
    """The server did not start or does not answer; the message holds what its log says."""


@dataclass(frozen=True)
class Ports:
    """Where the three services listen; 0 = choose a free port at the start."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    @classmethod
    def free(cls) -> Ports:
        """Three ports that nothing listens on, chosen when the server starts."""
        return cls(0, 0, 0)

    def resolve(self, host: str) -> Ports:
        """Fill in the zeros.

        Raises:
            ServerError: something listens on a wanted port already.
        """
        with ExitStack() as stack:
            chosen = [stack.enter_context(_bound(host, p)) for p in self._all()]
            return Ports(*(bound.getsockname()[1] for bound in chosen))

    def _all(self) -> tuple[int, int, int]:
        return self.http, self.grpc, self.metrics


def _bound(host: str, port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(1)
    except OSError as error:
        bound.close()
        raise ServerError(
            f"cannot listen on {host}:{port}: {error.strerror}. Choose another port (0 = any free "
            "one) or stop what listens there."
        ) from error
    return bound


class Server:
    """A tritonserver that lives as long as this object's `with` block.

    Args:
        repository: the model repository.
        host: address to listen on. Triton has no access control by default: an address that other
            machines reach needs a proxy or Triton's restricted protocols in front.
        ports: where to listen; by default three free ones.
        models: load only these, by explicit model control, which lets clients load and unload.
            By default all models are loaded and nobody can change that.
        log: file that the server's output is appended to; by default one that `stop` deletes.
        startup_timeout_s: longest time until the probe is answered.
        exit_timeout_s: how long requests under way may take to end when the server stops.
        probe: the model that is sent a real request before the server counts as started; None to
            trust its readiness.
        extra_args: further arguments of tritonserver; they win over those set here.
    """

    def __init__(
        self,
        repository: Path,
        *,
        host: str = "127.0.0.1",
        ports: Ports | None = None,
        models: Sequence[str] | None = None,
        log: Path | None = None,
        startup_timeout_s: float = 120,
        exit_timeout_s: int = 10,
        probe: str | None = "recommend",
        extra_args: Sequence[str] = (),
    ) -> None:
        self.repository = repository.resolve()
        self.host = host
        self.ports = ports or Ports.free()
        self.models = models
        self.log = log
        self.startup_timeout_s = startup_timeout_s
        self.exit_timeout_s = exit_timeout_s
        self.probe = probe
        self.extra_args = tuple(extra_args)
        self.name = ""
        self.threads = 0
        self.version = ""
        self.log_path = Path(os.devnull)
        self._log_start = 0
        self._cancelled = False
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """HOST:PORT of the gRPC service, as clients on this machine reach it."""
        return f"{self._reachable_host}:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        return f"{self._reachable_host}:{self.ports.http}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self._reachable_host}:{self.ports.metrics}/metrics"

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerError("the server has not been started")
        return self._process

    @property
    def _reachable_host(self) -> str:
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until the probe is answered.

        Raises:
            BinaryError: there is no tritonserver that fits this Python.
            ServerError: it ended, did not answer in time, or was cancelled.
        """
        if self._process is not None:
            raise ServerError("the server has been started already")
        if not self.repository.is_dir():
            raise ServerError(
                f"there is no model repository at {self.repository}; make one (python -m export)"
            )
        reap()
        binary = binaries.tritonserver()
        self.threads = threads_per_process(self.repository)
        self.ports = self.ports.resolve(self.host)
        self.name = reaper.register()
        try:
            self._launch(binary)
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise

    def _launch(self, binary: binaries.ServerBinary) -> None:
        folder = reaper.run_folder() / self.name
        self.log_path = self.log or folder / "log"
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        arguments = (
            *self._arguments(),
            *binary.assemble(folder / "backends", process.PACKAGE),
            *self.extra_args,
        )
        with self.log_path.open("ab") as log:
            self._log_start = self.log_path.stat().st_size
            self._process = subprocess.Popen(
                process.tied([str(binary.path), *arguments]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=process.environment(binary, self.name, self.threads),
                start_new_session=True,  # a Ctrl-C is for the launcher, which then stops it
            )

    def cancel(self) -> None:
        """Make `start` fail and `wait` return soon. It only sets a flag: a signal handler may call
        it, while an exception that it raised could get lost in the code that it interrupts."""
        self._cancelled = True

    def wait(self) -> int | None:
        """Wait for the server to end by itself, and return its exit code; None when cancelled."""
        # It must not block: the kernel may hand a signal to one of gRPC's threads, and then nothing
        # wakes this one up to run Python's handler.
        while (code := self._running.poll()) is None and not self._cancelled:
            time.sleep(POLL_S)
        return code

    def stop(self) -> int:
        """End the server: politely, then by force. Returns its exit code, 0 if none runs."""
        try:
            return 0 if self._process is None else process.end(self._process, self.exit_timeout_s)
        finally:
            self._process = None
            if self.name:
                reaper.remove(self.name)

    def _arguments(self) -> Iterator[str]:
        yield f"--id={self.name}"
        yield f"--model-repository={self.repository}"
        for service, port in zip(("http", "grpc", "metrics"), self.ports._all(), strict=True):
            yield f"--{service}-address={self.host}"
            yield f"--{service}-port={port}"
        yield "--rate-limit=execution_count"  # the ranks of instances count
        yield f"--http-thread-count={min(8, cores())}"
        yield f"--model-control-mode={'none' if self.models is None else 'explicit'}"
        for model in self.models or ():
            yield f"--load-model={model}"
        yield f"--backend-config=python,shm-region-prefix-name={self.name}"
        yield f"--exit-timeout-secs={self.exit_timeout_s}"
        yield f"--allow-gpu-metrics={'true' if GPU_DEVICE.exists() else 'false'}"
        yield from ("--strict-readiness=true", "--exit-on-error=true", "--log-verbose=0")

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + self.startup_timeout_s
        reason = "it was not ready"
        with grpc.InferenceServerClient(self.url, channel_args=QUICK_RECONNECT) as client:
            while time.monotonic() < deadline:
                if self._cancelled:
                    raise ServerError("cancelled while it was starting")
                code = self._running.poll()
                if code is not None:
                    raise ServerError(f"tritonserver ended with {code}:\n{self.log_excerpt()}")
                try:
                    if self._answers(client):
                        return
                except probe.ProbeError as error:
                    raise ServerError(f"{error}\n{self.log_excerpt()}") from error
                except InferenceServerException as error:
                    if error.status() not in NOT_YET:
                        raise ServerError(
                            f"tritonserver runs, but the model {self.probe!r} does not answer: "
                            f"{error.message()}\n{self.log_excerpt()}"
                        ) from error
                    reason = error.message()
                time.sleep(POLL_S)
        raise ServerError(
            f"tritonserver did not answer within {self.startup_timeout_s:g} s ({reason}):\n"
            f"{self.log_excerpt()}"
        )

    def _answers(self, client: grpc.InferenceServerClient) -> bool:
        if not client.is_server_ready(client_timeout=REQUEST_TIMEOUT_S):
            return False
        server = client.get_server_metadata(client_timeout=REQUEST_TIMEOUT_S)
        if server.name != self.name:
            raise ServerError(f"another server, {server.name!r}, listens on {self.url}")
        self.version = server.version
        if self.probe is not None:
            probe.send(client, self.probe, REQUEST_TIMEOUT_S)
        return True

    def log_excerpt(self) -> str:
        """What the server's log says about problems since the start."""
        if not self.log_path.is_file():
            return f"(its log went to {self.log_path})"  # a terminal or a pipe
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            return server_log.excerpt(log.read().decode(errors="replace"))
