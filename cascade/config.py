"""The settings of an export: what the server needs, and what the product does with the items.

Both reach a process of Triton through one JSON parameter of its config.pbtxt (`ProcessConfig`) and
are kept in release.json under `serving` and `product`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar, get_args

from cascade.spec import DENY_LIST, ConfigError, Topology

Runtime = Literal["onnx", "tensorrt", "torchscript", "aoti"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
Device = Literal["cpu", "cuda"]

# Users that may wait for a model by default. A process answers a user in about a millisecond, so
# the last user of a full queue waits for a quarter of a second, which a client allows by default.
QUEUE = 256
PARAMETER = "cascade"  # the key of config.pbtxt under which a process finds its settings
Settings = TypeVar("Settings", "Serving", "Product")


@dataclass(frozen=True)
class Serving:
    """What the server needs to run the stages.

    Args:
        instances: processes per model.
        threads: compute threads per process; 0 shares the cores out evenly among the processes.
        runtime: what runs the graphs. tensorrt and aoti load what was made for one kind of device.
        device_id: which GPU; Triton tells each instance its own.
        max_batch_size: most users in one batch.
        queue_delay_us: longest wait for a batch to fill.
        batch_users: the size at which the server closes a batch, though more requests wait; 0 = at
            `max_batch_size`. On a CPU the first users of a large batch wait for the last.
        max_queue_size: users that may wait for a model before requests are refused as UNAVAILABLE
            (`cascade.triton.admission`); 0 = no limit.
        topology: which stages share a process.
        users_per_run: most users that a process computes at once; a larger batch is cut. 0 = never.
            On a CPU large batches leave the cache; export finds the size that is fastest.
        cuda_graphs: pad a batch to the next of a few sizes and replay what was recorded for it, so
            that a run costs one launch. Elsewhere than on CUDA only the padding remains.
        half: let TensorRT compute in float16 where it finds that faster.
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

    def __post_init__(self) -> None:
        for name, known in (("runtime", RUNTIMES), ("device", get_args(Device))):
            if (value := getattr(self, name)) not in known:
                expected = ", ".join(known)
                raise ConfigError(f"parameter {name} is {value!r}; expected one of {expected}")


@dataclass(frozen=True)
class Product:
    """What the product does with the items, and where it finds the users.

    Args:
        deny_list: file of item ids that no user may get, one per line, read again when it changes.
            A relative path begins at the root of the repository. A file other than the default one
            must be there when a server starts. Empty: there is no deny list.
        pool: ranked items from which the list is chosen, more than the list is long; 0 = the list
            is the best items.
        diversity: from 0 to 1, how much an item's similarity to the items before it counts against
            its score (`cascade.stages.rerank`).
        explored: last places of a list that are drawn at random.
        temperature: of these draws; the lower, the likelier the best items.
        store: URL of the store that users by id are looked up in (`cascade.store`). Empty: requests
            carry the user's features, and there is no `recommend_user`.
        score: the formula (`cascade.formula`) of a ranker's tasks that orders the items, where it
            has several. Empty: the first task.
        prerank_score: the same of a preranker. Empty: `score`, if the preranker has all outputs
            that it reads, else the first task.
    """

    deny_list: str = DENY_LIST
    pool: int = 0
    diversity: float = 0.0
    explored: int = 0
    temperature: float = 1.0
    store: str = ""
    score: str = ""
    prerank_score: str = ""


DEFAULT_PRODUCT = Product()
# What a process reads; the rest of `Serving` stands in config.pbtxt's own fields, and the rest of
# `Product` in rerank.json.
SERVING_FIELDS = (
    "runtime",
    "device",
    "threads",
    "users_per_run",
    "max_queue_size",
    "cuda_graphs",
    "half",
)
PRODUCT_FIELDS = ("deny_list", "store")
FORMULAS = ("score", "prerank_score")  # read, too, and written where there are any


@dataclass(frozen=True)
class ProcessConfig:
    """The settings of one process: the stages that it runs, the candidates that leave the first
    stage, the schema's layout hash."""

    stages: tuple[str, ...]
    candidates: int
    layout_hash: str
    serving: Serving = Serving()
    product: Product = DEFAULT_PRODUCT

    def to_json(self) -> str:
        """The value of `PARAMETER`."""
        content = asdict(self)
        content["serving"] = {name: getattr(self.serving, name) for name in SERVING_FIELDS}
        product = vars(self.product)
        content["product"] = {name: product[name] for name in PRODUCT_FIELDS}
        content["product"] |= {name: product[name] for name in FORMULAS if product[name]}
        return json.dumps(content)

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> ProcessConfig:
        """Read the parameters of a config.pbtxt; an absent setting keeps its default. Raises
        ConfigError if they are not those of a process, or a value is of another type."""
        try:
            own = parameters.get(PARAMETER)
            content = _earlier(parameters) if own is None else json.loads(own)
            return cls(
                tuple(content["stages"]),
                int(content["candidates"]),
                str(content["layout_hash"]),
                _settings(Serving, content["serving"]),
                _settings(Product, content["product"]),
            )
        except ConfigError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"the parameters of a config.pbtxt are damaged ({error!r}): export again"
            ) from error


def of_release(release: Mapping[str, Any]) -> tuple[Serving, Product]:
    """The settings that a release.json records. Earlier releases have all of them in `serving`.
    Raises ConfigError if a setting is unknown or of another type."""
    try:
        known = {**release["serving"], **release.get("product", {})}
        serving = {f.name: known.pop(f.name) for f in fields(Serving) if f.name in known}
        return _settings(Serving, serving), _settings(Product, known)
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"release {release.get('version')} does not say how it is served ({error!r}): export "
            "again"
        ) from error


def _settings(settings: type[Settings], values: Mapping[str, Any]) -> Settings:
    """The values in the types of the defaults; earlier releases wrote `0` and `1` for bool."""
    kinds = {name: type(default) for name, default in asdict(settings()).items()}
    if unknown := set(values) - set(kinds):
        raise ConfigError(f"unknown setting {', '.join(sorted(unknown))}")
    typed: dict[str, Any] = {}
    for name, value in values.items():
        flag = kinds[name] is bool and isinstance(value, str)
        typed[name] = value == "1" if flag else kinds[name](value)
    return settings(**typed)


def _earlier(parameters: Mapping[str, str]) -> dict[str, Any]:
    """The parameters of a release that was exported before there was `PARAMETER`."""
    return {
        "stages": parameters["stages"].split(","),
        "candidates": parameters["candidates"],
        "layout_hash": parameters.get("layout_hash", ""),
        "serving": {name: parameters[name] for name in SERVING_FIELDS if name in parameters},
        "product": {name: parameters[name] for name in PRODUCT_FIELDS if name in parameters},
    }
