"""Prepare a data set: python -m cascade.data --data criteo:train.txt --out build/data."""

from __future__ import annotations

import argparse
from pathlib import Path

from cascade.data.opening import add_arguments
from cascade.data.prepare import prepare_as
from cascade.data.source import SPLITS
from cascade.errors import run


def main(arguments: list[str] | None = None) -> None:
    """Prepare, and say what came out."""
    parser = argparse.ArgumentParser(prog="python -m cascade.data", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    options = parser.parse_args(arguments)
    dataset = prepare_as(options, options.out)
    rows = ", ".join(f"{dataset.rows(split):,} {split}" for split in SPLITS)
    print(f"{dataset.root}: {rows} rows; {dataset.item_count:,} items")


if __name__ == "__main__":
    run(main)
