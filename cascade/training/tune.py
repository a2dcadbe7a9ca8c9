"""`python -m cascade.training tune`: search the hyperparameters of one training.

Every trial is a training of its own, judged by the validation split alone; one that is worse than
the median of those before it at the same point ends early. OUT/tune/NAME has the study, which a
later call goes on with, the table of all trials and a picture; OUT/tune/NAME/recipe.toml is what
`--recipe` takes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure
from tabulate import tabulate

from cascade.data.opening import add_arguments
from cascade.data.prepare import prepare_as
from cascade.errors import CascadeError, need
from cascade.models.registry import Recipe
from cascade.training import bundle, recipes
from cascade.training.loop import Hyperparameters, fit
from cascade.training.recipes import TRAININGS
from cascade.training.trainer import Trainer

if TYPE_CHECKING:
    import optuna

SEARCHED = ("lr", "embedding_lr", "weight_decay", "batch_size", "epochs")
WARM_UP = 5  # trials before one is ended early
KEPT = ("step", "loss", "objective")  # of a validation's record, what no table shows


class TuneError(CascadeError):
    """A search that cannot begin."""


def main(arguments: Sequence[str]) -> None:
    """Search, then print the table and write the files."""
    options = _parser().parse_args(arguments)
    for name in ("trials", "minutes"):
        if (count := getattr(options, name)) is not None and count <= 0:
            raise TuneError(f"--{name} {count:g} came; expected more than 0")
    optuna = need("optuna", "the search of hyperparameters", "tune", TuneError)
    storages = need("optuna.storages.journal", "the search of hyperparameters", "tune", TuneError)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    dataset = prepare_as(options, options.out / "data")
    recipe, device = Recipe.read(options.recipe), torch.device(options.device)
    trainer = Trainer(dataset, options.out, device, recipe, {}, options.log)
    bundle.write(dataset, options.out, trainer.negatives)
    for name in trainer.needed(options.model):
        trainer.train(name)
    folder = options.out / "tune" / options.model
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=options.model,
        storage=optuna.storages.JournalStorage(
            storages.JournalFileBackend(str(folder / "study.log"))
        ),
        sampler=optuna.samplers.TPESampler(seed=options.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=WARM_UP),
        load_if_exists=True,
    )
    usual = trainer.hyperparameters(options.model)
    if not study.trials:
        study.enqueue_trial({name: getattr(usual, name) for name in SEARCHED})
    done = sum(trial.state.is_finished() for trial in study.trials)
    left, ends = options.trials - done, time.monotonic() + 60 * options.minutes
    for _ in range(max(0, left)):
        if time.monotonic() >= ends:
            break
        study.optimize(lambda trial: _judge(trainer, options.model, usual, trial), n_trials=1)
        print(_line([t for t in study.trials if t.state.is_finished()][-1]), flush=True)
    print(f"\n{write(study, options.model, folder)}\nwritten to {folder}")


def _judge(trainer: Trainer, name: str, usual: Hyperparameters, trial: optuna.Trial) -> float:
    """Train once; what early stopping minimises, at its best."""
    import optuna

    hyper = replace(usual, **space(trial, usual))
    scorer = trainer.fresh(name, hyper)

    def told(record: dict[str, float]) -> None:
        trial.report(record["objective"], int(record["step"]))
        if trial.should_prune():
            raise optuna.TrialPruned

    with TemporaryDirectory() as folder:
        task = trainer.task(name, scorer, hyper)
        history = fit(task, hyper, Path(folder), f"{name}, trial {trial.number}", told=told)
    best = min(history, key=lambda record: record["objective"])
    trial.set_user_attr("measures", {k: v for k, v in best.items() if k not in KEPT})
    return best["objective"]


def space(trial: optuna.Trial, usual: Hyperparameters) -> dict[str, Any]:
    """What a trial draws: rates within a factor of thirty around the usual ones."""
    near = {name: getattr(usual, name) for name in ("lr", "embedding_lr")}
    found: dict[str, Any] = {
        name: trial.suggest_float(name, rate / 30, rate * 30, log=True)
        for name, rate in near.items()
    }
    found["weight_decay"] = trial.suggest_float("weight_decay", 0.0, 2.0)
    sizes = sorted({max(16, usual.batch_size // 4), usual.batch_size, usual.batch_size * 4})
    found["batch_size"] = trial.suggest_categorical("batch_size", sizes)
    found["epochs"] = trial.suggest_float("epochs", usual.epochs / 4, usual.epochs * 2)
    return found


def write(study: optuna.Study, name: str, folder: Path) -> str:
    """The table of all trials, best first, as text; writes it, the picture and the recipe.

    Raises TuneError: no trial came to its end.
    """
    ended = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    if not ended:
        raise TuneError(f"{folder}: no trial of {name} came to its end; give more --minutes")
    best = study.best_trial
    rows = [
        [trial.number, trial.state.name.lower(), trial.value, *trial.params.values()]
        + [f"{value:.4f}" for value in trial.user_attrs.get("measures", {}).values()]
        for trial in sorted(ended, key=lambda trial: trial.value or 0.0)
    ]
    measures = [key.replace("_", " ") for key in best.user_attrs.get("measures", {})]
    text: str = tabulate(
        rows, ["trial", "state", "objective", *best.params, *measures], floatfmt=".5g"
    )
    pruned = len(study.trials) - len(ended)
    text += f"\n{len(ended)} trials came to their end, {pruned} were ended early"
    (folder / "trials.txt").write_text(text + "\n")
    lines = [f"[hyperparameters.{name}]", *(f"{k} = {v!r}" for k, v in best.params.items())]
    (folder / "recipe.toml").write_text("\n".join(lines) + "\n")
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    numbers, values = [t.number for t in ended], [t.value or 0.0 for t in ended]
    axes.scatter(numbers, values, s=14, label="a trial")
    axes.step(numbers, list(accumulate(values, min)), where="post", label="the best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel("objective on validation rows")
    axes.legend()
    figure.savefig(folder / "trials.png", dpi=110)
    return text


def _line(trial: optuna.trial.FrozenTrial) -> str:
    value = "" if trial.value is None else f", objective {trial.value:.5f}"
    drawn = ", ".join(f"{name} {found:.4g}" for name, found in trial.params.items())
    return f"trial {trial.number}: {trial.state.name.lower()}{value}; {drawn}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cascade.training tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    recipes.add_arguments(parser)
    add = parser.add_argument
    searched = [name for name, training in TRAININGS.items() if not training.taught]
    add("--model", choices=searched, default="rank", help="which training [%(default)s]")
    add("--trials", type=int, default=20, help="in all, those of earlier calls too [%(default)s]")
    add("--minutes", type=float, default=30.0, help="no trial begins after [%(default)s]")
    add("--seed", type=int, default=0, help="of the search [%(default)s]")
    return parser
