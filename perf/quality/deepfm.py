"""`python -m perf.quality.deepfm`: DeepFM of DeepCTR-Torch on the rows of a prepared data set.

Guo et al., "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction", IJCAI 2017,
as the package has it, with its own sizes and optimiser, on the same rows and the same encoded
features as the cascade's ranker: trained on the training rows, stopped by the log loss of the
validation rows, judged on the test rows.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cascade.data.dataset import Dataset
from cascade.data.source import SPLITS, Split
from cascade.encoding import Floats, Ids
from cascade.errors import CascadeError, need
from cascade.errors import run as run_main
from cascade.evaluation import metrics
from cascade.files import write_json
from cascade.schema import Schema, Side

PACKAGE = "deepctr_torch"
EPOCHS, PATIENCE, BATCH = 30, 3, 256
LOSS = "binary_crossentropy"
SIDES: tuple[Side, ...] = ("user", "item")
Inputs = dict[str, Floats]


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m perf.quality.deepfm", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="a prepared data set")
    add("--seed", type=int, default=0, help="[%(default)s]")
    add("--out", type=Path, required=True, help="JSON file of auc and log_loss")
    args = parser.parse_args(arguments)
    write_json(args.out, judged(Dataset.open(args.data), args.seed))


def judged(dataset: Dataset, seed: int) -> dict[str, float]:
    """`auc` and `log_loss` of the test rows. Raises CascadeError: DeepCTR-Torch is not installed,
    or a feature has several values."""
    _quiet()
    inputs = need(f"{PACKAGE}.inputs", "DeepFM", "dev")
    models = need(f"{PACKAGE}.models", "DeepFM", "dev")
    callbacks = need(f"{PACKAGE}.callbacks", "DeepFM", "dev")
    train, validation, test = (_rows(dataset, split) for split in SPLITS)
    columns = _columns(dataset.schema, inputs)
    model: Any = models.DeepFM(columns, columns, seed=seed)
    model.compile("adam", LOSS, metrics=[LOSS])
    stop = callbacks.EarlyStopping(
        f"val_{LOSS}", patience=PATIENCE, mode="min", restore_best_weights=True
    )
    model.fit(*train, BATCH, EPOCHS, verbose=0, validation_data=validation, callbacks=[stop])
    model.load_state_dict(stop.best_weights)  # the package does so only where it stopped early
    predicted = model.predict(test[0], BATCH)[:, 0]
    measures = {"auc": metrics.auc, "log_loss": metrics.log_loss}
    return {name: measure(test[1], predicted) for name, measure in measures.items()}


def _quiet() -> None:
    """Keep the package from asking PyPI for its newest version, as it does whenever it is
    imported: it then needs neither a network nor `requests`."""
    name = f"{PACKAGE}.utils"
    if name not in sys.modules:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].check_version = lambda version: None  # type: ignore[attr-defined]


def _columns(schema: Schema, inputs: Any) -> list[Any]:
    """The package's description of the features."""
    found = []
    for side in SIDES:
        found += [inputs.DenseFeat(feature.name, 1) for feature in schema.dense(side)]
        for feature in schema.ids(side):
            if feature.multivalued:
                raise CascadeError(
                    f"{feature.name} is a {feature.kind}; DeepFM is compared on features of one "
                    "value each: give a data set without bags and sequences, as criteo"
                )
            found.append(inputs.SparseFeat(feature.name, feature.cardinality))
    return found


def _rows(dataset: Dataset, split: Split) -> tuple[Inputs, Floats]:
    """The encoded values [B] of each feature of a split, and its labels [B]."""
    batch, (item_dense, item_ids) = dataset.read(split), dataset.items()
    sides: dict[Side, tuple[Floats, Ids]] = {
        "user": (batch.user_dense, batch.user_ids),
        "item": (item_dense[batch.item], item_ids[batch.item]),
    }
    found: Inputs = {}
    for side, (dense, ids) in sides.items():
        for place, feature in enumerate(dataset.schema.dense(side)):
            found[feature.name] = dense[:, place]
        for feature in dataset.schema.ids(side):
            found[feature.name] = ids[:, dataset.schema.first_column(feature)].astype(np.float32)
    return found, np.array(batch.label)  # a copy: torch wants rows that it could write


if __name__ == "__main__":
    run_main(main, to_end=True)
