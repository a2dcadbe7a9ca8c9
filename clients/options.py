"""Command-line options that every client shares: where the server is and how to reach it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cascade.client.recommender import URL
from cascade.client.transport import Tls


def add_connection(parser: argparse.ArgumentParser, deadline_ms: int) -> None:
    """Add the options that `connection` reads."""
    group = parser.add_argument_group("server")
    group.add_argument("--url", default=URL, help="host:port of its gRPC endpoint (%(default)s)")
    group.add_argument(
        "--deadline-ms",
        type=positive,
        default=deadline_ms,
        help="longest time for a request, retries included (%(default)s)",
    )
    group.add_argument("--tls", action="store_true", help="encrypt; trust the usual authorities")
    group.add_argument("--tls-ca", type=Path, metavar="PEM", help="encrypt; trust this authority")
    group.add_argument("--tls-key", type=Path, metavar="PEM", help="encrypt; this client's key")
    group.add_argument(
        "--tls-cert", type=Path, metavar="PEM", help="encrypt; this client's certificate"
    )


def connection(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of a `Recommender` or an `AsyncRecommender`.

    Raises:
        ValueError: the TLS files are missing or incomplete.
    """
    files = (arguments.tls_ca, arguments.tls_key, arguments.tls_cert)
    encrypt = arguments.tls or any(path is not None for path in files)
    return {
        "url": arguments.url,
        "deadline_s": arguments.deadline_ms / 1000,
        "tls": Tls(*files) if encrypt else None,
    }


def positive(text: str) -> int:
    """An argparse type: an integer from 1 on."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer from 1 on, got {text!r}")
    return value
