"""`python -m cascade.training`: from raw rows to a folder of checkpoints that export can read.

OUT/schema.json, vocabulary/, catalogue.parquet, users.*   what the models were trained on
OUT/retrieve, rank, prerank                                      the cascade
OUT/logistic, prerank_logistic, prerank_labels                   what it is compared with
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import torch

from cascade.data.prepare import add_arguments, prepare_as
from cascade.data.source import DataError
from cascade.schema import SchemaError
from cascade.training.checkpoint import CheckpointError
from cascade.training.loop import Recipe
from cascade.training.tasks import OBJECTIVES
from cascade.training.trainer import NAMES, Trainer, train_cascade


def main() -> int:
    """The command line. Returns the exit code."""
    options = _parser().parse_args()
    known = {field.name for field in fields(Recipe)}
    changes = {k: v for k, v in vars(options).items() if k in known and v is not None}
    try:
        dataset = prepare_as(options, options.prepared or options.out / "data")
        if options.restart:
            for name in NAMES:
                shutil.rmtree(options.out / name, ignore_errors=True)
        trainer = Trainer(dataset, options.out, torch.device(options.device), changes)
        train_cascade(trainer, options.ranker, options.towers, options.log)
    except (DataError, SchemaError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cascade.training", description=__doc__)
    add_arguments(parser)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the checkpoints")
    add("--prepared", type=Path, help="folder of the prepared data [OUT/data]")
    add("--ranker", default="criteo", help="preset of the DLRM ranker [%(default)s]")
    add("--towers", default="default", help="preset of the towers [%(default)s]")
    add("--log", choices=OBJECTIVES, help="who chose the items of the rows [by the source]")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--restart", action="store_true", help="forget what was trained before")
    recipe = parser.add_argument_group("recipe", "for every model, in place of its own")
    recipe.add_argument("--optimizer", choices=("adam", "adagrad", "sgd"))
    recipe.add_argument("--lr", type=float)
    recipe.add_argument("--embedding-lr", type=float)
    recipe.add_argument("--batch-size", type=int)
    recipe.add_argument("--epochs", type=float)
    recipe.add_argument("--seed", type=int, default=0)
    recipe.add_argument("--save-every", type=int, help="batches between two savings to resume from")
    return parser


if __name__ == "__main__":
    sys.exit(main())
