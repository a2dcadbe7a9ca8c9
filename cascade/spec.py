"""What crosses a process boundary: the stages, their tensors and their sizes.

config.pbtxt, the ONNX signatures, the in-process pipeline and the clients are all derived from
`stages(schema, sizes)`; nothing else names a tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, Literal, get_args

from cascade.schema import Schema

DType = Literal["FP32", "INT64", "BYTES", "BOOL"]
Runtime = Literal["onnx", "tensorrt", "torchscript", "aoti"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
Device = Literal["cpu", "cuda"]
Precision = Literal["float32", "float16", "int8"]
Weights = Literal["float32", "float16", "bfloat16", "int8"]
Topology = Literal["ensemble", "paired", "fused"]

RETRIEVE, PRERANK, RANK, ENSEMBLE = "retrieve", "prerank", "rank", "recommend"
STAGES = (RETRIEVE, PRERANK, RANK)
EXCLUDE, ALLOW = "exclude", "allow"  # what a user is not to get, and what alone he may get
PROPENSITIES = "propensities"  # with which the last places were drawn, where they are
DENY_LIST = "deny.txt"  # in the root of a repository: what nobody is to get
# Users by id: what reads their features from a store, in the process of the first stage, and the
# cascade that is asked so.
LOOKUP, RECOMMEND_USER = "lookup", "recommend_user"
USER_ID, CONTEXT, COLD_START = "user_id", "context", "cold_start"
FEATURES = ("dense", "categorical")
# A parameter of a request: microseconds since 1970 after which nobody waits for its answer.
DEADLINE = "deadline_us"
CHALLENGER_SHARE = "challenger_share"  # of the users: a parameter of `recommend`, for its clients
CATALOGUE_IDS = "catalogue_ids"  # the outside world's id of every catalogue row, with the ranker
RERANK = "rerank.json"  # with the ranker, where the list is chosen from a pool
SCORE = "score"  # prerank and rank in one process
# By topology: every Python model and the stages that one of its processes runs. What clients call
# is `recommend` in all of them: an ensemble over these models, or the one model itself.
TOPOLOGIES: dict[Topology, dict[str, tuple[str, ...]]] = {
    "ensemble": {name: (name,) for name in STAGES},
    "paired": {RETRIEVE: (RETRIEVE,), SCORE: (PRERANK, RANK)},
    "fused": {ENSEMBLE: STAGES},
}
# Users that may wait for a model unless told otherwise. A process answers a user in about a
# millisecond (`users_per_run` of release.json has the measured times), so the last of a full queue
# waits for a quarter of a second, which a client allows by default; and a moment in which a shared
# machine does nothing costs nobody an answer.
QUEUE = 256
# Every process that there can be.
PROCESSES = {model: held for models in TOPOLOGIES.values() for model, held in models.items()}


@dataclass(frozen=True)
class Tensor:
    """A tensor without its batch dimension.

    Args:
        optional: a request may come without it.
    """

    name: str
    dtype: DType
    dims: tuple[int, ...]
    optional: bool = False


# The number of the release that answered: of the last process, whichever stages it holds.
RELEASE = Tensor("release", "INT64", (1,))


@dataclass(frozen=True)
class Stage:
    """One step of the cascade as the server sees it."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def stage_path(topology: Topology, stage: str, version: int) -> PurePath:
    """Where the files of a stage lie in a repository: in the version folder of its process, in a
    folder of their own where the process runs several."""
    model, held = next(item for item in TOPOLOGIES[topology].items() if stage in item[1])
    folder = PurePath(model, str(version))
    return folder if len(held) == 1 else folder / stage


def chain(stages: Sequence[Stage], name: str) -> Stage:
    """Neighbouring stages in one process, as the server sees them: what they need from outside,
    and what the last one returns."""
    made = {tensor.name for stage in stages for tensor in stage.outputs}
    needed = {t.name: t for stage in stages for t in stage.inputs if t.name not in made}
    return Stage(name, tuple(needed.values()), stages[-1].outputs)


@dataclass(frozen=True)
class Sizes:
    """How many candidates leave each stage."""

    candidates: int = 1000
    survivors: int = 200
    results: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.results <= self.survivors <= self.candidates:
            raise ValueError(
                f"sizes must shrink from stage to stage: got {self.candidates} candidates, "
                f"{self.survivors} survivors, {self.results} results"
            )


@dataclass(frozen=True)
class Serving:
    """How the server runs a stage. Everything here ends up in config.pbtxt.

    Args:
        instances: processes per stage.
        threads: compute threads per process; 0 shares the cores out evenly among the processes.
        runtime: what runs the graphs. tensorrt and aoti load what was made for one kind of device.
        device: where they run.
        device_id: which GPU; Triton tells each instance its own.
        max_batch_size: most users in one batch.
        queue_delay_us: longest wait for a batch to fill.
        batch_users: the size at which the server closes a batch of waiting requests, though more
            wait; 0 = at `max_batch_size`. All of a batch are answered together, so on a CPU a large
            one makes its first users wait for the last.
        max_queue_size: users that may wait for a model before requests are refused as UNAVAILABLE
            (`cascade.triton.admission`); 0 = as many as come.
        topology: which stages share a process.
        cuda_graphs: pad a batch to the next of a few sizes and replay what was recorded for it, so
            that a run costs one launch. Elsewhere than on CUDA only the padding remains.
        half: let TensorRT compute in float16 where it finds that faster.
        users_per_run: most users that a process computes at once; a larger batch is cut. 0 = never.
            On a CPU large batches leave the cache; export finds the size that is fastest.
        deny_list: file of item ids that nobody is to get, one per line; read again when it changes.
            A relative path begins at the root of the repository. Empty: there is none.
        pool: ranked items from which the list is chosen, more than it is long; 0 = it is the best
            of them, as they come.
        diversity: from 0 to 1, what unlikeness to the items in front of it counts against an item's
            score (`cascade.stages.rerank`).
        explored: last places of a list that are drawn by chance.
        temperature: of these draws; the lower, the likelier the best.
        store: URL of the store that users who come by id are looked up in (`cascade.store`); empty:
            they come with their features, and there is no `recommend_user`.
    """

    instances: int = 1
    threads: int = 0
    runtime: Runtime = "onnx"
    device: Device = "cpu"
    device_id: int = 0
    max_batch_size: int = 64
    queue_delay_us: int = 0
    batch_users: int = 0
    max_queue_size: int = QUEUE
    topology: Topology = "ensemble"
    users_per_run: int = 0
    cuda_graphs: bool = False
    half: bool = False
    deny_list: str = DENY_LIST
    pool: int = 0
    diversity: float = 0.0
    explored: int = 0
    temperature: float = 1.0
    store: str = ""

    def parameters(self) -> dict[str, str]:
        """The knobs that the Python process itself reads."""
        return {
            "runtime": self.runtime,
            "device": self.device,
            "threads": str(self.threads),
            "users_per_run": str(self.users_per_run),
            "max_queue_size": str(self.max_queue_size),
            "cuda_graphs": str(int(self.cuda_graphs)),
            "half": str(int(self.half)),
        }

    @classmethod
    def from_parameters(cls, values: Mapping[str, str]) -> Serving:
        """Read back `parameters`; what is absent keeps its default."""
        runtime, device = values.get("runtime", "onnx"), values.get("device", "cpu")
        if runtime not in RUNTIMES:
            raise ValueError(f"parameter runtime is {runtime!r}; expected one of {[*RUNTIMES]}")
        if device not in ("cpu", "cuda"):
            raise ValueError(f"parameter device is {device!r}; expected 'cpu' or 'cuda'")
        return cls(
            threads=int(values.get("threads", "0")),
            users_per_run=int(values.get("users_per_run", "0")),
            max_queue_size=int(values.get("max_queue_size", QUEUE)),
            runtime=runtime,
            device="cpu" if device == "cpu" else "cuda",
            cuda_graphs=values.get("cuda_graphs", "0") == "1",
            half=values.get("half", "0") == "1",
            deny_list=values.get("deny_list", DENY_LIST),
            store=values.get("store", ""),
        )


def stages(schema: Schema, sizes: Sizes) -> tuple[Stage, ...]:
    """The three stages in order, each output feeding the input of the same name."""
    request = (
        Tensor("dense", "FP32", (schema.dense_width("user"),)),
        Tensor("categorical", "BYTES", (schema.wire_width("user"),)),
    )
    # One element each, whatever they hold: requests of unequal shape would not batch.
    filters = tuple(Tensor(name, "BYTES", (1,), optional=True) for name in (EXCLUDE, ALLOW))
    user = (
        Tensor("user_dense", "FP32", (schema.dense_width("user"),)),
        Tensor("user_ids", "INT64", (schema.ids_width("user"),)),
    )
    candidates = Tensor("candidates", "INT64", (sizes.candidates,))
    survivors = Tensor("survivors", "INT64", (sizes.survivors,))
    results = (
        Tensor("item_ids", "INT64", (sizes.results,)),
        Tensor("scores", "FP32", (sizes.results,)),
    )
    return (
        Stage(RETRIEVE, (*request, *filters), (*user, candidates)),
        Stage(PRERANK, (*user, candidates), (survivors,)),
        Stage(RANK, (*user, survivors), results),
    )


def by_id(process: Stage) -> Stage:
    """The first process, where users may come by id: it looks up their features, and says of whom
    it found none. A request has either `dense` and `categorical`, or `user_id` and, if it likes,
    `context`: a JSON object of raw feature values by name, one element whatever it holds, because
    requests of unequal shape would not batch.
    """
    asked = (Tensor(USER_ID, "BYTES", (1,)), Tensor(CONTEXT, "BYTES", (1,)))
    return Stage(
        process.name,
        tuple(replace(tensor, optional=True) for tensor in (*process.inputs, *asked)),
        (*process.outputs, Tensor(COLD_START, "BOOL", (1,))),
    )


def wire_features(schema: Schema) -> str:
    """The features of a request as JSON: what a client needs to build its tensors. `items` are the
    features by whose values it may ask for items; an export may leave some out. A `bag` takes a
    list; where it says `sequence`, the last members are read in place of the first."""
    return json.dumps(
        {
            "dense": [feature.name for feature in schema.dense("user")],
            "categorical": [
                {"name": f.name, "bag": f.multivalued, "length": f.length}
                | ({"sequence": True} if f.kind == "sequence" else {})
                for f in schema.ids("user")
            ],
            "items": [feature.name for feature in schema.ids("item")],
        }
    )


def sizes_from(value: Mapping[str, Any]) -> Sizes:
    """Read `Sizes` back from JSON."""
    return Sizes(**{key: int(value[key]) for key in ("candidates", "survivors", "results")})
