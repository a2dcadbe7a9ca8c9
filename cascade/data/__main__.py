"""Prepare a data set: python -m cascade.data --data criteo:train.txt --out build/data."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cascade.data import describe
from cascade.data.opening import add_arguments
from cascade.data.prepare import prepare_as
from cascade.data.source import SPLITS
from cascade.errors import run

DESCRIBE = "python -m cascade.data describe --data SPEC says what is in a data set."


def main(arguments: list[str] | None = None) -> None:
    """Prepare, and say what came out; or describe."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["describe"]:
        return describe.main(words[1:])
    parser = argparse.ArgumentParser(
        prog="python -m cascade.data", description=__doc__, epilog=DESCRIBE
    )
    add_arguments(parser)
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    options = parser.parse_args(words)
    dataset = prepare_as(options, options.out)
    rows = ", ".join(f"{dataset.rows(split):,} {split}" for split in SPLITS)
    print(f"{dataset.root}: {rows} rows; {dataset.item_count:,} items")
    return None


if __name__ == "__main__":
    run(main, to_end=True)
