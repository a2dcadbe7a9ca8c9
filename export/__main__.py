"""`python -m export build|publish|rollback|releases|split|catalogue|rewire|users`: one front.

Without a subcommand, `python -m export --checkpoints DIR --repository DIR` means `build`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from cascade.errors import run
from export import arguments

COMMANDS = {
    "publish": "export.releases.publish",
    "rollback": "export.releases.rollback",
    "releases": "export.releases.listing",
    "split": "export.releases.split",
    "catalogue": "export.releases.catalogue",
    "rewire": "export.releases.rewire",
    "users": "export.users",
}


def main() -> None:
    """The command line."""
    if sys.argv[1:2] == ["build"]:
        del sys.argv[1]
    elif sys.argv[1:2] and sys.argv[1] in COMMANDS:
        importlib.import_module(COMMANDS[sys.argv.pop(1)]).main()
        return
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--version", type=int, default=1, help="release number [%(default)s]")
    arguments.add(parser)
    args = parser.parse_args()
    arguments.export_of(parser, args, args.repository, args.version).run()


if __name__ == "__main__":
    run(main)
