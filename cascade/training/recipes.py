"""What is trained for a cascade: in which order, which models, and by which numbers."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch

from cascade import values
from cascade.data.source import LOGS, Log
from cascade.models.registry import ModelError, Recipe, shipped
from cascade.training.optimization.hyperparameters import (
    Hyperparameters,
    TrainingError,
    check_table,
)

# What fits a million rows; a smaller set is passed over more often, up to MOST_EPOCHS times, and
# early stopping ends what overfits.
ROWS_IN_ALL = 1_000_000
MOST_EPOCHS = 12
LABELS = "retrieve_labels"
TEACHERS = {"": (), "candidates": (LABELS, "rank"), "catalogue": ("rank", "prerank")}
BASELINE = "baseline"  # the part of a recipe that no stage serves
FACTORS = "two_tower:factors"
RECIPES: dict[Log, Recipe] = {
    "impressions": Recipe("two_tower:default", "dlrm:small", "dlrm:criteo", "logistic:default"),
    "choices": Recipe(FACTORS, FACTORS, FACTORS, "logistic:bent"),
}


@dataclass(frozen=True)
class Training:
    """One of the trainings."""

    model: str  # the stage of the recipe whose model is trained
    hyper: Hyperparameters
    # By the ranker on what the retriever returns or on the catalogue, or by labels.
    taught: Literal["", "candidates", "catalogue"] = ""
    starts_from: str = ""  # an earlier training of the same model, whose weights it begins with


ON_ROWS = Hyperparameters(batch_size=512, lr=1e-3, embedding_lr=1e-2)
FEW_ROWS = 100_000  # fewer need more care
FEW_EPOCHS, FEWEST_STEPS = 4, 400  # of few rows, whichever is more: the rate falls while it helps
ON_FEW_ROWS = Hyperparameters(
    512, lr=3e-4, embedding_lr=1e-3, weight_decay=1.0, validations=10, patience=15
)
ON_CANDIDATES = Hyperparameters(
    batch_size=64, lr=3e-3, embedding_lr=1e-2, epochs=1.5, validations=4, patience=4
)
ON_CATALOGUE = Hyperparameters(
    batch_size=64, lr=2e-3, embedding_lr=1e-2, epochs=1, validations=4, patience=4
)
CHOICES_IN_ALL = 4_000_000  # rows of a log of choices, as ROWS_IN_ALL; `epochs` are the most
OF_CHOICES = {  # the trainings that a log of choices changes
    LABELS: Hyperparameters(
        512, 6, lr=3e-3, embedding_lr=3e-3, weight_decay=2e-2, validations=1, patience=4
    ),
    BASELINE: Hyperparameters(1024, 12, lr=3e-3, embedding_lr=3e-4),
    "rank": Hyperparameters(
        256, 1, lr=1e-3, embedding_lr=3e-3, weight_decay=2e-2, validations=4, patience=6
    ),
    "prerank_labels": Hyperparameters(
        256, 1, lr=1e-3, embedding_lr=3e-3, weight_decay=2e-2, validations=2, patience=4
    ),
}
TRAININGS = {  # in this order; a checkpoint has the name of its training
    LABELS: Training("retrieve", replace(ON_ROWS, embedding_lr=2e-2)),
    "baseline": Training("baseline", Hyperparameters(batch_size=1024, lr=1e-2, embedding_lr=1e-2)),
    "rank": Training("rank", ON_ROWS),
    "prerank_labels": Training("prerank", ON_ROWS),
    "prerank": Training("prerank", ON_CANDIDATES, "candidates", "prerank_labels"),
    "prerank_baseline": Training("baseline", ON_CANDIDATES, "candidates", "baseline"),
    "retrieve": Training("retrieve", ON_CATALOGUE, "catalogue", LABELS),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command takes that trains: --out, --recipe, --log, --device."""
    add = parser.add_argument
    usual = " ".join(f"{k}={v}" for k, v in RECIPES["impressions"].models().items())
    add("--out", type=Path, required=True, help="folder of the checkpoints")
    add(
        "--recipe",
        nargs="+",
        default=[],
        metavar="STAGE=MODEL",
        help="the models: stage=model:preset, stage=package.module:Class:preset, or a TOML file "
        f"of them, of your own or one of {', '.join(shipped())} "
        f"[{usual}; for a log of choices retrieve={RECIPES['choices'].retrieve}]",
    )
    add("--log", choices=LOGS, help="how the items of the rows were chosen [by the source]")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def check(recipe: Recipe) -> None:
    """Raises ModelError: the hyperparameters of a recipe name a training or a field that there is
    not, or have a value that the field cannot have."""
    known = [field.name for field in fields(Hyperparameters)]
    for name, table in recipe.hyperparameters.items():
        where = "recipe, hyperparameters"
        if name not in TRAININGS:
            raise ModelError(f"{where}: {values.unknown_name('training', name, [*TRAININGS])}")
        for key in table:
            if key not in known:
                message = values.unknown_name("hyperparameter", key, known)
                raise ModelError(f"{where}.{name}: {message}")
        try:
            check_table(table)
        except TrainingError as error:
            raise ModelError(f"{where}.{name}.{error}") from error
