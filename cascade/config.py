"""The settings of an export: what the server needs, and what the product does with the items.

Both reach a process of Triton through one JSON parameter of its config.pbtxt (`ProcessConfig`) and
are kept in release.json under `serving` and `product`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeVar, get_args

from cascade.spec import DENY_LIST, ConfigError, Topology

Runtime = Literal["onnx", "tensorrt", "torchscript", "aoti"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
Device = Literal["cpu", "cuda"]
DEVICES: tuple[Device, ...] = get_args(Device)

# Users that may wait for a model by default. A process answers a user in about a millisecond
# (`users_per_run` of release.json has the measured times), so the last user of a full queue waits
# for a quarter of a second, which a client allows by default.
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
        device: where they run.
        device_id: which GPU; Triton tells each instance its own.
        max_batch_size: most users in one batch.
        queue_delay_us: longest wait for a batch to fill.
        batch_users: the size at which the server closes a batch of waiting requests, though more
            wait; 0 = at `max_batch_size`. All users of a batch are answered together, so on a CPU a
            large batch makes its first users wait for the last.
        max_queue_size: users that may wait for a model before requests are refused as UNAVAILABLE
            (`cascade.triton.admission`); 0 = no limit.
        topology: which stages share a process.
        users_per_run: most users that a process computes at once; a larger batch is cut. 0 = never.
            On a CPU large batches leave the cache; export finds the size that is fastest.
        cuda_graphs: pad a batch to the next of a few sizes and replay what was recorded for it, so
            that a run costs one launch. Elsewhere than on CUDA only the padding remains.
        half: let TensorRT compute in float16 where it finds that faster.

    Raises:
        ConfigError: the runtime or the device is unknown.
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
        for name, value, known in (
            ("runtime", self.runtime, RUNTIMES),
            ("device", self.device, DEVICES),
        ):
            if value not in known:
                raise ConfigError(
                    f"parameter {name} is {value!r}; expected one of {', '.join(known)}"
                )


@dataclass(frozen=True)
class Product:
    """What the product does with the items, and where it finds the users.

    Args:
        deny_list: file of item ids that no user may get, one per line, read again when it changes.
            A relative path begins at the root of the repository. Empty: there is no deny list.
        pool: ranked items from which the list is chosen, more than the list is long; 0 = the list
            is the best items.
        diversity: from 0 to 1, how much an item's similarity to the items before it counts against
            its score (`cascade.stages.rerank`).
        explored: last places of a list that are drawn at random.
        temperature: of these draws; the lower, the likelier the best items.
        store: URL of the store that users by id are looked up in (`cascade.store`). Empty: requests
            carry the user's features, and there is no `recommend_user`.
    """

    deny_list: str = DENY_LIST
    pool: int = 0
    diversity: float = 0.0
    explored: int = 0
    temperature: float = 1.0
    store: str = ""


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


@dataclass(frozen=True)
class ProcessConfig:
    """The settings of one process.

    Args:
        stages: that it runs, in order.
        candidates: that leave the first stage.
        layout_hash: of the schema (`Schema.layout_hash`).
    """

    stages: tuple[str, ...]
    candidates: int
    layout_hash: str
    serving: Serving = Serving()
    product: Product = DEFAULT_PRODUCT

    def to_json(self) -> str:
        """The value of `PARAMETER`."""
        serving, product = asdict(self.serving), asdict(self.product)
        return json.dumps(
            {
                "stages": self.stages,
                "candidates": self.candidates,
                "layout_hash": self.layout_hash,
                "serving": {name: serving[name] for name in SERVING_FIELDS},
                "product": {name: product[name] for name in PRODUCT_FIELDS},
            }
        )

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> ProcessConfig:
        """Read the parameters of a config.pbtxt; an absent setting keeps its default.

        Raises:
            ConfigError: the parameters are not those of a process, or a value is of another type.
        """
        try:
            if PARAMETER in parameters:
                content = json.loads(parameters[PARAMETER])
            else:
                content = _earlier(parameters)
            return cls(
                tuple(content["stages"]),
                int(content["candidates"]),
                str(content["layout_hash"]),
                Serving(**_typed(Serving, content["serving"])),
                Product(**_typed(Product, content["product"])),
            )
        except ConfigError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"the parameters of a config.pbtxt are damaged ({error!r}): export again"
            ) from error


def of_release(release: Mapping[str, Any]) -> tuple[Serving, Product]:
    """The settings that a release.json records. Earlier releases have all of them in `serving`.

    Raises:
        ConfigError: a setting is unknown or of another type.
    """
    try:
        known = {**release["serving"], **release.get("product", {})}
        serving = {f.name: known.pop(f.name) for f in fields(Serving) if f.name in known}
        return Serving(**_typed(Serving, serving)), Product(**_typed(Product, known))
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"release {release.get('version')} does not say how it is served ({error!r}): export "
            "again"
        ) from error


def one_thread(serving: Serving) -> Serving:
    """The same settings on one compute thread: for measurements and comparisons."""
    return replace(serving, threads=1)


def _typed(settings: type[Settings], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values in the types of the defaults; earlier releases wrote `0` and `1` for bool."""
    defaults: dict[str, Any] = asdict(settings())
    if unknown := set(values) - set(defaults):
        raise ConfigError(f"unknown setting {', '.join(sorted(unknown))}")
    return {
        name: value == "1" if isinstance(value, str) and kind is bool else kind(value)
        for name, value in values.items()
        for kind in (type(defaults[name]),)
    }


def _earlier(parameters: Mapping[str, str]) -> dict[str, Any]:
    """The parameters of a release that was exported before there was `PARAMETER`."""
    return {
        "stages": parameters["stages"].split(","),
        "candidates": parameters["candidates"],
        "layout_hash": parameters.get("layout_hash", ""),
        "serving": {name: parameters[name] for name in SERVING_FIELDS if name in parameters},
        "product": {name: parameters[name] for name in PRODUCT_FIELDS if name in parameters},
    }
