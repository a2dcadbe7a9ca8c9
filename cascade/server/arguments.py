"""The command line of tritonserver, safe by default."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from cascade.server import security
from cascade.server.ports import Ports
from cascade.server.security import ServerTls

# A thread is handed its answers through a socket with room for 278 of them. What does not fit is
# lost: Triton does not look at whether it went in. Two threads lost some of a thousand clients'.
HTTP_THREADS = 8
GPU_DEVICE = Path("/dev/nvidiactl")
ALL_MODELS = ("*",)


def services(host: str, ports: Ports, tls: ServerTls | None) -> Iterator[str]:
    """Where it listens, and to whom."""
    for service, port in ports.by_service().items():
        if tls is None or service != "http":
            yield f"--{service}-address={host}"
            yield f"--{service}-port={port}"
    if tls is None:
        yield f"--http-thread-count={HTTP_THREADS}"
    else:
        yield from tls.arguments()


def control(key: str, models: Sequence[str] | None) -> Iterator[str]:
    """Explicit model control: a model whose process died must be unloaded to be loaded again, and
    a release is switched without a restart. Only who has the key may do it."""
    yield "--model-control-mode=explicit"
    for model in ALL_MODELS if models is None else models:
        yield f"--load-model={model}"
    yield from security.arguments(key)


def lifetime(name: str, repository: Path, exit_timeout_s: int) -> Iterator[str]:
    """What it serves, under which name, and how it starts and ends."""
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
    """OpenTelemetry: a span per request and member, sent to a collector over HTTP.

    Args:
        otlp: URL of the collector, such as http://127.0.0.1:4318/v1/traces.
        rate: one request of so many is traced.
    """
    yield "--trace-config=mode=opentelemetry"
    yield f"--trace-config=opentelemetry,url={otlp}"
    for option in ("level=TIMESTAMPS", f"rate={rate}", "count=-1"):
        yield f"--trace-config={option}"
