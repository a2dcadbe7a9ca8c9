"""Starts tritonserver safely, waits until it answers a real request, and leaves nothing behind.

    with Server(repository) as server, server.connect() as client:
        client.infer(...)

The server listens on the loopback interface unless told otherwise, and only who has its key may
load models or change it (`security`). When this process ends in whatever way, the server ends too:
`stop` does it in order, the kernel tells the server when this process dies, and `reap`, which every
start calls, clears what a `kill -9` left.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from cascade.server import arguments, binaries, cleanup, probe, process, security, server_log
from cascade.server.cleanup import reap
from cascade.server.ports import Ports, ServerError
from cascade.server.security import ServerTls
from cascade.server.threads import threads_per_process

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


class Server:
    """A tritonserver that lives as long as this object's `with` block.

    Args:
        repository: the model repository.
        host: address to listen on. Whoever reaches it may ask for recommendations; an address that
            other machines reach wants `tls` or a proxy in front.
        ports: where to listen; by default three free ones.
        models: load only these; by default all of the repository.
        log: file that the server's output is appended to; by default one that `stop` deletes.
        startup_timeout_s: longest time until the probe is answered.
        exit_timeout_s: how long requests under way may take to end when the server stops.
        probe: the model that is sent a real request before the server counts as started; None to
            trust its readiness.
        control_key: what a request must bring that loads models or changes the server, see
            `control_headers`; by default one that only this object knows.
        tls: encrypt gRPC, and switch HTTP off, which cannot be encrypted.
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
        control_key: str | None = None,
        tls: ServerTls | None = None,
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
        self.tls = tls
        self.extra_args = tuple(extra_args)
        self.name = ""
        self.threads = 0
        self.version = ""
        self.log_path = Path(os.devnull)
        self.cancelled = False
        self._key = security.control_key() if control_key is None else control_key
        self._log_start = 0
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
    def control_headers(self) -> dict[str, str]:
        """The headers of a request, over gRPC or HTTP, that changes the server."""
        return security.headers(self._key)

    def connect(self) -> grpc.InferenceServerClient:
        """A gRPC client of this server, in TLS where the server wants it."""
        options, channel = ({}, []) if self.tls is None else self.tls.connection()
        channel_args = [*QUICK_RECONNECT, *channel]
        return grpc.InferenceServerClient(self.url, channel_args=channel_args, **options)

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
        self.name = cleanup.register()
        try:
            self._launch(binary)
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise

    def _launch(self, binary: binaries.ServerBinary) -> None:
        folder = cleanup.run_folder() / self.name
        self.log_path = self.log or folder / "log"
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        command = (
            str(binary.path),
            *arguments.lifetime(self.name, self.repository, self.exit_timeout_s),
            *arguments.services(self.host, self.ports, self.tls),
            *arguments.control(self._key, self.models),
            *binary.assemble(folder / "backends", process.PACKAGE),
            *self.extra_args,
        )
        with self.log_path.open("ab") as log:
            self._log_start = self.log_path.stat().st_size
            self._process = subprocess.Popen(
                process.tied(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=process.environment(binary, self.name, self.threads, self.metrics_url),
                start_new_session=True,  # a Ctrl-C is for the launcher, which then stops it
            )

    def cancel(self) -> None:
        """Make `start` fail and whoever waits return soon. It only sets a flag: a signal handler
        may call it, while an exception that it raised could get lost in the code that it
        interrupts."""
        self.cancelled = True

    def poll(self) -> int | None:
        """The exit code, None while it runs. Raises ServerError if it was never started."""
        return self._running.poll()

    def stop(self) -> int:
        """End the server: let it answer what is under way, tell it to end, then force it. Returns
        its exit code, 0 if none runs."""
        try:
            if self._process is None:
                return 0
            start = time.monotonic()
            if self.version and self.probe and self.poll() is None:
                self._drain(self.probe)
            left_s = self.exit_timeout_s - (time.monotonic() - start)
            return process.end(self._process, max(0.0, left_s))
        finally:
            self._process = None
            if self.name:
                cleanup.remove(self.name)

    def _drain(self, model: str) -> None:
        """Take away what clients call, and wait until the requests in it are answered. Told to end,
        server 2.51 closes the members of an ensemble before requests that are still on their way
        to them."""
        limits = {"headers": self.control_headers, "client_timeout": REQUEST_TIMEOUT_S}
        deadline = time.monotonic() + self.exit_timeout_s
        with suppress(InferenceServerException), self.connect() as client:
            client.unload_model(model, **limits)
            while time.monotonic() < deadline:
                models = client.get_model_repository_index(**limits).models
                if not any(m.name == model and m.state in ("READY", "UNLOADING") for m in models):
                    return
                time.sleep(POLL_S / 10)

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + self.startup_timeout_s
        reason = "it was not ready"
        with self.connect() as client:
            while time.monotonic() < deadline:
                if self.cancelled:
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
        process.wipe(self.pid, self._key)
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
