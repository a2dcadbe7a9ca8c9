"""`python -m export publish --repository DIR --url HOST:PORT --checkpoints DIR`: the next release.

Exports the checkpoints beside the live release (or takes an export made elsewhere, `--release`),
loads it, asks it the canary requests, and switches. Requests keep flowing; if anything is wrong,
the live release stays. The server has to run under explicit model control, as
`python -m cascade.server` starts it. Without --url only the repository changes, for a server that
is started later. Takes all options of `python -m export`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cascade.errors import run
from export import arguments
from export.releases.command import add_server, publisher, report
from export.releases.transfer import from_export


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m export publish", description=__doc__)
    add_server(parser)
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--checkpoints", type=Path, help="export these")
    origin.add_argument("--release", type=Path, metavar="REPOSITORY", help="take this export")
    parser.add_argument("--share", type=float, help="of the users who get it [all of them]")
    arguments.add(parser)
    args = parser.parse_args()

    def make(target: Path, number: int) -> None:
        arguments.export_of(parser, args, target, number).run()

    source = from_export(args.release) if args.release else make
    report(publisher(args).publish(source, args.share))


if __name__ == "__main__":
    run(main)
