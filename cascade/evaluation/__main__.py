"""`python -m cascade.evaluation`: rankers on the test rows, then the whole cascade.

Reads a prepared data set, the checkpoints trained on it and the repository exported from them; or,
with --held-out, a table of held-out rows and a repository alone. Writes evaluation.json,
evaluation.md and evaluation.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from cascade.data.dataset import Dataset
from cascade.data.source import Log
from cascade.errors import run
from cascade.evaluation import report
from cascade.evaluation.evaluate import COMPARED, SCORED, evaluate
from cascade.evaluation.queries import EvaluationError
from cascade.evaluation.served import judge as served
from cascade.evaluation.served import report as served_report
from cascade.spec import RETRIEVE
from cascade.stages.pipeline import Pipeline
from cascade.training import checkpoint
from cascade.training.log import log_of
from cascade.training.negatives import Sampling
from cascade.training.recipes import LABELS

OF_DATA = ("data", "checkpoints", "positives", "no_baselines", "device")
OF_HELD_OUT = ("item_column", "label_column")


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate what the command line names, print the tables and write the files."""
    options = _parser().parse_args(arguments)
    _check(options)
    text = _of_held_out(options) if options.held_out else _of_data(options)
    print(f"\n{text}\nwritten to {options.out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cascade.evaluation", description=__doc__)
    add = parser.add_argument
    add("--repository", type=Path, required=True, help="what export wrote")
    add("--out", type=Path, required=True, help="folder for the results")
    add("--users", type=int, help="users ranked over all items; of --held-out, asked [200; 2000]")
    add("--rows", type=int, help="test rows for the click metrics; default all")
    add = parser.add_argument_group("a prepared data set").add_argument
    add("--data", type=Path, help="the data set")
    add("--checkpoints", type=Path, help="what training wrote")
    add("--positives", type=int, help="held-out positives to find [2000]")
    without = "leave out the lists and the scores of simple models"
    add("--no-baselines", action="store_const", const=True, help=without)
    add("--device", help="cpu or cuda; default cuda where it is there")
    add = parser.add_argument_group("or a table").add_argument
    add("--held-out", type=Path, metavar="TABLE", help="raw rows: .parquet, .csv or .jsonl")
    add("--item-column", metavar="NAME", help="the column of item ids [item_id]")
    add("--label-column", metavar="NAME", help="the column of labels, 0 or 1 [label, if there]")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Raises EvaluationError: flags of both forms came, or not all of one."""
    others = OF_DATA if options.held_out else OF_HELD_OUT
    if mixed := [name for name in others if getattr(options, name) is not None]:
        flag = f"--{mixed[0].replace('_', '-')}"
        needed = "without --held-out" if options.held_out else "with --held-out TABLE"
        raise EvaluationError(f"{flag} came; it goes {needed}")
    if not options.held_out and not (options.data and options.checkpoints):
        raise EvaluationError(
            "expected --data DIR and --checkpoints DIR, or --held-out TABLE; add what is missing"
        )
    for name in ("users", "rows", "positives"):
        if (count := getattr(options, name)) is not None and count < 1:
            raise EvaluationError(f"--{name} {count} came; expected 1 or more")


def _of_held_out(options: argparse.Namespace) -> str:
    found = served.judge(
        options.repository,
        options.held_out,
        item=options.item_column,
        label=options.label_column,
        users=options.users or 2000,
        rows=options.rows,
    )
    return served_report.write(found, options.out)


def _of_data(options: argparse.Namespace) -> str:
    dataset, trained = Dataset.open(options.data), options.checkpoints
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    names = dict.fromkeys((*SCORED, *COMPARED))
    there = [name for name in names if (trained / name / "checkpoint.json").is_file()]
    drawn = checkpoint.describe(trained / "rank").get("negatives")
    found = evaluate(
        dataset,
        {
            name: checkpoint.load(trained / name, dataset.schema).to(device)
            for name in ("rank", *there)
        },
        Pipeline.load(options.repository),
        users=options.users or 200,
        positives=options.positives or 2000,
        rows=options.rows,
        device=device,
        sampling=Sampling(**drawn) if drawn else None,
        impressions=_log(dataset, trained) == "impressions",
        baselines=not options.no_baselines,
    )
    return report.write(found, options.out)


def _log(dataset: Dataset, trained: Path) -> Log:
    """How the items of the rows were chosen: as the training was told, or as it thinks itself."""
    for name in (LABELS, RETRIEVE):  # the second, where an earlier version trained it on labels
        if (trained / name / "checkpoint.json").is_file():
            found: Log | None = checkpoint.describe(trained / name).get("log")
            if found:
                return found
    return log_of(dataset)[0]


if __name__ == "__main__":
    run(main, to_end=True)
