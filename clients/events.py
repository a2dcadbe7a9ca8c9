"""`python -m clients.events --store URL < events.jsonl`: what users did, for their next request.

A line is `{"user_id": "17", "feature": "history", "values": ["m-3"]}`: new members of a bag, the
latest last. They go in front of the bag, which keeps as many as the cascade reads. Lines are
written as soon as they arrive, so a pipe may stay open; several writers may run at the same time.
From Python:

    with UserStore.open("lmdb:users.lmdb") as users:
        users.append("17", "history", ["m-3"])

An event that is written twice is there twice.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cascade.encoding import InvalidInput
from cascade.errors import run
from cascade.store import Event, StoreError, UserStore
from cascade.values import of_json

READ_BYTES = 1 << 16
FIELDS = ("user_id", "feature", "values")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all written, 1 not (stderr says what and why), 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m clients.events", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--store", required=True, metavar="URL", help="see cascade/store")
    parser.add_argument("file", type=Path, nargs="?", help="of JSON lines [standard input]")
    options = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(UserStore.open(options.store))
        if options.file is None:
            source: Any = sys.stdin.buffer.raw  # type: ignore[union-attr]
        else:
            source = stack.enter_context(options.file.open("rb", buffering=0))
        written, refused = write(store, arrivals(source))
        print(f"{store.url}: {written} events written, {refused} refused", file=sys.stderr)
    return 1 if refused else 0


def write(store: UserStore, lines: Iterable[list[tuple[int, bytes]]]) -> tuple[int, int]:
    """Write some lines at a time, each with its number, as they arrive; an invalid one is reported
    and left out. Returns how many were written, and how many refused. Raises StoreError: says up to
    which line all is written."""
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
        try:
            store.append_many(events)
        except StoreError as error:
            first, _ = some[0]
            raise StoreError(f"{error}; all lines before {first} are written") from error
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
    """One event. Raises InvalidInput: says what is wrong with it."""
    value: Any = of_json(line)
    if not isinstance(value, dict) or set(value) != set(FIELDS):
        came = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise InvalidInput(f"an event is an object of {', '.join(FIELDS)}; {came} came")
    return Event(*(value[field] for field in FIELDS))


if __name__ == "__main__":
    run(main)
