"""`python -m export --checkpoints DIR --repository DIR`: checkpoints to a Triton repository."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from export import arguments


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--version", type=int, default=1, help="release number [%(default)s]")
    arguments.add(parser)
    args = parser.parse_args()
    arguments.export_of(parser, args, args.repository, args.version).run()


if __name__ == "__main__":
    try:
        main()
    except arguments.EXPECTED as error:
        sys.exit(f"error: {error}")
