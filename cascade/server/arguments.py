"""The command line of tritonserver, safe by default, and the ports it listens on."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cascade.server import security
from cascade.server.process import ServerError
from cascade.server.security import ServerTls

# A thread receives its answers through a socket that holds 278 of them. Triton does not check
# whether an answer fitted, so the rest is lost: two threads lost answers of a thousand clients.
HTTP_THREADS = 8
GPU_DEVICE = Path("/dev/nvidiactl")


@dataclass(frozen=True)
class Ports:
    """Where the three services listen; 0 = choose a free port at the start."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    @classmethod
    def free(cls) -> Ports:
        return cls(0, 0, 0)

    def resolve(self, host: str) -> Ports:
        """Fill in the zeros. Raises ServerError if a wanted port is in use."""
        chosen = []
        with ExitStack() as stack:
            for port in self.by_service().values():
                try:
                    bound = stack.enter_context(socket.create_server((host, port), backlog=1))
                except OSError as error:
                    raise ServerError(
                        f"cannot listen on {host}:{port}: {error.strerror}. Choose another port (0 "
                        "= any free one) or stop what listens there."
                    ) from error
                chosen.append(bound.getsockname()[1])
        return Ports(*chosen)

    def by_service(self) -> dict[str, int]:
        """By tritonserver's name of the service."""
        return {"http": self.http, "grpc": self.grpc, "metrics": self.metrics}


def services(host: str, ports: Ports, tls: ServerTls | None) -> Iterator[str]:
    """The addresses that the services listen on, and whether they encrypt."""
    for service, port in ports.by_service().items():
        if tls is None or service != "http":
            yield f"--{service}-address={host}"
            yield f"--{service}-port={port}"
    if tls is None:
        yield f"--http-thread-count={HTTP_THREADS}"
    else:
        yield from tls.arguments()


def control(key: str, models: Sequence[str] | None) -> Iterator[str]:
    """Explicit model control, guarded by the key. A model whose process died must be unloaded to be
    loaded again, and a release is switched without a restart."""
    yield "--model-control-mode=explicit"
    for model in ("*",) if models is None else models:
        yield f"--load-model={model}"
    yield from security.arguments(key)


def lifetime(name: str, repository: Path, exit_timeout_s: int) -> Iterator[str]:
    """The server's name and repository, and how it starts and ends."""
    yield f"--id={name}"
    yield f"--model-repository={repository}"
    yield "--rate-limit=execution_count"  # the ranks of instances count
    yield f"--backend-config=python,shm-region-prefix-name={name}"
    yield f"--exit-timeout-secs={exit_timeout_s}"
    # Else the Python backend starts every model once more, to ask what its config.pbtxt leaves out.
    yield "--disable-auto-complete-config"
    yield f"--allow-gpu-metrics={'true' if GPU_DEVICE.exists() else 'false'}"
    yield from ("--strict-readiness=true", "--exit-on-error=true", "--log-verbose=0")


def traces(otlp: str, rate: int) -> Iterator[str]:
    """OpenTelemetry: of one request in `rate`, a span per member, sent over HTTP to the collector
    at the URL `otlp`, such as http://127.0.0.1:4318/v1/traces."""
    where = ("mode=opentelemetry", f"opentelemetry,url={otlp}")
    for option in (*where, "level=TIMESTAMPS", f"rate={rate}", "count=-1"):
        yield f"--trace-config={option}"
