"""The commands on releases that exist: rollback, releases, sign, split, rewire. They compute
nothing, so that a rollback does not wait for PyTorch to be imported."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from tabulate import tabulate

from cascade.config import FORMULAS
from cascade.release import read_release
from cascade.server import security
from cascade.server.security import KEY_VARIABLE
from cascade.server.threads import default_instances
from cascade.spec import RANK, TOPOLOGIES
from cascade.store import absolute_url
from cascade.telling import say
from export.releases import rewire as rewiring
from export.releases.control import Control
from export.releases.publishing import Published, Publisher
from export.releases.repository import Repository
from export.releases.signing import Signer

HEADER = ("release", "state", "age", "items", "AUC", "NE", "parity", "MB")


def parser(command: str, required: str, text: str | None) -> argparse.ArgumentParser:
    """The parser of one command; its first line names the options that are required."""
    made = argparse.ArgumentParser(
        prog=f"python -m export {command}",
        usage=f"python -m export {command} {required} [options]",
        description=text,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=50, width=100),
        add_help=False,
    )
    made.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    return made


def add_server(parser: argparse.ArgumentParser) -> None:
    """Add the repository, and the server that serves it."""
    add = parser.add_argument_group("where").add_argument
    add("--repository", type=Path, metavar="DIR", required=True, help="the server's repository")
    add("--url", metavar="HOST:PORT", help="its gRPC service [change the files alone]")
    add("--control-key-file", type=Path, metavar="FILE", help=f"the server's key [{KEY_VARIABLE}]")
    add("--keep", type=int, default=3, metavar="N", help="releases to keep on disk [%(default)s]")


def publisher(args: argparse.Namespace) -> Publisher:
    """The publisher that the options of `add_server` describe."""
    file, key = args.control_key_file, os.environ.get(KEY_VARIABLE)
    key = security.control_key(file) if file or key else None
    control = Control(args.url, security.headers(key) if key else None) if args.url else None
    signer = Signer(args.sign) if getattr(args, "sign", None) else None
    return Publisher(Repository(args.repository), control, args.keep, say, signer)


def add_signing(parser: argparse.ArgumentParser) -> None:
    """Add the key that signs what is published."""
    text = "private ed25519 key, for servers that --trust its public one"
    parser.add_argument("--sign", type=Path, metavar="PEM", help=text)


def report(published: Published) -> None:
    """Print which release is live now."""
    took = "" if published.switch_ms is None else f", switched in {published.switch_ms:.1f} ms"
    say(f"release {published.number} is live (before: {published.before}){took}")


def rollback(argv: Sequence[str]) -> None:
    """Go back to the release before, or to any other that is kept.

    The server keeps the release before loaded, so going back to it takes milliseconds; another one
    is loaded first. The release that was live stays on disk.
    """
    options = parser("rollback", "--repository DIR", rollback.__doc__)
    add_server(options)
    options.add_argument("--to", type=int, metavar="N", help="the release [the one before]")
    args = options.parse_args(argv)
    report(publisher(args).roll_back(args.to))


def releases(argv: Sequence[str]) -> None:
    """List the releases of a repository, and say which is live."""
    options = parser("releases", "--repository DIR", releases.__doc__)
    options.add_argument("--repository", type=Path, metavar="DIR", required=True)
    repository = Repository(options.parse_args(argv).repository)
    repository.check_published()
    print(tabulate(table(repository), HEADER, "plain", stralign="right", disable_numparse=True))


def table(repository: Repository) -> list[tuple[str, ...]]:
    """A row for each release, the oldest first, in the columns of `HEADER`."""
    rows: list[tuple[str, ...]] = []
    for number in repository.releases():
        release = read_release(repository.root, number)
        metrics = release["stages"][RANK].get("metrics", {})
        figures = (metrics.get(name) for name in ("auc", "normalized_entropy"))
        sizes = (f["bytes"] for files in release.get("files", {}).values() for f in files.values())
        rows.append(
            (
                str(number),
                _state(repository, number),
                _age(release),
                f"{release['items']:,}",
                *("-" if value is None else f"{value:.4f}" for value in figures),
                f"{release['parity_max_abs']:.1e}",
                f"{sum(sizes) / 1e6:,.0f}",
            )
        )
    return rows


def _state(repository: Repository, number: int) -> str:
    if number == repository.live:
        return "live"
    if number == repository.challenger:
        return f"{repository.split:.0%} of users"
    if number in repository.loaded():
        return "loaded"
    return "unfinished" if repository.pending(number) else "kept"


def _age(release: dict[str, Any]) -> str:
    if "made" not in release:
        return "unknown"
    age = datetime.now(timezone.utc) - datetime.fromisoformat(release["made"])
    return str(timedelta(seconds=round(age.total_seconds())))


def sign(argv: Sequence[str]) -> None:
    """Sign a release that is there already, after a check of all its files.

    For servers that start with --trust; publish --sign signs what it publishes.
    """
    options = parser("sign", "--repository DIR --key PEM", sign.__doc__)
    add = options.add_argument
    add("--repository", type=Path, metavar="DIR", required=True, help="where the release is")
    add("--key", type=Path, metavar="PEM", required=True, help="private ed25519 key")
    add("--number", type=int, metavar="N", help="the release [all]")
    args = options.parse_args(argv)
    repository, signer = Repository(args.repository), Signer(args.key)
    repository.check_published()
    for number in repository.releases() if args.number is None else [args.number]:
        signer.sign(repository.root, number)
        say(f"signed release {number}")


def split(argv: Sequence[str]) -> None:
    """Give a share of the users another release, or end that.

    Clients decide by a hash of the user's key, so a user always gets the same release. To let the
    other release win, roll forward to it: python -m export rollback --to N.
    """
    options = parser("split", "--repository DIR (--number N | --end)", split.__doc__)
    add_server(options)
    what = options.add_mutually_exclusive_group(required=True)
    what.add_argument("--number", type=int, metavar="N", help="a release that is kept")
    what.add_argument("--end", action="store_true", help="all users get the live release again")
    options.add_argument("--share", type=float, default=0.1, help="of the users [%(default)s]")
    args = options.parse_args(argv)
    changes = publisher(args)
    if args.end:
        changes.end_split()
        say(f"all users have release {changes.repository.live}")
        return
    changes.split(args.number, args.share)
    live = changes.repository.live
    say(f"release {args.number} has {args.share:.0%} of the users, {live} the rest")


def rewire(argv: Sequence[str]) -> None:
    """Write the newest release of a repository into another one, in another topology, or with
    another formula of its score.

    The files of the stages are linked, not copied; config.pbtxt and model.py are written anew.
    """
    options = parser("rewire", "--repository DIR --out DIR", rewire.__doc__)
    add = options.add_argument
    add("--repository", type=Path, metavar="DIR", required=True, help="where the release is")
    add("--out", type=Path, metavar="DIR", required=True, help="repository to write")
    add("--topology", choices=TOPOLOGIES, help="[as it is]")
    add("--instances", type=int, metavar="N", help="of each process [as it is; by the cores here]")
    add("--threads", type=int, metavar="N", help="compute threads of each process [as it is]")
    add("--store", metavar="URL", help="of users by id; '' = none [as it is]")
    add("--score", metavar="F", help="formula of the ranker's tasks; '' = the first [as it is]")
    add("--prerank-score", metavar="F", help="of the preranker's; '' = --score [as it is]")
    args = options.parse_args(argv)
    serving, product = rewiring.settings_of(args.repository)
    topology, instances = args.topology or serving.topology, args.instances
    if not instances:
        instances = default_instances(topology) if args.topology else serving.instances
    serving = replace(
        serving,
        topology=topology,
        instances=instances,
        threads=serving.threads if args.threads is None else args.threads,
    )
    if args.store is not None:
        product = replace(product, store=absolute_url(args.store))
    given = {name: getattr(args, name) for name in FORMULAS}
    product = replace(product, **{name: text for name, text in given.items() if text is not None})
    rewiring.rewire(args.repository, args.out, serving, product)
    print(f"{args.out}: {topology}, {serving.instances} instances of each process")
