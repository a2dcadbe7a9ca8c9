"""How one model is trained, in numbers and names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cascade.errors import CascadeError

Optimizer = Literal["adam", "adamw", "adagrad", "rowwise_adagrad", "sgd"]
Schedule = Literal["linear", "constant", "cosine"]
Precision = Literal["float32", "bf16", "fp16"]

LEAST = {  # of the numbers that no training can do with less of
    "batch_size": 1,
    "save_every": 1,
    "warmup_steps": 0,
    "cycle_epochs": 0,
    "cycle_growth": 1,
    "clip_norm": 0,
    "accumulate": 1,
}


class TrainingError(CascadeError, ValueError):
    """Hyperparameters that no training, or none on this device, can have."""


@dataclass(frozen=True)
class Hyperparameters:
    """How to train one model. A step is one change of the weights.

    Attributes:
        optimizer: of all weights. Adagrad (Duchi et al., JMLR 2011); `rowwise_adagrad` has one
            accumulator per row of a table with sparse gradients, and is Adagrad for all else;
            `adam` (Kingma and Ba, ICLR 2015) changes only the rows of such a table that are in the
            batch; `adamw` is Adam whose weights decay before a step instead of after it.
        epochs: passes over the rows; a part of one is enough where rows are plenty.
        beta2: of Adam: how much of the mean of squared gradients a step keeps.
        lr: of all but the embeddings, which have `embedding_lr`.
        weight_decay: decoupled (Loshchilov and Hutter, ICLR 2019): what a step takes off each
            weight it changes, times lr. Of a table, it changes the rows in the batch.
        patience: validations without improvement before the training stops.
        validations: per epoch.
        save_every: batches between two savings of the state to resume from.
        schedule: of both learning rates: `linear`, down to 2 % at the end; `constant`; or `cosine`
            with warm restarts (Loshchilov and Hutter, "SGDR", ICLR 2017), down to 0.
        warmup_steps: steps before the schedule, in which the rates rise linearly.
        cycle_epochs: of `cosine`: until the first restart; 0 is one cycle over the whole training.
        cycle_growth: of `cosine`: how many times as long as the cycle before it a cycle is.
        clip_norm: the largest norm of all gradients together (Pascanu et al., ICML 2013); 0 clips
            nothing.
        accumulate: batches whose mean loss makes one step.
        precision: of the layers in training: `bf16` and `fp16` by autocast; fp16 on CUDA alone.
            Weights, optimisers and validation are float32.
    """

    batch_size: int = 512
    epochs: float = 1
    optimizer: Optimizer = "adam"
    lr: float = 1e-3
    embedding_lr: float = 1e-2
    beta2: float = 0.999
    weight_decay: float = 0.0
    seed: int = 0
    patience: int = 3
    validations: int = 2
    save_every: int = 500
    schedule: Schedule = "linear"
    warmup_steps: int = 0
    cycle_epochs: float = 0.0
    cycle_growth: int = 1
    clip_norm: float = 0.0
    accumulate: int = 1
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise TrainingError(f"{name}: {value!r} came; expected one of {', '.join(choices)}")
        for name, least in LEAST.items():
            if not (value := getattr(self, name)) >= least:
                raise TrainingError(f"{name}: {value} came; expected at least {least}")
        if not 0 <= self.beta2 < 1:
            raise TrainingError(f"beta2: {self.beta2} came; expected at least 0, and less than 1")

    def identity(self) -> dict[str, Any]:
        """What the trained weights depend on; of `LATER`, what is not as it always was."""
        usual = {field.name: field.default for field in fields(self)}
        return {
            key: value
            for key, value in asdict(self).items()
            if key != "save_every" and (key not in LATER or value != usual[key])
        }


# Fields that checkpoints of before them do not have.
LATER = (
    "schedule",
    "warmup_steps",
    "cycle_epochs",
    "cycle_growth",
    "clip_norm",
    "accumulate",
    "precision",
    "beta2",
)
_TYPES = get_type_hints(Hyperparameters)
CHOICES: dict[str, tuple[str, ...]] = {
    name: get_args(hint) for name, hint in _TYPES.items() if get_origin(hint) is Literal
}


def check_table(table: Mapping[str, Any]) -> None:
    """Raises TrainingError: a table of known fields has a value of another type, or one that the
    field cannot have."""
    for name, value in table.items():
        kind = str if name in CHOICES else _TYPES[name]
        kinds = (int, float) if kind is float else (kind,)
        if isinstance(value, bool) or not isinstance(value, kinds):
            expected = f"one of {', '.join(CHOICES[name])}" if kind is str else kind.__name__
            raise TrainingError(f"{name}: {value!r} came; expected {expected}")
    Hyperparameters(**table)
