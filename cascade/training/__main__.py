"""`python -m cascade.training`: from raw rows to a folder of checkpoints that export can read.

OUT/schema.json, vocabulary/, catalogue.parquet, users.*   what the models were trained on
OUT/retrieve, rank, prerank                                the cascade
OUT/retrieve_labels, prerank_labels                        before the ranker taught them
OUT/baseline, prerank_baseline                             what it is compared with
OUT/verdict.json                                           what each stage adds, by validation rows

`python -m cascade.training tune` searches the hyperparameters of one training.
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from cascade.data.opening import add_arguments
from cascade.data.prepare import prepare_as
from cascade.errors import run, writing
from cascade.evaluation.trained import tell
from cascade.models.registry import Recipe
from cascade.training import recipes, tune
from cascade.training.negatives import BYS, Sampling
from cascade.training.optimization.hyperparameters import CHOICES, Hyperparameters
from cascade.training.recipes import TRAININGS
from cascade.training.trainer import Trainer

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["tune"]:
        tune.main(words[1:])
        return
    options = _parser().parse_args(words)
    _keep_freed_memory()
    known = {field.name for field in fields(Hyperparameters)}
    changes = {k: v for k, v in vars(options).items() if k in known and v is not None}
    model = [f"rank={options.model}"] if options.model else []
    recipe = Recipe.read([*options.recipe, *model])
    dataset = prepare_as(options, options.prepared or options.out / "data")
    if options.restart:
        for name in TRAININGS:
            shutil.rmtree(options.out / name, ignore_errors=True)
    device = torch.device(options.device)
    asked = {"per_positive": options.negatives, "by": options.negatives_by}
    asked = {key: value for key, value in asked.items() if value is not None}
    sampling = Sampling(**asked) if asked else None
    trainer = Trainer(
        dataset, options.out, device, recipe, changes, options.log, sampling, options.baseline
    )
    with writing(options.out):
        trainer.run()
        shown = trainer.log == "impressions"
        tell(dataset, trainer.models, options.out, options.device, shown)


def _keep_freed_memory() -> None:
    """Let glibc keep what a batch frees for the next one: to give the large blocks back and fetch
    them again, zeroed, takes up to a third of the processor's time."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cascade.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    recipes.add_arguments(parser)
    add = parser.add_argument
    add("--prepared", type=Path, help="folder of the prepared data [OUT/data]")
    add("--model", metavar="MODEL", help="short for --recipe rank=MODEL")
    drawn = "items drawn beside each row of a log of positives only [4]"
    add("--negatives", type=int, metavar="N", help=drawn)
    add("--negatives-by", choices=BYS, help="how often an item is drawn [uniform]")
    alone = "leave out the baseline and its distilled form, which are only compared with"
    add("--no-baseline", dest="baseline", action="store_false", help=alone)
    add("--restart", action="store_true", help="forget what was trained before")
    group = parser.add_argument_group("hyperparameters", "for every model, in place of its own")
    for name, choices in CHOICES.items():
        group.add_argument(f"--{name}", choices=choices)
    group.add_argument("--lr", type=float)
    group.add_argument("--embedding-lr", type=float)
    group.add_argument("--batch-size", type=int)
    group.add_argument("--epochs", type=float)
    group.add_argument("--warmup-steps", type=int, help="in which learning rates rise linearly")
    group.add_argument("--clip-norm", type=float, help="of all gradients together, at most")
    group.add_argument("--accumulate", type=int, help="batches that make one step")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--save-every", type=int, help="batches between two savings to resume from")
    return parser


if __name__ == "__main__":
    run(main, to_end=True)
