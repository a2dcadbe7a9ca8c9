"""A trained model on disk: safetensors weights and a JSON that says what they are. No pickle.

A finished model is `weights.safetensors` + `checkpoint.json`; an unfinished one is
`resume.safetensors`, which also holds the optimisers' state.
"""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cascade.errors import CascadeError
from cascade.files import plain, sha256, write_json
from cascade.models import build
from cascade.models.registry import ModelError
from cascade.models.scorer import Scorer
from cascade.schema import Schema

FORMAT = 1
NEEDED = ("model", "config", "schema_hash")  # of a description
ROWS = 1 << 16  # of a table, checked at a time


class CheckpointError(CascadeError, ValueError):
    """A checkpoint that is missing, damaged or of another kind than asked for."""


def save(folder: Path, scorer: Scorer, description: dict[str, Any]) -> None:
    """Write a finished model; one that is there already stays where the disk is full. The
    description holds `model`, `config` and `schema_hash`, and where there are any, metrics and the
    like. A `CheckpointError` where it lacks one, or the disk has no room."""
    versions = {name: version(name) for name in ("torch", "numpy", "safetensors")}
    versions["python"] = platform.python_version()
    content = {"format": FORMAT, **description, "versions": versions}
    if missing := [key for key in NEEDED if key not in content]:
        raise CheckpointError(f"a description came that does not say {' and '.join(missing)}")
    new = folder / "checkpoint.new"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(new, content)
        _save_tensors(folder / "weights.safetensors", dict(scorer.state_dict()))
        os.replace(new, folder / "checkpoint.json")
    finally:
        new.unlink(missing_ok=True)


def describe(folder: Path) -> dict[str, Any]:
    """The JSON of a finished model."""
    path = folder / "checkpoint.json"
    if not path.exists():
        raise CheckpointError(f"{folder} holds no finished model: checkpoint.json is missing")
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:  # neither JSON nor, perhaps, text
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it holds a {type(content).__name__}")
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {content.get('format')}; this version reads format {FORMAT}. "
            "Train again, or use the version that wrote it."
        )
    missing = [key for key in NEEDED if key not in content]
    if missing:
        raise CheckpointError(f"{path} is damaged: it does not say {' and '.join(missing)}")
    return content


def digest(folder: Path) -> str:
    """Identifies the weights of a finished model, for those that are trained from it."""
    return sha256(folder / "weights.safetensors")[:16]


def load(folder: Path, schema: Schema) -> Scorer:
    """Read a finished model, ready to evaluate. A `SchemaError` if it has another schema; a
    `CheckpointError` if it is damaged, or a weight is no finite number."""
    content = describe(folder)
    schema.check_same(content["schema_hash"], str(folder))
    try:
        scorer = build(content["model"], content["config"], schema)
    except (ModelError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / 'checkpoint.json'} describes no model of this version: {error}"
        ) from error
    path = folder / "weights.safetensors"
    try:
        scorer.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error
    _check_finite(path, scorer.state_dict())
    return scorer.eval()


def _check_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    """Every number of every tensor: a row that no test meets is served, too."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        rows = tensor.detach().reshape(len(tensor) if tensor.ndim else 1, -1)
        for start in range(0, len(rows), ROWS):
            good = rows[start : start + ROWS].isfinite().all(dim=1)
            if not good.all():
                row = start + int(good.int().argmin())
                raise CheckpointError(
                    f"{path}: row {row} of {name} {[*tensor.shape]} has a number that is not "
                    "finite; expected a model whose training has not diverged: train again, with "
                    "a lower --lr or --embedding-lr"
                )


def save_resume(
    folder: Path,
    module: torch.nn.Module,
    optimizers: list[Any],
    progress: dict[str, Any],
    best: dict[str, Tensor],
    made_from: dict[str, Any],
) -> None:
    """Write all that an interrupted training needs to go on as if it had not been: one file,
    replaced in one move.

    What an optimiser keeps as a plain number comes back as one: SparseAdam's corrections would be
    computed in float32 if its step count were a tensor.

    Args:
        progress: JSON of how far the training is.
        best: the best weights so far.
        made_from: JSON of what the weights depend on; resuming refuses anything else.
    """
    tensors = {f"module/{name}": tensor for name, tensor in module.state_dict().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    groups, numbers = [], []
    for number, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        groups.append(state["param_groups"])
        for index, values in state["state"].items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{number}/{index}/{key}"] = value
                else:
                    numbers.append((number, index, key, value))
    kept = {"groups": groups, "numbers": numbers}
    content = {"made_from": made_from, "progress": progress, "optimizers": kept}
    metadata = {key: json.dumps(value, default=plain) for key, value in content.items()}
    _save_tensors(folder / "resume.safetensors", tensors, metadata)


def load_resume(
    folder: Path, module: torch.nn.Module, optimizers: list[Any], made_from: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Read what `save_resume` wrote: the progress and the best weights; None if there is nothing.
    A state that was made from something else is refused."""
    path = folder / "resume.safetensors"
    if not path.exists():
        return None
    parts: dict[str, dict[str, Tensor]] = {"module": {}, "best": {}, "optimizer": {}}
    try:
        with safe_open(path, "pt") as file:
            content = {key: json.loads(value) for key, value in file.metadata().items()}
            _check_made_from(path, content["made_from"], json.loads(json.dumps(made_from)))
            for name in file.keys():  # noqa: SIM118 (a safetensors file is not a dict)
                kind, rest = name.split("/", 1)
                parts[kind][rest] = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is damaged: {error}. Remove it, or give --restart, to train from the start."
        ) from error
    module.load_state_dict(parts["module"])
    states: list[dict[int, dict[str, Any]]] = [{} for _ in optimizers]
    for name, tensor in parts["optimizer"].items():
        number, index, key = name.split("/")
        states[int(number)].setdefault(int(index), {})[key] = tensor
    for number, index, key, value in content["optimizers"]["numbers"]:
        states[number].setdefault(index, {})[key] = value
    groups = content["optimizers"]["groups"]
    for optimizer, state, group in zip(optimizers, states, groups, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": group})
    return content["progress"], parts["best"]


def _check_made_from(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    changes = [
        f"{key} was {found.get(key)!r} and is now {wanted.get(key)!r}"
        for key in sorted({*found, *wanted})
        if found.get(key) != wanted.get(key)
    ]
    if changes:
        raise CheckpointError(
            f"{path} is an unfinished training of something else: {'; '.join(changes)}. "
            "Give the same options and data to go on with it, or --restart."
        )


def finish(folder: Path) -> None:
    """Remove the state of a training that has ended."""
    (folder / "resume.safetensors").unlink(missing_ok=True)


def _save_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, temporary, metadata)
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from error
    else:
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
