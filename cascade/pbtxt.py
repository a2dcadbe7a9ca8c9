"""config.pbtxt of every model, built as a protobuf message from `cascade.spec`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from cascade import spec
from cascade.artifact import ArtifactError
from cascade.config import (
    DEFAULT_PRODUCT,
    PARAMETER,
    ProcessConfig,
    Product,
    Serving,
    of_release,
)
from cascade.files import replace_text
from cascade.layout import RequestLayout
from cascade.release import read_release, tasks_of
from cascade.schema import Schema
from cascade.spec import (
    ENSEMBLE,
    FRONTS,
    RECOMMEND_FILTERED,
    RECOMMEND_USER,
    RETRIEVE,
    Process,
    Sizes,
    Tensor,
    sizes_from,
    stage_path,
)

MODEL_PY = '''"""All of it is in the library."""

from cascade.triton.adapter import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
ON_CPU = pb.ModelInstanceGroup.KIND_CPU
LOWEST_PRIORITY = 2**32 - 1  # 1 is the highest; an instance waits in proportion to it


def process_config(
    model: str,
    schema: Schema,
    sizes: Sizes,
    serving: Serving,
    product: Product,
    process: Process,
    tasks: Sequence[str] = (),
) -> pb.ModelConfig:
    """A process of the Python backend; `tasks` are the ranker's, where it has several."""
    held = process.stages
    stage = spec.chain([s for s in spec.stages(schema, sizes) if s.name in held], model)
    if RETRIEVE not in held:
        product = replace(product, deny_list="", store="")  # the first process reads both
    elif product.store:
        stage, held = spec.by_id(stage), (spec.LOOKUP, *held)
    if held[-1] == RETRIEVE:
        product = replace(product, score="", prerank_score="")
    outputs = stage.outputs
    if RETRIEVE in held:
        outputs = (*outputs, spec.UNKNOWN_VALUES)
    if spec.RANK in held:
        outputs = (*spec.answered(outputs, schema), spec.RELEASE)
        if tasks:
            shape = (sizes.results, len(tasks))
            outputs = (*outputs, Tensor(spec.TASK_SCORES, "FP32", shape))
        if product.explored:
            outputs = (*outputs, Tensor(spec.PROPENSITIES, "FP32", (sizes.results,)))
    size = serving.max_batch_size
    config = pb.ModelConfig(name=model, backend=process.backend, max_batch_size=size)
    _tensors(config, stage.inputs, outputs)
    _instances(config, serving)
    batching = config.dynamic_batching
    batching.SetInParent()  # batch even where every setting has its default
    batching.max_queue_delay_microseconds = serving.queue_delay_us
    if serving.batch_users:
        batching.preferred_batch_size.append(serving.batch_users)
    settings = ProcessConfig(held, sizes.candidates, schema.layout_hash, serving, product)
    _parameters(config, {PARAMETER: settings.to_json()})
    return config


def ensemble_config(
    name: str,
    serving: Serving,
    version: int,
    members: Sequence[pb.ModelConfig],
    without: Sequence[str],
) -> pb.ModelConfig:
    """The cascade: every step pinned to one release, every tensor under its own name; `without`
    are tensors of the members that are no part of these requests and answers."""
    config = pb.ModelConfig(name=name, platform="ensemble", max_batch_size=serving.max_batch_size)
    returned = {
        spec.COLD_START,
        spec.UNKNOWN_VALUES.name,
        *(tensor.name for tensor in members[-1].output),
    }
    made: set[str] = set()
    for member in members:
        step = config.ensemble_scheduling.step.add(model_name=member.name, model_version=version)
        inputs = [tensor for tensor in member.input if tensor.name not in without]
        outputs = [tensor for tensor in member.output if tensor.name not in without]
        config.input.extend(tensor for tensor in inputs if tensor.name not in made)
        config.output.extend(tensor for tensor in outputs if tensor.name in returned)
        step.input_map.update({tensor.name: tensor.name for tensor in inputs})
        step.output_map.update({tensor.name: tensor.name for tensor in outputs})
        made |= {*step.input_map, *step.output_map}
    for tensor in config.input:
        if tensor.name == spec.USER_ID:
            tensor.ClearField("optional")  # optional for the member alone
    return config


def configs(
    schema: Schema,
    sizes: Sizes,
    serving: Serving,
    version: int,
    users_per_run: Mapping[str, int] | None = None,
    *,
    product: Product = DEFAULT_PRODUCT,
    tasks: Sequence[str] = (),
) -> dict[str, pb.ModelConfig]:
    """Every model of the repository by name; `users_per_run` is by model, too; `tasks` are the
    ranker's, where it has several."""
    found = {}
    for model, process in spec.TOPOLOGIES[serving.topology].items():
        runs = (users_per_run or {}).get(model, serving.users_per_run)
        own = replace(serving, users_per_run=runs)
        found[model] = process_config(model, schema, sizes, own, product, process, tasks)
    members = [*found.values()]
    by_id = (spec.USER_ID, spec.COLD_START)
    without = {ENSEMBLE: (*by_id, *spec.TEXTS), RECOMMEND_FILTERED: by_id}
    if product.store:
        without[RECOMMEND_USER] = spec.FEATURES
    # What a client reads to build a request, under the names that clients of earlier releases know.
    request = {"features": RequestLayout.of(schema).to_json(), "sizes": json.dumps(asdict(sizes))}
    for name, left_out in without.items():
        found[name] = ensemble_config(name, serving, version, members, left_out)
        _parameters(found[name], {"layout_hash": schema.layout_hash})
        if tasks:
            _parameters(found[name], {spec.TASKS: json.dumps([*tasks])})
        if name != RECOMMEND_USER:
            _parameters(found[name], request)
    _parameters(found[ENSEMBLE], {spec.FILTERED: RECOMMEND_FILTERED})
    return found


def runs_of(release: Mapping[str, Any], serving: Serving) -> dict[str, int]:
    """Users per run by model, as an export measured them; none where `serving` says how many."""
    if serving.users_per_run:
        return {}
    runs = {model: found["chosen"] for model, found in release.get("users_per_run", {}).items()}
    if ENSEMBLE in runs:  # of an earlier version: the name that the fused process had
        runs[spec.FUSED] = runs.pop(ENSEMBLE)
    return runs


def write(
    repository: Path,
    schema: Schema,
    sizes: Sizes,
    serving: Serving,
    version: int,
    users_per_run: Mapping[str, int] | None = None,
    *,
    product: Product = DEFAULT_PRODUCT,
    tasks: Sequence[str] = (),
) -> None:
    """Write config.pbtxt of every model, and model.py of every process's version. Raises
    ArtifactError if the repository holds models that these settings do not have."""
    how = (schema, sizes, serving, version, users_per_run)
    made = configs(*how, product=product, tasks=tasks)
    front = repository / ENSEMBLE / "config.pbtxt"
    if front.exists() and read(front).backend != made[ENSEMBLE].backend:
        raise ArtifactError(
            f"{repository} is wired in another way than {serving.topology}, or by an earlier "
            "version: export into another folder"
        )
    held = {path.parent.name for path in repository.glob("*/config.pbtxt")}
    others = sorted(held & {*spec.PROCESSES, *FRONTS} - {*made})
    if others:
        raise ArtifactError(
            f"{repository} holds {', '.join(others)}, which topology {serving.topology} "
            f"{'with' if product.store else 'without'} a store does not have, and the server would "
            "load them as well: export into another folder"
        )
    for name, config in made.items():
        folder = repository / name / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        save(config, repository / name / "config.pbtxt")
        if config.backend == "python":
            (folder / "model.py").write_text(MODEL_PY)
        else:
            (folder / ".gitkeep").touch()  # Triton wants the folder, git does not keep it empty


def read(path: Path) -> pb.ModelConfig:
    """A config.pbtxt as a message. Fields that only a newer server knows are ignored. Raises
    ArtifactError if the file is no model configuration."""
    return parse(path.read_bytes(), path)


def parse(content: bytes, path: Path) -> pb.ModelConfig:
    """The content of a config.pbtxt, which lies at `path`, as `read` reads it."""
    try:
        return text_format.Parse(content.decode(), pb.ModelConfig(), allow_unknown_field=True)
    except (text_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"{path} is not a model configuration: {error}") from error


def save(config: pb.ModelConfig, path: Path) -> None:
    """Write a config.pbtxt, whole."""
    replace_text(path, text_format.MessageToString(config))


def settings(config: pb.ModelConfig) -> ProcessConfig:
    """The settings of a process, as its config.pbtxt has them. Raises ConfigError if the model is
    not a process of a cascade."""
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    return ProcessConfig.from_parameters(parameters)


def configs_of(root: Path, number: int) -> dict[str, pb.ModelConfig]:
    """config.pbtxt of every model, as it was exported. Raises ArtifactError: damaged."""
    release = read_release(root, number)
    schema = Schema.load(root / stage_path(release["topology"], RETRIEVE, number) / "schema.json")
    serving, product = of_release(release)
    runs, sizes = runs_of(release, serving), sizes_from(release["sizes"])
    how = (schema, sizes, serving, number, runs)
    return configs(*how, product=product, tasks=tasks_of(release))


def pinned(recommend: pb.ModelConfig) -> int | None:
    """The release that a configuration of `recommend` answers with, where it names one."""
    pins = {step.model_version for step in recommend.ensemble_scheduling.step}
    pins = pins or {*recommend.version_policy.specific.versions}
    return int(pins.pop()) if len(pins) == 1 else None


def process_settings(repository: Path) -> dict[str, ProcessConfig]:
    """The settings of every process that clients of `recommend` reach, by model. In fused releases
    of earlier versions that is `recommend` itself. Raises ArtifactError if the repository holds no
    exported cascade."""
    path = repository / ENSEMBLE / "config.pbtxt"
    if not path.exists():
        raise ArtifactError(f"{path} is missing: {repository} is not an exported repository")
    recommend = read(path)
    names = [step.model_name for step in recommend.ensemble_scheduling.step] or [ENSEMBLE]
    return {name: settings(read(repository / name / "config.pbtxt")) for name in names}


def _instances(config: pb.ModelConfig, serving: Serving) -> None:
    """The processes of a model. On a CPU they are ranked: a request goes to the first that is idle,
    whose caches are warm, where Triton would take them in turn. The ranks count under
    `--rate-limit=execution_count`, which the launcher sets."""
    if serving.device == "cuda" or serving.instances == 1:
        kind = pb.ModelInstanceGroup.KIND_GPU if serving.device == "cuda" else ON_CPU
        config.instance_group.add(count=serving.instances, kind=kind)
        return
    step = min(1000, LOWEST_PRIORITY ** (1 / (serving.instances - 1)))
    for rank in range(serving.instances):
        group = config.instance_group.add(count=1, kind=ON_CPU)
        group.rate_limiter.priority = max(rank + 1, int(step**rank))


def _tensors(
    config: pb.ModelConfig, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]
) -> None:
    for target, tensors in ((config.input, inputs), (config.output, outputs)):
        for tensor in tensors:
            dtype = "TYPE_STRING" if tensor.dtype == "BYTES" else f"TYPE_{tensor.dtype}"
            kind = pb.DataType.Value(dtype)
            made = target.add(name=tensor.name, data_type=kind, dims=tensor.dims)
            if tensor.optional:
                made.optional = True


def _parameters(config: pb.ModelConfig, values: Mapping[str, str]) -> None:
    for key, value in sorted(values.items()):
        config.parameters[key].string_value = value
