"""What the commands that change releases have in common."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from cascade.server import security
from cascade.server.security import KEY_VARIABLE
from export.releases.control import Control
from export.releases.publishing import Published, Publisher
from export.releases.repository import Repository


def add_server(parser: argparse.ArgumentParser) -> None:
    """Where the repository is, and who serves it."""
    parser.add_argument("--repository", type=Path, required=True, help="what the server serves")
    parser.add_argument("--url", help="HOST:PORT of its gRPC service [change the files alone]")
    parser.add_argument(
        "--control-key-file", type=Path, help=f"what the server wants to see [{KEY_VARIABLE}]"
    )
    parser.add_argument("--keep", type=int, default=3, help="releases on disk [%(default)s]")


def publisher(args: argparse.Namespace) -> Publisher:
    """What the options of `add_server` say."""
    file, key = args.control_key_file, os.environ.get(KEY_VARIABLE)
    key = security.control_key(file) if file or key else None
    control = Control(args.url, security.headers(key) if key else None) if args.url else None
    return Publisher(Repository(args.repository), control, args.keep, say)


def say(line: str) -> None:
    """Progress, at once: whoever watches a pipe wants to see it, too."""
    print(line, flush=True)


def report(published: Published) -> None:
    """One line about what is live now."""
    took = "" if published.switch_ms is None else f", switched in {published.switch_ms:.1f} ms"
    print(f"release {published.number} is live (before: {published.before}){took}")
