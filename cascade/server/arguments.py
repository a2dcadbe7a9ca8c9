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
CONNECTION_AGE_MS = 300_000
PING_MS = 1000


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
        chosen, bare = [], host.strip("[]")
        family = socket.AF_INET6 if is_ipv6(host) else socket.AF_INET
        with ExitStack() as stack:
            for port in self.by_service().values():
                try:
                    listener = socket.create_server((bare, port), family=family, backlog=1)
                    bound = stack.enter_context(listener)
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
            yield f"--{service}-address={_address(host, service)}"
            yield f"--{service}-port={port}"
    if tls is None:
        yield f"--http-thread-count={HTTP_THREADS}"
    else:
        yield from tls.arguments()


def later_ports(ports: Ports, tls: ServerTls | None, extra: Sequence[str]) -> Iterator[int]:
    """The ports that the server opens after that of gRPC, unless further arguments say otherwise of
    them."""
    changed = {argument.partition("=")[0] for argument in extra}
    later = {"metrics": ports.metrics} | ({} if tls else {"http": ports.http})
    for service, port in later.items():
        if not changed & {f"--allow-{service}", f"--{service}-port", f"--{service}-address"}:
            yield port


def is_ipv6(host: str) -> bool:
    """Whether an address, with or without its brackets, is one of IPv6."""
    return ":" in host


def _address(host: str, service: str) -> str:
    """As gRPC's server and the HTTP servers write an address of IPv6."""
    if not is_ipv6(host):
        return host
    bare = host.strip("[]")
    return f"[{bare}]" if service == "grpc" else f"ipv6:{bare}"


def control(key: str, models: Sequence[str] | None) -> Iterator[str]:
    """Explicit model control, guarded by the key. A model whose process died must be unloaded to be
    loaded again, and a release is switched without a restart."""
    yield "--model-control-mode=explicit"
    for model in ("*",) if models is None else models:
        yield f"--load-model={model}"
    yield from security.arguments(key)


def connections() -> Iterator[str]:
    """Of gRPC: clients may ping once a second, also without calls, where Triton's defaults hang up
    after a few pings within five minutes. The server looks for dead clients itself, and asks each
    one to connect again after a while (calls under way end as usual), so that clients behind one
    address spread over servers that were added since."""
    yield "--grpc-keepalive-permit-without-calls=1"
    yield f"--grpc-http2-min-recv-ping-interval-without-data={PING_MS}"
    yield "--grpc-http2-max-ping-strikes=0"
    yield "--grpc-keepalive-time=60000"
    yield f"--grpc-max-connection-age={CONNECTION_AGE_MS}"
    # Requests and answers that are kept to be used again keep the size of the largest they held.
    yield "--grpc-infer-allocation-pool-size=0"


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
