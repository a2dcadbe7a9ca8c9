"""What is compared on what: the data sets, the models, and the budget that all of them have."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cascade.models import MODELS
from cascade.models.scorer import Retriever
from cascade.training.loop import Hyperparameters

RETRIEVERS = tuple(name for name, entry in MODELS.items() if issubclass(entry.model, Retriever))
NO_MODELS = ("blend",)  # adds up others
FRONT = "two_tower"  # the retriever whose lists rankers order
SEVERAL = ("shared_bottom", "mmoe")  # of several tasks
ALONE = "shared_bottom"  # what a single task is trained with, beside these
SERVED_ON = "movielens"  # whose features every model can read
PRESET = {"dlrm": "small"}  # the others have one called default
OF_CHOICES = {"two_tower": "factors"}  # made for a softmax over the catalogue
TEXTBOOK = "two_tower:default"  # beside it, on a log of choices


@dataclass(frozen=True)
class Budget:
    """What every model of a kind gets on a data set.

    Attributes:
        hyper: how it is trained.
        drawn: items beside a choice, of rankers on a log of choices.
        queries: validation lists by which the weights are chosen there.
        judged: test lists by which the model is judged.
    """

    hyper: Hyperparameters
    drawn: int = 8
    queries: int = 1_000
    judged: int = 50_000

    def quick(self) -> Budget:
        """The same for a moment: whether it runs, not what it finds."""
        return replace(self, hyper=replace(self.hyper, epochs=0.02), queries=50, judged=50)


@dataclass(frozen=True)
class DataSet:
    """A data set, and the budgets of its retrievers and rankers.

    Attributes:
        spec: as `--data` takes it, but for the folder of real rows.
        folder: of these, among the shared data; empty where rows are drawn.
        choices: whether users found the items by themselves.
        history: whether a user has a sequence of items.
        unknowns: whether rankers meet ids as unknown, for rows are few.
        several: whether its rows have several labels, which models of several tasks learn.
    """

    spec: str
    retrieve: Budget
    rank: Budget
    folder: str = ""
    choices: bool = False
    history: bool = False
    unknowns: bool = False
    several: bool = False

    def source(self, shared: Path, quick: bool) -> str:
        """What `--data` names."""
        if self.folder:
            return f"{self.spec}:{shared / self.folder}"
        size = "rows=4000,items=500" if quick else "rows=4000000,items=20000"
        return f"{self.spec}:{size}{',tasks=3' if self.several else ''}"

    def models(self) -> list[str]:
        """The models that can read its features, retrievers first."""
        if self.several:
            return [FRONT, *SEVERAL]
        named = [name for name in MODELS if name not in (*NO_MODELS, *SEVERAL)]
        fit = [n for n in named if self.history or "history" not in MODELS[n].model.needs]
        return sorted(fit, key=lambda name: name not in RETRIEVERS)


ON_CHOICES = Hyperparameters(
    512, 6, lr=3e-3, embedding_lr=3e-3, weight_decay=2e-2, validations=1, patience=3
)
SETS = {
    "movielens": DataSet(
        "movielens",
        retrieve=Budget(ON_CHOICES),
        rank=Budget(replace(ON_CHOICES, batch_size=256, epochs=3, lr=1e-3, validations=2)),
        folder="ml-latest-small",
        choices=True,
        history=True,
    ),
    "criteo": DataSet(
        "criteo",
        retrieve=Budget(Hyperparameters(256, 6, lr=1e-3, patience=4)),
        rank=Budget(
            Hyperparameters(
                256, 12, lr=3e-4, embedding_lr=1e-3, weight_decay=1.0, validations=4, patience=12
            )
        ),
        folder="criteo-kaggle-10k/train.txt",
        unknowns=True,
    ),
    "synthetic": DataSet(
        "synthetic",
        retrieve=Budget(Hyperparameters(512, 0.25, lr=1e-3, embedding_lr=2e-2)),
        rank=Budget(
            Hyperparameters(512, 1, lr=1e-3, embedding_lr=3e-3, weight_decay=0.1, validations=4)
        ),
    ),
}
SETS["tasks"] = replace(
    SETS["synthetic"],
    rank=Budget(Hyperparameters(512, 1, lr=2e-3, embedding_lr=3e-3, validations=4)),
    several=True,
)


def retrieves(name: str) -> bool:
    """Whether figures of this name are a retriever's: `model`, or `model:preset`."""
    return name.partition(":")[0] in RETRIEVERS


def named(model: str, choices: bool) -> str:
    """A model with the preset that is compared, on a log of choices or on impressions; one that
    names its own stays as it is."""
    if ":" in model:
        return model
    presets = {**PRESET, **OF_CHOICES} if choices else PRESET
    return f"{model}:{presets.get(model, 'default')}"
