"""Prepare a data set: python -m cascade.data --data criteo:train.txt --out build/data."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cascade.data.prepare import add_arguments, prepare_as
from cascade.data.source import SPLITS, DataError


def main(arguments: list[str] | None = None) -> int:
    """Parse, prepare, say what came out. A DataError ends the program with its message alone."""
    parser = argparse.ArgumentParser(prog="python -m cascade.data", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    options = parser.parse_args(arguments)
    try:
        dataset = prepare_as(options, options.out)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows = ", ".join(f"{dataset.rows(split):,} {split}" for split in SPLITS)
    print(f"{dataset.root}: {rows} rows; {dataset.item_count:,} items")
    return 0


if __name__ == "__main__":
    sys.exit(main())
