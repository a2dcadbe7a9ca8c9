"""Run a model repository in the foreground: python -m cascade.serving --repository DIR.

Prints one line when the server answers, stops it in order on SIGTERM and Ctrl-C, and ends with its
exit code. What follows `--` goes to tritonserver as it is.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from cascade.serving.binaries import BinaryError
from cascade.serving.launcher import Ports, Server, ServerError
from cascade.spec import ENSEMBLE


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    options = _parser().parse_args(argv)
    server = Server(
        options.repository,
        host=options.host,
        ports=Ports(options.http_port, options.grpc_port, options.metrics_port),
        models=options.models,
        log=options.log,
        startup_timeout_s=options.startup_timeout_s,
        exit_timeout_s=options.exit_timeout_s,
        probe=options.probe or None,
        extra_args=options.extra,
    )
    signals: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        server.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        server.start()
        print(_ready(server), flush=True)
        code = server.wait()
        if code is None:
            return server.stop()
        print(f"tritonserver ended with {code}:\n{server.log_excerpt()}", file=sys.stderr)
        return code if code >= 0 else 128 - code  # as a shell tells of a signal
    except (BinaryError, ServerError, PermissionError, ValueError) as error:
        if signals:
            return 0  # asked to stop before it was up
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        server.stop()


def _ready(server: Server) -> str:
    return (
        f"ready: tritonserver {server.version} (pid {server.pid}, threads per "
        f"process: {server.threads}), grpc {server.url}, http {server.http_url}, "
        f"metrics {server.metrics_url}, log {server.log_path}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cascade.serving", description=__doc__)
    parser.add_argument("--repository", type=Path, required=True, help="the model repository")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    for service, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        parser.add_argument(f"--{service}-port", type=int, default=port, help="0 = any free one")
    parser.add_argument("--models", nargs="+", help="load only these (explicit model control)")
    parser.add_argument("--log", type=Path, help="file to append the server's log to")
    parser.add_argument("--probe", default=ENSEMBLE, help="model asked at start; '' = none")
    parser.add_argument("--startup-timeout-s", type=float, default=120)
    parser.add_argument("--exit-timeout-s", type=int, default=10)
    parser.add_argument("extra", nargs="*", help="after --: arguments of tritonserver")
    return parser


if __name__ == "__main__":
    sys.exit(main())
