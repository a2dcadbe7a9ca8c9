"""The contract between processes: the stages, their tensors and their sizes. config.pbtxt, the ONNX
signatures, the in-process pipeline and the clients are all derived from `stages(schema, sizes)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, Literal, TypeVar

from cascade.errors import CascadeError
from cascade.schema import Schema

DType = Literal["FP32", "INT64", "BYTES", "BOOL"]
Precision = Literal["float32", "float16"]
Weights = Literal["float32", "float16", "bfloat16", "int8"]
Topology = Literal["ensemble", "paired", "fused"]
T = TypeVar("T")

RETRIEVE, PRERANK, RANK, ENSEMBLE = "retrieve", "prerank", "rank", "recommend"
STAGES = (RETRIEVE, PRERANK, RANK)
EXCLUDE, ALLOW = "exclude", "allow"  # items that a user must not get, values that items must have
TASKS = "tasks"  # the only output of a graph of several tasks: all of them, of every candidate
TASK_SCORES = "task_scores"  # the same of the items of an answer
PROPENSITIES = "propensities"  # the probabilities with which the last places were drawn
# The variable with the repository that a server was started on: it may load models from a copy.
REPOSITORY_VARIABLE = "CASCADE_REPOSITORY"
FILES_VARIABLE = (
    "CASCADE_FILES"  # the folder that a server's processes share, and that ends with it
)
DENY_LIST = "deny.txt"  # in the root of a repository: items that no user may get
# Users by id: the stage that reads their features from a store, in the process of the first stage,
# and the model that clients ask by id.
LOOKUP, RECOMMEND_USER = "lookup", "recommend_user"
# The model that takes a context and filters beside the user's features. `recommend` takes the
# features alone, because load generators fill every input, optional ones, too, with random text.
RECOMMEND_FILTERED = "recommend_filtered"
FRONTS = (RECOMMEND_USER, RECOMMEND_FILTERED, ENSEMBLE)  # what clients ask; loaded in this order
FILTERED = "filtered"  # a parameter of `recommend`: the name of the model that takes filters
USER_ID, CONTEXT, COLD_START = "user_id", "context", "cold_start"
FEATURES = ("dense", "categorical")
TEXTS = (CONTEXT, EXCLUDE, ALLOW)
ITEM_IDS, SCORES = "item_ids", "scores"
# A parameter of a request: microseconds since 1970 after which its client no longer waits.
DEADLINE = "deadline_us"
CHALLENGER_SHARE = "challenger_share"  # of the users: a parameter of `recommend`, read by clients
ITEM_STATE = "item_state"  # the precomputed part of every item, with a scoring stage
CATALOGUE_IDS = "catalogue_ids"  # the external id of every catalogue row, with the ranker
RERANK = "rerank.json"  # with the ranker, if the list is chosen from a pool
ITEM_NAMES = "item_names.json"  # with the ranker, if the ids of items are strings
SCORE = "score"  # prerank and rank in one process
FUSED = "cascade"  # all stages in one process


class ConfigError(CascadeError, ValueError):
    """Settings that contradict each other, or that no server can run with."""


@dataclass(frozen=True)
class Process:
    """A model of the repository that computes: the stages it runs, and the Triton backend that runs
    them."""

    stages: tuple[str, ...]
    backend: Literal["python"] = "python"


# By topology: every process. What clients call (`FRONTS`) are ensembles over these models.
TOPOLOGIES: dict[Topology, dict[str, Process]] = {
    "ensemble": {name: Process((name,)) for name in STAGES},
    "paired": {RETRIEVE: Process((RETRIEVE,)), SCORE: Process((PRERANK, RANK))},
    "fused": {FUSED: Process(STAGES)},
}
# Releases of earlier versions, whose one process was `recommend` itself: these are read and served,
# and `export rewire` writes them anew.
EARLIER_FUSED = "fused, as recommend"
WIRINGS: dict[str, dict[str, Process]] = {
    **{str(name): models for name, models in TOPOLOGIES.items()},
    EARLIER_FUSED: {ENSEMBLE: Process(STAGES)},
}
# Every process that a topology has.
PROCESSES = {name: process for models in TOPOLOGIES.values() for name, process in models.items()}


@dataclass(frozen=True)
class Tensor:
    """A tensor without its batch dimension; a request may leave out one that is `optional`."""

    name: str
    dtype: DType
    dims: tuple[int, ...]
    optional: bool = False


# The number of the release that answered: an output of the process that ranks.
RELEASE = Tensor("release", "INT64", (1,))
# How many candidates have a score that is no finite number: an output of the graphs that score,
# which their processes add up and keep.
NOT_FINITE = Tensor("not_finite", "INT64", (1,))
# How many values of the user no vocabulary has: an output of the process that retrieves.
UNKNOWN_VALUES = Tensor("unknown_values", "INT64", (1,))


@dataclass(frozen=True)
class Stage:
    """One step of the cascade as the server sees it."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def stage_path(topology: str, stage: str, version: int) -> PurePath:
    """The folder of a stage in a repository, by its topology (`WIRINGS`): the version folder of its
    process, or a folder of its own in it if the process runs several stages. Raises ConfigError for
    an unknown stage."""
    for model, process in WIRINGS[topology].items():
        if stage in process.stages:
            folder = PurePath(model, str(version))
            return folder if len(process.stages) == 1 else folder / stage
    raise ConfigError(f"topology {topology} has no stage {stage!r}; expected one of {STAGES}")


def chain(stages: Sequence[Stage], name: str) -> Stage:
    """Consecutive stages in one process: what they need from outside, what the last one returns."""
    return Stage(name, from_outside((s.inputs, s.outputs) for s in stages), stages[-1].outputs)


def from_outside(steps: Iterable[tuple[Iterable[T], Iterable[T]]]) -> tuple[T, ...]:
    """The inputs of a chain of steps, (inputs, outputs) each, that no earlier step makes."""
    needed: dict[T, None] = {}
    made: set[T] = set()
    for inputs, outputs in steps:
        needed |= dict.fromkeys(name for name in inputs if name not in made)
        made.update(outputs)
    return tuple(needed)


@dataclass(frozen=True)
class Sizes:
    """How many candidates leave each stage."""

    candidates: int = 1000
    survivors: int = 200
    results: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.results <= self.survivors <= self.candidates:
            got = (
                f"{self.candidates} candidates, {self.survivors} survivors, {self.results} results"
            )
            raise ConfigError(f"sizes must shrink from stage to stage: got {got}")


def stages(schema: Schema, sizes: Sizes) -> tuple[Stage, ...]:
    """The three stages in order, each output feeding the input of the same name.

    A request says who the user is by `dense` and `categorical`, by `context` (a JSON object of raw
    feature values by name), or by both: the context lies over the tensors.
    """
    request = (
        Tensor("dense", "FP32", (schema.dense_width("user"),), optional=True),
        Tensor("categorical", "BYTES", (schema.wire_width("user"),), optional=True),
    )
    # One element each, whatever its content: requests of unequal shape would not batch.
    texts = tuple(Tensor(name, "BYTES", (1,), optional=True) for name in TEXTS)
    user = (
        Tensor("user_dense", "FP32", (schema.dense_width("user"),)),
        Tensor("user_ids", "INT64", (schema.ids_width("user"),)),
    )
    candidates = Tensor("candidates", "INT64", (sizes.candidates,))
    survivors = Tensor("survivors", "INT64", (sizes.survivors,))
    results = (
        Tensor(ITEM_IDS, "INT64", (sizes.results,)),
        Tensor(SCORES, "FP32", (sizes.results,)),
    )
    return (
        Stage(RETRIEVE, (*request, *texts), (*user, candidates)),
        Stage(PRERANK, (*user, candidates), (survivors,)),
        Stage(RANK, (*user, survivors), results),
    )


def answered(outputs: Iterable[Tensor], schema: Schema) -> tuple[Tensor, ...]:
    """The outputs of the process that ranks: the graph knows items by int64 keys, the answer by
    their ids, which may be strings."""
    strings = {ITEM_IDS} if schema.string_ids else {}
    return tuple(replace(t, dtype="BYTES") if t.name in strings else t for t in outputs)


def by_id(process: Stage) -> Stage:
    """The first process, for users by id: it looks up their features, and says for which users it
    found none."""
    return Stage(
        process.name,
        (*process.inputs, Tensor(USER_ID, "BYTES", (1,), optional=True)),
        (*process.outputs, Tensor(COLD_START, "BOOL", (1,))),
    )


def sizes_from(value: Mapping[str, Any]) -> Sizes:
    """Read `Sizes` back from JSON."""
    return Sizes(**{key: int(value[key]) for key in ("candidates", "survivors", "results")})
