"""`python -m export split --repository DIR --url HOST:PORT --number N --share 0.1`: two releases.

A share of the users gets release N, the others stay with the live one, each always with the same:
clients decide by a hash of the user's key. `--end` sends everybody to the live one again; to let N
win, roll forward to it with `python -m export rollback --to N`.
"""

from __future__ import annotations

import argparse

from cascade.errors import run
from export.releases.command import add_server, publisher, say


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m export split", description=__doc__)
    add_server(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--number", type=int, help="a release that is kept")
    what.add_argument("--end", action="store_true")
    parser.add_argument("--share", type=float, default=0.1, help="of the users [%(default)s]")
    args = parser.parse_args()
    changes = publisher(args)
    if args.end:
        changes.end_split()
        say(f"release {changes.repository.live} is everybody's")
        return
    with changes.repository.locked():
        changes.recover()
        changes.split(args.number, args.share)
    live = changes.repository.live
    say(f"release {args.number} has {args.share:.0%} of the users, {live} the rest")


if __name__ == "__main__":
    run(main)
