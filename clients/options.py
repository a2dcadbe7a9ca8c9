"""Command-line options of all clients: where the server is and how to reach it."""

from __future__ import annotations

import argparse
from typing import Any

from cascade.client import Tls
from cascade.client.recommender import URL
from cascade.errors import CascadeError


class UsageError(CascadeError, ValueError):
    """A program was given something that it cannot use."""


def add_connection(parser: argparse.ArgumentParser, deadline_ms: int) -> None:
    """Add the options that `connection` reads."""
    group = parser.add_argument_group("server")
    group.add_argument("--url", default=URL, help="host:port of its gRPC endpoint (%(default)s)")
    longest = "longest time for a request, retries included (%(default)s)"
    group.add_argument("--deadline-ms", type=positive, default=deadline_ms, help=longest)
    Tls.add_arguments(group)


def connection(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of a `Recommender` or an `AsyncRecommender`. Raises TlsError."""
    tls = Tls.parsed(arguments)
    return {"url": arguments.url, "deadline_s": arguments.deadline_ms / 1000, "tls": tls}


def positive(text: str) -> int:
    """An argparse type: an integer from 1 on."""
    value = int(text) if text.strip().isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer from 1 on, got {text!r}")
    return value
