"""Checks a deny list before it is put in place: python -m cascade.server.deny check FILE

Reads the file as the server does, prints how many ids it holds and the first of them, and names the
lines that may be meant in two ways and those that cannot be read. With --repository, ids are those
of its newest release, and the lines that name no item of it are counted; without FILE, the list of
the repository is checked. Exit code 0 = every line can be read, 1 = not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cascade import errors
from cascade.config import of_release
from cascade.id_lines import IdLines, read
from cascade.release import newest_version, read_release
from cascade.schema import Schema
from cascade.spec import RETRIEVE, stage_path
from cascade.stages.filters.deny import DenyFile, DenyListError, content
from cascade.stages.filters.items import FilterItems
from cascade.stages.load import deny_list_of

SHOWN = 5  # ids and lines


def main(argv: Sequence[str] | None = None) -> None:
    """Print what a deny list denies. Raises DenyListError: some lines cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m cascade.server.deny",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=["check"])
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help="[the repository's own]")
    parser.add_argument("--repository", type=Path, metavar="DIR", help="whose items it denies")
    parser.add_argument("--string-ids", action="store_true", help="without it: ids are strings")
    options = parser.parse_args(argv)
    if options.repository is not None:
        _check_for(options.repository, options.file)
    elif options.file is not None:
        lines = read(content(options.file), options.string_ids)
        kind = "strings" if options.string_ids else "integers"
        print(f"{options.file}: {len({*lines.numbers})} lines of ids that are {kind}")
        _tell(lines, options.string_ids)
        _refuse(options.file, [*map(str, lines.bad)])
    else:
        raise DenyListError("nothing to check: give a FILE, --repository DIR or both")


def _check_for(repository: Path, path: Path | None) -> None:
    version = newest_version(repository)
    release = read_release(repository, version)
    path = path or deny_list_of(repository, of_release(release)[1])
    if path is None:
        raise DenyListError(f"release {version} of {repository} has no deny list: name a FILE")
    folder = repository / stage_path(release["topology"], RETRIEVE, version)
    schema = Schema.load(folder / "schema.json")
    data = content(path)
    found = DenyFile.of(data, FilterItems(folder, schema.hash), schema.string_ids)
    print(
        f"{path}: {found.applied} lines deny {found.denied.count} items of release {version}; "
        f"{found.absent} lines name no item of it"
    )
    _tell(read(data, schema.string_ids), schema.string_ids)
    _refuse(path, [*map(str, found.bad)])


def _tell(lines: IdLines, string_ids: bool) -> None:
    """Print what was read: how many ids, the first of them, and lines with several readings, of
    which strings have many that mean nothing."""
    ids = [*dict.fromkeys(lines.literals())]
    more = ", ..." if len(ids) > SHOWN else ""
    print(f"{len(ids)} ids" + f": {', '.join(map(str, ids[:SHOWN]))}{more}" * bool(ids))
    either = [] if string_ids else lines.ambiguous()
    for number in either[:SHOWN]:
        read_as = zip(lines.ids, lines.numbers, lines.literal, strict=True)
        of_line = [(str(item), literal) for item, where, literal in read_as if where == number]
        several = ", ".join(item for item, literal in of_line if literal)
        one = ", ".join(item for item, literal in of_line if not literal)
        print(f"line {number}: {several} or, with separators, {one}: all of them are denied")
    if more_lines := len(either[SHOWN:]):
        print(f"and {more_lines} more such lines: write one id a line")


def _refuse(path: Path, bad: Sequence[str]) -> None:
    """Raises DenyListError if some lines are bad, after it has printed each."""
    if bad:
        print(*bad, sep="\n")
        raise DenyListError(
            f"{path}: {len(bad)} lines cannot be read; the first is {bad[0]}. Mend them, or these "
            "items are answered"
        )


if __name__ == "__main__":
    errors.run(main)
