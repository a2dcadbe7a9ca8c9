"""`python -m cascade.evaluation`: rankers on the test rows, then the whole cascade.

Reads a prepared data set, the checkpoints trained on it and the repository exported from them;
writes evaluation.json, evaluation.md and evaluation.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from cascade.data.dataset import Dataset
from cascade.errors import run
from cascade.evaluation import report
from cascade.evaluation.stagewise import COMPARED, evaluate
from cascade.stages.pipeline import Pipeline
from cascade.training import checkpoint
from cascade.training.negatives import Sampling


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate what the command line names, print the tables and write the files."""
    parser = argparse.ArgumentParser(prog="python -m cascade.evaluation", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a prepared data set")
    parser.add_argument("--checkpoints", type=Path, required=True, help="what training wrote")
    parser.add_argument("--repository", type=Path, required=True, help="what export wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--users", type=int, default=200, help="users ranked over all items")
    parser.add_argument("--positives", type=int, default=2000, help="held-out positives to find")
    parser.add_argument("--rows", type=int, help="test rows for the click metrics; default all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    dataset, trained = Dataset.open(options.data), options.checkpoints
    there = [name for name in COMPARED if (trained / name / "checkpoint.json").is_file()]
    drawn = checkpoint.describe(trained / "rank").get("negatives")
    found = evaluate(
        dataset,
        {
            name: checkpoint.load(trained / name, dataset.schema).to(options.device)
            for name in ("rank", *there)
        },
        Pipeline.load(options.repository),
        users=options.users,
        positives=options.positives,
        rows=options.rows,
        device=options.device,
        sampling=Sampling(**drawn) if drawn else None,
    )
    print(f"\n{report.write(found, options.out)}\nwritten to {options.out}")


if __name__ == "__main__":
    run(main)
