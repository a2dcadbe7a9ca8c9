"""Whether a server answers, and correctly: python -m cascade.server.health --url HOST:PORT

Sends a real request and checks the answer. Server 2.51 reports itself live and ready while the
process of a model is dead and every request fails. Prints one line; exit code 0 = healthy, 1 = not.
A server that rejects the request because its queues are full is asked again until the timeout: an
overloaded server counts as healthy, a restart would not help.

For the health check of Docker (HEALTHCHECK) or Kubernetes (exec).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from cascade import errors
from cascade.server import probe
from cascade.spec import ENSEMBLE


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    options = _parser().parse_args(argv)
    start = time.monotonic()
    try:
        with grpc.InferenceServerClient(options.url, **_tls(options)) as client:
            probe.ask_until_available(client, options.model, options.timeout_s)
    except (InferenceServerException, probe.ProbeError) as error:
        text = error.message() if isinstance(error, InferenceServerException) else str(error)
        print(f"unhealthy: {options.model} at {options.url}: {' '.join(text.split())}")
        return 1
    ms = 1000 * (time.monotonic() - start)
    print(f"healthy: {options.model} at {options.url} answered in {ms:.0f} ms")
    return 0


def _tls(options: argparse.Namespace) -> dict[str, Any]:
    files: dict[str, Path | None] = {
        "root_certificates": options.tls_ca,
        "private_key": options.tls_key,
        "certificate_chain": options.tls_cert,
    }
    given = {name: str(path) for name, path in files.items() if path}
    for path in given.values():
        open(path).close()  # the client reports a missing file only after a traceback
    return {"ssl": True, **given} if given else {}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cascade.server.health",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", default="127.0.0.1:8001", help="HOST:PORT of gRPC [%(default)s]")
    parser.add_argument("--model", default=ENSEMBLE, help="to ask [%(default)s]")
    parser.add_argument("--timeout-s", type=float, default=5.0, help="[%(default)s]")
    parser.add_argument("--tls-ca", type=Path, metavar="PEM", help="encrypt; trust this authority")
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="this client's key")
    parser.add_argument("--tls-cert", type=Path, metavar="PEM", help="this client's certificate")
    return parser


if __name__ == "__main__":
    errors.run(main)
