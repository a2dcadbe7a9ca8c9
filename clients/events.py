"""`python -m clients.events --store URL < events.jsonl`: what users did, for their next request.

A line is `{"user_id": "17", "feature": "history", "values": ["m-3"]}`: new members of a bag, the
latest last. They go in front of it, and as many are kept as the cascade reads. What has arrived is
written at once, so a pipe may stay open; writers may be many. From Python:

    with UserStore.open("lmdb:users.lmdb") as users:
        users.append("17", "history", ["m-3"])

An event that is written twice is there twice.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cascade.encoding import InvalidInput
from cascade.store import Event, OtherLayout, StoreError, UserStore

READ_BYTES = 1 << 16
FIELDS = ("user_id", "feature", "values")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all written, 1 not (stderr says what and why), 2 wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        with UserStore.open(options.store) as store:
            if options.file is None:
                written, refused = write(store, arrivals(sys.stdin.buffer.raw))  # type: ignore[union-attr]
            else:
                with options.file.open("rb", buffering=0) as file:
                    written, refused = write(store, arrivals(file))
            print(f"{store.url}: {written} events written, {refused} refused", file=sys.stderr)
    except (OtherLayout, StoreError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 1 if refused else 0


def write(store: UserStore, lines: Iterable[list[tuple[int, bytes]]]) -> tuple[int, int]:
    """Write events as they arrive; a line that is at fault is told of and left out.

    Args:
        lines: some at a time, each with its number.

    Returns:
        How many were written, and how many refused.
    """
    written = refused = 0
    for some in lines:
        events = []
        for number, line in some:
            try:
                event = parse(line)
                store.check(event)
                events.append(event)
            except InvalidInput as error:
                refused += 1
                print(f"line {number}: {error}", file=sys.stderr)
        store.append_many(events)
        written += len(events)
    return written, refused


def arrivals(file: io.RawIOBase) -> Iterator[list[tuple[int, bytes]]]:
    """The lines of a file or a pipe with their numbers: all that are there, then the next ones."""
    rest, number = b"", 0
    while True:
        data = file.read(READ_BYTES)
        *lines, rest = (rest + data).split(b"\n") if data else (rest, b"")
        some = [(n, line) for n, line in enumerate(lines, number + 1) if line.strip()]
        number += len(lines)
        if some:
            yield some
        if not data:
            return


def parse(line: bytes) -> Event:
    """One event.

    Raises:
        InvalidInput: says what is wrong with it.
    """
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        raise InvalidInput(f"not JSON: {error}") from error
    if not isinstance(value, dict) or set(value) != set(FIELDS):
        came = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise InvalidInput(f"an event is an object of {', '.join(FIELDS)}; {came} came")
    return Event(*(value[field] for field in FIELDS))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m clients.events", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--store", required=True, metavar="URL", help="see cascade/store")
    parser.add_argument("file", type=Path, nargs="?", help="of JSON lines [standard input]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
