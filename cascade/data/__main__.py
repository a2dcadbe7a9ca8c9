"""Prepare a data set: python -m cascade.data --data criteo:train.txt --out build/data."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cascade.data.prepare import prepare
from cascade.data.source import SPLITS, DataError


def main(arguments: list[str] | None = None) -> int:
    """Parse, prepare, say what came out. A DataError ends the program with its message alone."""
    parser = argparse.ArgumentParser(prog="python -m cascade.data", description=__doc__)
    parser.add_argument(
        "--data",
        required=True,
        help="criteo:PATH, movielens:PATH or synthetic[:rows=…,items=…,seed=…]",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument(
        "--bad-rows",
        choices=("error", "skip"),
        default="error",
        help="stop at the first malformed row, or leave such rows out and count them",
    )
    options = parser.parse_args(arguments)
    try:
        dataset = prepare(options.data, options.out, options.bad_rows)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows = ", ".join(f"{dataset.rows(split):,} {split}" for split in SPLITS)
    print(f"{dataset.root}: {rows} rows; {dataset.item_count:,} items")
    return 0


if __name__ == "__main__":
    sys.exit(main())
