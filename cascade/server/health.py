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

from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from cascade import errors
from cascade.client import Tls
from cascade.server import probe
from cascade.spec import ENSEMBLE


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cascade.server.health",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", default="127.0.0.1:8001", help="HOST:PORT of gRPC [%(default)s]")
    parser.add_argument("--model", default=ENSEMBLE, help="to ask [%(default)s]")
    parser.add_argument("--timeout-s", type=float, default=5.0, help="[%(default)s]")
    Tls.add_arguments(parser)
    options = parser.parse_args(argv)
    tls = Tls.parsed(options)
    start = time.monotonic()
    try:
        with grpc.InferenceServerClient(options.url, **(tls.options() if tls else {})) as client:
            probe.ask_until_available(client, options.model, options.timeout_s)
    except (InferenceServerException, probe.ProbeError) as error:
        text = error.message() if isinstance(error, InferenceServerException) else str(error)
        print(f"unhealthy: {options.model} at {options.url}: {' '.join(text.split())}")
        return 1
    ms = 1000 * (time.monotonic() - start)
    print(f"healthy: {options.model} at {options.url} answered in {ms:.0f} ms")
    return 0


if __name__ == "__main__":
    errors.run(main)
