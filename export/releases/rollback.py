"""`python -m export rollback --repository DIR --url HOST:PORT`: back to the release before.

The server keeps that one loaded, so it is a switch of milliseconds; `--to` goes to any other that
is kept, which has to be loaded first. What was live stays on disk.
"""

from __future__ import annotations

import argparse

from cascade.errors import run
from export.releases.command import add_server, publisher, report


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m export rollback", description=__doc__)
    add_server(parser)
    parser.add_argument("--to", type=int, help="number of the release [the one before]")
    args = parser.parse_args()
    report(publisher(args).roll_back(args.to))


if __name__ == "__main__":
    run(main)
