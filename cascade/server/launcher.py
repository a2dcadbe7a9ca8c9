"""Starts tritonserver safely, waits until it answers a real request, and leaves nothing behind.

    with Server(repository) as server, server.connect() as client:
        client.infer(...)

The server listens on the loopback interface by default, and only requests with its key load models
or change it (`security`). It ends with this process: `stop` ends it in order, the kernel signals it
when this process dies, and every start removes what a `kill -9` left (`cleanup`).
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from cascade.client import channel
from cascade.client.errors import DEADLINE_EXCEEDED, UNAVAILABLE
from cascade.server import arguments, binaries, cleanup, probe, process, security, shell, starved
from cascade.server.arguments import Ports
from cascade.server.process import ServerError
from cascade.server.security import HeldTls, ServerTls, TrustedKeys
from cascade.server.stalled import Stalled
from cascade.server.threads import threads_per_process
from cascade.server.trust import TrustedCopy
from cascade.spec import ENSEMBLE
from cascade.telling import tell

__all__ = ["Ports", "Server", "ServerError"]

POLL_S = 0.1
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # where a client finds it
STARTS = 3  # server 2.51 crashes or hangs in about one of thousands


@dataclass(eq=False)
class Server:
    """A tritonserver that lives as long as this object's `with` block.

    Args:
        host: address to listen on. Every client that reaches it may ask for recommendations; an
            address that other machines reach needs `tls` or a proxy in front.
        models: load only these; by default all of the repository.
        log: file that the server's output is appended to; by default one that `stop` deletes.
        startup_timeout_s: longest time until the probe is answered.
        exit_timeout_s: how long requests under way may take to end when the server stops.
        probe: the model that gets a real request before the server counts as started; None to
            trust the server's readiness.
        control_key: the key of requests that load models or change the server, see
            `control_headers`; by default that of `security.control_key`.
        tls: encrypt gRPC, and switch HTTP off, which cannot be encrypted.
        trust: serve only releases that one of these keys signed.
        extra_args: further arguments of tritonserver; they win over those set here.
    """

    repository: Path
    _: KW_ONLY
    host: str = "127.0.0.1"
    ports: Ports = field(default_factory=Ports.free)
    models: Sequence[str] | None = None
    log: Path | None = None
    startup_timeout_s: float = 120
    exit_timeout_s: int = 10
    probe: str | None = ENSEMBLE
    control_key: str = field(default_factory=security.control_key, repr=False)
    tls: ServerTls | None = None
    trust: TrustedKeys | None = None
    extra_args: Sequence[str] = ()

    name: str = field(default="", init=False)
    threads: int = field(default=0, init=False)
    version: str = field(default="", init=False)
    log_path: Path = field(default=Path(os.devnull), init=False)
    cancelled: bool = field(default=False, init=False)
    _binary: binaries.ServerBinary | None = field(default=None, init=False)
    _connection: tuple[HeldTls | None, dict[str, Any]] = field(
        default_factory=lambda: (None, {}), init=False, repr=False
    )
    _log: process.ServerLog | None = field(default=None, init=False)
    trusted: TrustedCopy | None = field(default=None, init=False)
    served_from: Path = field(default=Path(os.devnull), init=False)  # the repository, or its copy
    _safe: Path = field(default=Path(os.devnull), init=False)  # the same, under a safe path
    _shared: dict[str, cleanup.Shared] = field(default_factory=dict, init=False, repr=False)
    _python: Path = field(default=Path(os.devnull), init=False)  # the workers' python3 is in it
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _watch: starved.Watch | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.repository = self.repository.resolve()

    @property
    def url(self) -> str:
        """HOST:PORT of gRPC, as clients on this machine reach it."""
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
        return security.headers(self.control_key)

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
        host = EVERYWHERE.get(self.host.strip("[]"), self.host)
        return f"[{host.strip('[]')}]" if arguments.is_ipv6(host) else host

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def connect(self) -> grpc.InferenceServerClient:
        """A gRPC client of this server, in TLS where the server wants it: with the certificate of
        its start, as later files are the next start's."""
        tls, more = self._connection
        # No proxy on the way, whatever address of this machine the server listens on.
        return channel.connect(self.url, tls, {**channel.DIRECT, **more})

    def start(self) -> None:
        """Start the server and wait until the probe is answered. Raises BinaryError if there is no
        tritonserver that fits, ServerError if it ended, did not answer in time or was cancelled."""
        if self._process is not None:
            raise ServerError("the server has been started already")
        process.check_repository(self.repository, self.models)
        cleanup.remove_orphans()
        binary = binaries.tritonserver()
        self.ports = self.ports.resolve(self.host)
        self._connection = (None, {}) if self.tls is None else self.tls.connection()
        for starts_left in reversed(range(STARTS)):
            self.name = cleanup.register()
            try:
                self._launch(binary)
                self._wait_until_it_answers(last=not starts_left)
            except BaseException as error:
                self.stop()
                if not isinstance(error, process.CrashError) or not starts_left:
                    raise
                tell(f"while it started, {error.message}; starting it again\n")
            else:
                return

    def restore_files(self) -> bool:
        """Make again what was removed of the server's files, which every load takes -> whether its
        lock was. Raises RunFolderError: others could have made them; OSError: they cannot be."""
        removed = cleanup.keep(self.name)
        self._assemble()
        return removed

    def _assemble(self) -> tuple[str, ...]:
        """Make what the workers need of the run folder, backends and safe paths, where it is not
        there -> the arguments that name the backends."""
        if self._binary is None:
            return ()
        folder = cleanup.run_folder() / self.name
        cleanup.share(self.name, self._shared)
        self._safe = shell.safe(self.served_from, folder)
        self._python = shell.python(process.PACKAGE, folder)
        binaries.loader_environment(self._binary.libraries)
        return self._binary.assemble(folder / "backends", process.PACKAGE)

    def _launch(self, binary: binaries.ServerBinary) -> None:
        self._binary, self.served_from = binary, self.repository
        if self.trust is not None:
            copied = cleanup.run_folder() / self.name / "repository"
            self.trusted = TrustedCopy(self.repository, self.trust, copied)
            tell("".join(f"{line}\n" for line in self.trusted.make()))
            self.served_from = copied
        self.threads = threads_per_process(self.served_from)
        backends = self._assemble()
        self.log_path = self.log or cleanup.run_folder() / self.name / "log"
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        command = (
            str(binary.path),
            *arguments.lifetime(self.name, self._safe, self.exit_timeout_s),
            *arguments.services(self.host, self.ports, self.tls),
            *arguments.connections(),
            *arguments.control(self.control_key, self.models),
            *backends,
            *self.extra_args,
        )
        with process.open_log(self.log_path) as log:
            self._log = process.ServerLog.from_here(self.log_path)
            self._process = subprocess.Popen(
                process.tied(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=process.environment(
                    *(binary, self.name, self.threads, self.metrics_url, self._python),
                    self.repository,
                ),
                start_new_session=True,  # a Ctrl-C reaches the launcher alone, which stops it
            )
        self._watch = starved.Watch(self._process.pid, self.name)

    def cancel(self) -> None:
        """Make `start` fail and `Supervisor.watch` return soon. A signal handler may call this: an
        exception raised there could get lost in the code that it interrupts."""
        self.cancelled = True

    def poll(self) -> int | None:
        """The exit code, None while the server runs. Raises ServerError before `start`."""
        return self._running.poll()

    def stop(self) -> int:
        """End the server: let it answer the requests under way, tell it to end, then force it.
        Returns its exit code, 0 if none runs."""
        try:
            if self._process is None:
                return 0
            start = time.monotonic()
            if self.version and self.probe and self.poll() is None:
                with suppress(InferenceServerException), self.connect() as client:
                    process.drain(client, self.probe, self.control_headers, self.exit_timeout_s)
            left_s = self.exit_timeout_s - (time.monotonic() - start)
            return process.end(self._process, max(0.0, left_s))
        finally:
            self._process = None
            if self._watch is not None:
                self._watch.stop()
            self._watch = None
            if self._log is not None:
                self._log.close()
            self._log = None
            if self.name:
                cleanup.remove(self.name)

    def _wait_until_it_answers(self, last: bool) -> None:
        """Raises CrashError, of a server that hangs only where this is not the `last` start."""
        deadline, stalled = time.monotonic() + self.startup_timeout_s, Stalled(self.pid)
        reason = "it was not ready"
        with self.connect() as client:
            while time.monotonic() < deadline:
                if self.cancelled:
                    raise ServerError("cancelled while it was starting")
                code = self._running.poll()
                if code is not None:
                    said = self.log_excerpt()
                    again = -code in process.CRASHES or starved.GIVEN_UP in said
                    kind = process.CrashError if again else ServerError
                    raise kind(process.ended(code, said), said)
                try:
                    if self._answers(client):
                        return
                except probe.ProbeError as error:
                    raise self.failed(str(error)) from error
                except InferenceServerException as error:
                    reason = error.message()
                    if error.status() not in (UNAVAILABLE, DEADLINE_EXCEEDED):
                        runs = f"tritonserver runs, but the model {self.probe!r} does not answer"
                        raise self.failed(f"{runs}: {reason}") from error
                if not last and stalled:
                    raise process.CrashError("tritonserver hung", self.log_excerpt())
                time.sleep(POLL_S)
        raise self.failed(f"it did not answer within {self.startup_timeout_s:g} s ({reason})")

    def _answers(self, client: grpc.InferenceServerClient) -> bool:
        if not client.is_server_ready(client_timeout=process.REQUEST_TIMEOUT_S):
            return False
        process.wipe(self.pid, self.control_key)
        server = client.get_server_metadata(client_timeout=process.REQUEST_TIMEOUT_S)
        if server.name != self.name:
            raise ServerError(f"another server, {server.name!r}, listens on {self.url}")
        self.version = server.version
        if self.probe is not None:
            probe.send(client, self.probe, process.REQUEST_TIMEOUT_S)
        cleanup.hide_segments(self.name)
        later = arguments.later_ports(self.ports, self.tls, self.extra_args)
        return all(process.listens(self._reachable_host.strip("[]"), port) for port in later)

    def failed(self, message: str) -> ServerError:
        """The error with what the log says."""
        return ServerError(message, self.log_excerpt())

    def log_excerpt(self) -> str:
        """What the end of the server's log says about problems since the start."""
        if self._log is None:
            return f"(its log went to {self.log_path})"
        # Users know the repository by its own path.
        return self._log.excerpt({str(self._safe): str(self.repository)})
