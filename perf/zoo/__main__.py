"""`python -m perf.zoo`: every registered model on the same rows and the same budget.

Trains all models that can read a data set (MovieLens and Criteo where their rows are there, and
clicks drawn from a known model), judges them on its test rows, exports each as a stage of a
cascade, split and flat, times both forms in turn, and lets tritonserver answer with it. Writes
OUT/summary.json, OUT/models.md and OUT/models.png; with --docs also docs/models.md and its
picture. The exit code is 1 where a claim does not hold, after all have run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cascade.data.dataset import Dataset
from cascade.data.prepare import prepare
from cascade.errors import CascadeError, run
from cascade.files import write_json
from cascade.models import MODELS
from perf.harness.commands import rows_there
from perf.harness.in_process import ONE_THREAD
from perf.harness.record import ROOT
from perf.zoo import claims, pool, report, serve, train
from perf.zoo.sets import ALONE, FRONT, SERVED_ON, SETS, SEVERAL, TEXTBOOK, retrieves
from perf.zoo.train import Job

QUICK_ROUNDS = 1
Results = dict[str, dict[str, dict[str, Any]]]  # by data set, by model


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m perf.zoo", description=__doc__)
    add = parser.add_argument
    add("--data-sets", nargs="+", choices=SETS, default=[*SETS], metavar="NAME", help="[all]")
    add("--models", nargs="+", choices=[*MODELS], default=[*MODELS], metavar="NAME", help="[all]")
    add("--shared", type=Path, default=Path("../shared/data"), help="real rows [%(default)s]")
    add("--out", type=Path, default=Path("build/zoo"), help="[%(default)s]")
    add("--quick", action="store_true", help="trained for a moment: whether it runs")
    add("--docs", action="store_true", help="write docs/models.md, too")
    args = parser.parse_args(arguments)
    started = time.monotonic()
    names = [name for name in args.data_sets if rows_there(name, SETS[name].folder, args.shared)]
    if not names:
        raise CascadeError("no data set is there; --shared DIR says where the rows are")
    data = {name: _prepared(name, args) for name in names}
    found = _trained(data, args)
    served_on = SERVED_ON if SERVED_ON in names else names[0]
    for name in names:
        models = [m for m in found[name] if m in MODELS] if name == served_on else []
        if SETS[name].several:
            models = [model for model in SEVERAL if model in found[name]]
        some = {model: found[name][model] for model in models}
        _serve(some, args.out / name, data[name], QUICK_ROUNDS if args.quick else serve.ROUNDS)
    seconds = round(time.monotonic() - started, 1)
    summary = claims.summary(found, served_on) | {"seconds": seconds, "quick": args.quick}
    write_json(args.out / "summary.json", summary)
    text = report.text(summary)
    (args.out / "models.md").write_text(text)
    report.draw(summary, args.out / "models.png")
    if args.docs:
        page = report.text(summary, "../perf/plots/models.png")
        (ROOT / "docs" / "models.md").write_text(page)
        shutil.copyfile(args.out / "models.png", ROOT / "perf" / "plots" / "models.png")
    print(f"\n{text}\n{seconds:.0f} s; figures: {args.out}/summary.json")
    return 0 if args.quick or summary["holds"] else 1


def _prepared(name: str, args: argparse.Namespace) -> Path:
    folder: Path = args.out / name
    shutil.rmtree(folder, ignore_errors=True)
    prepare(SETS[name].source(args.shared, args.quick), folder / "data")
    return folder / "data"


def _trained(data: Mapping[str, Path], args: argparse.Namespace) -> Results:
    """Train every model on every data set that has what it reads: first the retrievers whose lists
    others order."""
    jobs = []
    for name, folder in data.items():
        for model in SETS[name].models():
            if model in args.models or model in (FRONT, "logistic"):
                place = folder.parent / "models"
                asked = (name, model, folder, place / model, _front(name, model, folder))
                jobs.append(Job(*asked, args.quick))
        if SETS[name].choices and FRONT in args.models:
            out = folder.parent / "models" / "textbook"
            jobs.append(Job(name, TEXTBOOK, folder, out, None, args.quick))
        if SETS[name].several and ALONE in args.models:
            for task in Dataset.open(folder).schema.tasks:
                asked = (name, ALONE, folder, place / f"{ALONE}-{task.name}", None)
                jobs.append(Job(*asked, args.quick, task.name))
    found: Results = {name: {} for name in data}
    for first in (True, False):
        some = [job for job in jobs if (job.model == FRONT) == first]
        for job, figures in pool.done(train.run, some, "train"):
            found[job.data_set][job.name] = figures
    order = [job.name for job in jobs]
    return {
        name: {job: found[name][job] for job in dict.fromkeys(order) if job in found[name]}
        for name in found
    }


def _front(name: str, model: str, folder: Path) -> Path | None:
    """The checkpoint of the retriever whose lists a ranker orders."""
    ordered = SETS[name].choices and not retrieves(model)
    return folder.parent / "models" / FRONT if ordered else None


def _serve(found: dict[str, dict[str, Any]], folder: Path, data: Path, rounds: int) -> None:
    """Export, time and serve models of one data set."""
    if not found:
        return
    place = serve.Place(folder / "models", folder / "shared", folder / "releases")
    place.prepare(Dataset.open(data))
    exported = [(place, model, FRONT) for model in found]
    for (_, model, _), figures in pool.done(serve.export, exported, "export"):
        found[model] |= figures
    for model, figures in tqdm(found.items(), "time and serve", unit=" models"):
        if not retrieves(model):
            figures |= serve.timed(place, model, rounds)
        figures |= serve.served(place, model)


if __name__ == "__main__":
    os.environ |= ONE_THREAD
    run(main, to_end=True)
