"""Run a model repository in the foreground: python -m cascade.server --repository DIR

Prints one line when the server answers, supervises it from then on (`supervisor`), stops it in
order on SIGTERM and Ctrl-C, and ends with its exit code; with 1 when the server does not answer.
Arguments after `--` go to tritonserver unchanged.

Loading models and other changes of the server take the control key: the one in the file
`--control-key-file`, else in the variable CASCADE_CONTROL_KEY, else a random one.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from cascade import errors
from cascade.errors import CascadeError
from cascade.server import arguments, cleanup, process, security
from cascade.server.launcher import Ports, Server, ServerError
from cascade.server.security import SecurityError, ServerTls, TrustedKeys
from cascade.server.supervisor import Supervisor
from cascade.spec import ENSEMBLE
from cascade.telling import say, tell


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    server, started = _server(_parser().parse_args(argv)), False

    def stop(number: int, frame: FrameType | None) -> None:
        server.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        process.check_files()
        if elsewhere := cleanup.other_than_wanted():
            tell(f"{elsewhere}\n")
        server.start()
        say(_ready(server))
        started = True
        code = Supervisor(server).watch()
        if code is None:
            return server.stop()
        tell(f"tritonserver ended with {code}:\n{server.log_excerpt()}\n")
        return code if code >= 0 else 128 - code  # a signal, in a shell's notation
    except CascadeError as error:
        if server.cancelled:
            return 0  # by a signal, while it started
        if isinstance(error, ServerError) and error.log:
            tell(f"{error.log}\n")
            error = CascadeError(error.message)
        if not started:
            raise error from None
        tell(f"error: {' '.join(str(error).splitlines())}\n")  # waits for no reader
        return 1
    finally:
        server.stop()


def _server(options: argparse.Namespace) -> Server:
    traces = arguments.traces(options.otlp, options.otlp_rate) if options.otlp else ()
    return Server(
        options.repository,
        host=options.host,
        ports=Ports(options.http_port, options.grpc_port, options.metrics_port),
        models=options.models,
        log=options.log,
        startup_timeout_s=options.startup_timeout_s,
        exit_timeout_s=options.exit_timeout_s,
        probe=options.probe or None,
        control_key=security.control_key(options.control_key_file),
        tls=_tls(options),
        trust=TrustedKeys.read(options.trust) if options.trust else None,
        extra_args=(*traces, *options.extra),
    )


def _tls(options: argparse.Namespace) -> ServerTls | None:
    cert, key, client_ca = options.tls_cert, options.tls_key, options.tls_client_ca
    if (cert is None) != (key is None):
        raise SecurityError("--tls-cert and --tls-key come together; one is missing")
    if cert is None and client_ca is not None:
        raise SecurityError("--tls-client-ca needs --tls-cert and --tls-key")
    return None if cert is None else ServerTls(cert, key, client_ca, options.tls_name)


def _ready(server: Server) -> str:
    http = f"http {server.http_url}, " if server.tls is None else ""
    return (
        f"ready: tritonserver {server.version} (pid {server.pid}, threads per "
        f"process: {server.threads}), grpc {server.url}, {http}"
        f"metrics {server.metrics_url}, log {server.log_path}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cascade.server",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repository", type=Path, required=True, help="the model repository")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on [%(default)s]")
    for service, port in Ports().by_service().items():
        parser.add_argument(f"--{service}-port", type=int, default=port, help="0 = any free one")
    parser.add_argument("--models", nargs="+", help="load only these")
    parser.add_argument("--log", type=Path, help="file to append the server's log to")
    parser.add_argument("--probe", default=ENSEMBLE, help="model asked at start; '' = none")
    parser.add_argument("--startup-timeout-s", type=float, default=120)
    parser.add_argument("--exit-timeout-s", type=int, default=10)
    parser.add_argument("--control-key-file", type=Path, help="holds the control key")
    parser.add_argument(
        "--trust", type=Path, nargs="+", metavar="PEM", help="serve only what these keys signed"
    )
    tls = parser.add_argument_group("TLS", "for gRPC; HTTP, which has none, is then off")
    tls.add_argument("--tls-cert", type=Path, metavar="PEM", help="the server's certificate")
    tls.add_argument("--tls-key", type=Path, metavar="PEM", help="its key")
    tls.add_argument("--tls-client-ca", type=Path, metavar="PEM", help="clients need its signature")
    tls.add_argument("--tls-name", default=ServerTls.name, help="in the certificate [%(default)s]")
    parser.add_argument("--otlp", metavar="URL", help="send traces to this OpenTelemetry collector")
    parser.add_argument("--otlp-rate", type=int, default=1, help="trace one request of [1]")
    parser.add_argument("extra", nargs="*", help="after --: arguments of tritonserver")
    return parser


if __name__ == "__main__":
    errors.run(main)
