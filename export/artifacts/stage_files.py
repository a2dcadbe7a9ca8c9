"""The files of one stage's version folder."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from cascade.artifact import AOTI_FILE, TORCH_FILE, Array, Description, Mapped
from cascade.models import contract
from cascade.models.scorer import Scorer
from cascade.schema import Schema
from cascade.spec import (
    CATALOGUE_IDS,
    ITEM_STATE,
    RETRIEVE,
    SCORES,
    TASK_SCORES,
    Precision,
    Stage,
    Weights,
)
from export import whole
from export.artifacts import device, onnx_file
from export.artifacts.graphs import (
    CandidateLogits,
    CandidateTasks,
    TopCandidates,
    UserTower,
    several,
)
from export.context import Catalogue, Forms

CHUNK = 16_384  # items at a time
TORCH_STATE = "torch_state"  # of the torch forms beside a model.onnx that was taken apart
ITEMS_FILE = "items.onnx"  # computes the states of items, of a model that was taken apart
ONNX_ONLY = Forms()


@dataclass(frozen=True)
class Variant:
    """How a scoring stage is stored. A variant other than float32 has to pass `guard` first."""

    state: Precision = "float32"  # of the item state, the largest file that is read at random
    # Of the layers. int8 is ONNX Runtime's dynamic quantisation, in model.onnx alone; float16 and
    # bfloat16 compute in that precision, which pays on a GPU.
    weights: Weights = "float32"

    @property
    def one_by_one(self) -> bool:
        """Whether each user runs alone: dynamic quantisation takes one scale for a whole batch."""
        return self.weights == "int8"

    def fits(self, scorer: Scorer, apart: bool = False) -> bool:
        """Whether it can hold the states of the model: ids need float32. A model that was taken
        apart has other states, but its graph does not compute in half precision."""
        narrow = self.weights in device.HALVES
        if self.state == "float32" and not narrow:
            return True
        return not narrow if apart else not scorer.exact_states

    def applied(self, scorer: Scorer) -> Scorer:
        """The model as it is served, in half precision where `weights` says so; int8 is applied
        later, to the ONNX file. Raises ContractError."""
        contract.check(scorer)
        if self.weights in device.HALVES:
            scorer = device.HalfScorer(scorer, device.HALVES[self.weights]).eval()
        return scorer

    def __str__(self) -> str:
        return f"state {self.state}, weights {self.weights}"


PLAIN = Variant()


def item_states(scorer: Scorer, items: Catalogue, name: str) -> Iterator[Array]:
    """`item` of the whole catalogue, chunk by chunk: float32 [n, V] each."""
    chunks = range(0, len(items), CHUNK)
    with torch.inference_mode():
        for start in tqdm(chunks, f"item state of {name}", leave=False):
            rows = slice(start, start + CHUNK)
            dense, ids = torch.from_numpy(items.dense[rows]), torch.from_numpy(items.ids[rows])
            yield scorer.item(dense, ids).numpy()


def write_mapped(
    folder: Path, name: str, parts: Iterable[Array], dtype: str, shape: tuple[int, ...]
) -> Mapped:
    """Write a file that servers map, part by part; one that has the old file keeps it. Raises
    ArtifactError: a number is not finite in it."""
    mapped = Mapped(f"{name}.bin", dtype, shape)
    (folder / mapped.file).unlink(missing_ok=True)
    with (folder / mapped.file).open("wb") as file:
        start = 0
        for part in parts:
            rows = whole.check_states(part, start, mapped.file, dtype)
            file.write(np.ascontiguousarray(rows).data)  # tofile() may lose it on a full disk
            start += len(part)
    return mapped


def write_item_state(
    scorer: Scorer,
    items: Catalogue,
    folder: Path,
    stage: str,
    precision: Precision = "float32",
) -> Mapped:
    """Write the item state of the whole catalogue."""
    states, shape = item_states(scorer, items, stage), (len(items), scorer.item_width)
    return write_mapped(folder, ITEM_STATE, states, precision, shape)


def write_item_ids(items: Catalogue, folder: Path) -> Mapped:
    """Write the item id of every catalogue row."""
    return write_mapped(folder, CATALOGUE_IDS, [items.item_ids], "int64", (len(items), 1))


def write_tower(
    retriever: Scorer, schema: Schema, folder: Path, forms: Forms = ONNX_ONLY
) -> UserTower:
    """Write the user tower; returns the eager module. Raises ContractError."""
    contract.check_retriever(retriever)
    module = UserTower(retriever)
    example = example_users(schema)
    description = Description(RETRIEVE, schema.hash, tuple(example), ("user_vector",), mapped={})
    write_graphs(module, example, description, folder, forms)
    return module


def write_scoring(
    scorer: Scorer,
    stage: Stage,
    schema: Schema,
    items: Catalogue,
    folder: Path,
    variant: Variant = PLAIN,
    forms: Forms = ONNX_ONLY,
) -> CandidateLogits:
    """Write the graphs of a stage as the model's own methods say, item state and ids; returns the
    eager module over them."""
    for stale in (ITEMS_FILE, f"{TORCH_STATE}.bin"):
        (folder / stale).unlink(missing_ok=True)  # of an earlier export into the same folder
    scorer = variant.applied(scorer)
    module = candidates_module(scorer, stage, variant.state)
    mapped = {ITEM_STATE: write_item_state(scorer, items, folder, stage.name, variant.state)}
    if answers(stage):
        mapped[CATALOGUE_IDS] = write_item_ids(items, folder)
    description = described(stage, schema.hash, mapped, several(scorer), variant.one_by_one)
    widths = {tensor.name: tensor.dims[0] for tensor in stage.inputs}
    description = replace(description, widths=widths)
    example = example_users(schema, stage.inputs[-1].dims[0])
    write_graphs(module, example, description, folder, forms, variant.weights)
    return _opened(module, description, folder)


def add_torch_forms(
    scorer: Scorer,
    stage: Stage,
    states: Array,
    folder: Path,
    precision: Precision,
    forms: Forms,
) -> CandidateLogits:
    """Write the torch forms beside a model.onnx that was taken apart, with the item states of the
    model's own methods, float32 [N, V]; returns the eager module over them."""
    module = candidates_module(scorer, stage, precision)
    chunks = (states[start : start + CHUNK] for start in range(0, len(states), CHUNK))
    state = write_mapped(folder, TORCH_STATE, chunks, precision, states.shape)
    description = replace(Description.load(folder), torch_state=state)
    example = example_users(scorer.schema, stage.inputs[-1].dims[0])
    _write_torch_forms(module, example, description, folder, forms)
    description.save(folder)
    return _opened(module, description, folder)


def answers(stage: Stage) -> bool:
    """Whether a stage gives the ids and scores of items, and no rows."""
    return stage.outputs[-1].name == SCORES


def described(
    stage: Stage,
    schema_hash: str,
    mapped: dict[str, Mapped],
    tasks: tuple[str, ...],
    one_by_one: bool = False,
) -> Description:
    """stage.json of a scoring stage; `tasks` are empty where its graph chooses the items itself."""
    inputs, outputs = (tuple(t.name for t in side) for side in (stage.inputs, stage.outputs))
    if tasks and answers(stage):
        outputs = (*outputs, TASK_SCORES)
    return Description(
        stage.name,
        schema_hash,
        inputs,
        outputs,
        mapped,
        one_by_one=one_by_one,
        counts_not_finite=not tasks,
        tasks=tasks,
        keep=stage.outputs[0].dims[0] if tasks else 0,
    )


def candidates_module(
    scorer: Scorer, stage: Stage, precision: Precision = "float32"
) -> CandidateLogits:
    """The module of a scoring stage, over surrogate rows."""
    if several(scorer):
        return CandidateTasks(scorer, precision)
    return TopCandidates(scorer, stage.outputs[0].dims[0], answers(stage), precision)


def _opened(module: CandidateLogits, description: Description, folder: Path) -> CandidateLogits:
    """The same over the mapped files that the torch forms read."""
    for name, value in description.torch_mapped.items():
        setattr(module, name, torch.from_numpy(np.asarray(value.open(folder))))
    return module


def example_users(schema: Schema, candidates: int = 0) -> dict[str, Tensor]:
    """Two users to trace a graph with, each with so many candidates where there are any."""
    example = {
        "user_dense": torch.zeros(2, schema.dense_width("user")),
        "user_ids": torch.zeros(2, schema.ids_width("user"), dtype=torch.long),
    }
    if candidates:
        example["candidates"] = torch.zeros(2, candidates, dtype=torch.long)
    return example


def write_graphs(
    module: nn.Module,
    example: dict[str, Tensor],
    description: Description,
    folder: Path,
    forms: Forms = ONNX_ONLY,
    weights: Weights = "float32",
) -> None:
    """Write model.onnx, the other forms of the graph that `forms` names, and stage.json."""
    onnx_file.export(module, example, description, folder, weights)
    _write_torch_forms(module, example, description, folder, forms)
    description.save(folder)


def _write_torch_forms(
    module: nn.Module,
    example: dict[str, Tensor],
    description: Description,
    folder: Path,
    forms: Forms,
) -> None:
    """Forms of an earlier export that `forms` does not name are deleted."""
    for file in (TORCH_FILE, AOTI_FILE):
        (folder / file).unlink(missing_ok=True)
    if "aoti" in forms.also:
        device.package(module, example, description, folder, forms.device)
    if "torchscript" in forms.also:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated, Triton's backend is not
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]
                module, tuple(example.values()), check_trace=False
            )
        traced.save(str(folder / TORCH_FILE))
