"""config.pbtxt of every model, built as a protobuf message from `cascade.spec`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from cascade.schema import Schema
from cascade.spec import (
    ENSEMBLE,
    Serving,
    Sizes,
    Stage,
    Tensor,
    stages,
    wire_features,
)

MODEL_PY = '''"""The {name} stage; all of it is in the library."""

from cascade.serving.triton import {cls} as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def stage_config(stage: Stage, schema: Schema, sizes: Sizes, serving: Serving) -> pb.ModelConfig:
    """A stage as a model of the Python backend."""
    config = pb.ModelConfig(
        name=stage.name, backend="python", max_batch_size=serving.max_batch_size
    )
    _tensors(config, stage.inputs, stage.outputs)
    kind = "KIND_GPU" if serving.device == "cuda" else "KIND_CPU"
    config.instance_group.add(count=serving.instances, kind=pb.ModelInstanceGroup.Kind.Value(kind))
    batching = config.dynamic_batching
    batching.SetInParent()  # batch even where every knob has its default
    batching.max_queue_delay_microseconds = serving.queue_delay_us
    if serving.max_queue_size:
        policy = batching.default_queue_policy
        policy.timeout_action = pb.ModelQueuePolicy.REJECT
        policy.default_timeout_microseconds = serving.timeout_us
        policy.max_queue_size = serving.max_queue_size
    parameters = {
        **serving.parameters(),
        "candidates": str(sizes.candidates),
        "layout_hash": schema.layout_hash,
    }
    for key, value in sorted(parameters.items()):
        config.parameters[key].string_value = value
    return config


def ensemble_config(schema: Schema, sizes: Sizes, serving: Serving, version: int) -> pb.ModelConfig:
    """The cascade: every step pinned to one release, every tensor under its own name."""
    steps = stages(schema, sizes)
    config = pb.ModelConfig(
        name=ENSEMBLE, platform="ensemble", max_batch_size=serving.max_batch_size
    )
    _tensors(config, steps[0].inputs, steps[-1].outputs)
    for stage in steps:
        step = config.ensemble_scheduling.step.add(model_name=stage.name, model_version=version)
        for tensor in stage.inputs:
            step.input_map[tensor.name] = tensor.name
        for tensor in stage.outputs:
            step.output_map[tensor.name] = tensor.name
    parameters = {
        "features": wire_features(schema),
        "layout_hash": schema.layout_hash,
        "sizes": json.dumps(asdict(sizes)),
    }
    for key, value in sorted(parameters.items()):
        config.parameters[key].string_value = value
    return config


def configs(
    schema: Schema, sizes: Sizes, serving: Serving, version: int
) -> dict[str, pb.ModelConfig]:
    """Every model of the repository by name."""
    found = {s.name: stage_config(s, schema, sizes, serving) for s in stages(schema, sizes)}
    return {**found, ENSEMBLE: ensemble_config(schema, sizes, serving, version)}


def write(repository: Path, schema: Schema, sizes: Sizes, serving: Serving, version: int) -> None:
    """Write config.pbtxt of every model, and model.py of every stage's version."""
    for name, config in configs(schema, sizes, serving, version).items():
        folder = repository / name / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        text = text_format.MessageToString(config)
        (repository / name / "config.pbtxt").write_text(text)
        if name == ENSEMBLE:
            (folder / ".gitkeep").touch()  # Triton wants the folder, git does not keep it empty
        else:
            (folder / "model.py").write_text(MODEL_PY.format(name=name, cls=name.title()))


def read(path: Path) -> pb.ModelConfig:
    """A config.pbtxt as a message."""
    return text_format.Parse(path.read_text(), pb.ModelConfig())


def _tensors(
    config: pb.ModelConfig, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]
) -> None:
    for target, tensors in ((config.input, inputs), (config.output, outputs)):
        for tensor in tensors:
            dtype = "TYPE_STRING" if tensor.dtype == "BYTES" else f"TYPE_{tensor.dtype}"
            target.add(name=tensor.name, data_type=pb.DataType.Value(dtype), dims=list(tensor.dims))
