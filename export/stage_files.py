"""The files of one stage's version folder."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from cascade.models.scorer import Scorer
from cascade.schema import Schema
from cascade.serving.runtime import TORCH_FILE, Description, Mapped
from cascade.spec import RETRIEVE, Stage
from export import onnx_file
from export.graphs import TopCandidates, UserTower

CHUNK = 16_384  # items at a time
ITEM_STATE, CATALOGUE_IDS = "item_state", "catalogue_ids"


@dataclass(frozen=True)
class Catalogue:
    """The items of a release: encoded dense [N, F_dense] and ids [N, C], item_ids [N]."""

    dense: np.ndarray
    ids: np.ndarray
    item_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def item_states(scorer: Scorer, items: Catalogue, name: str) -> Iterator[np.ndarray]:
    """`item` of the whole catalogue, chunk by chunk: [n, V] each."""
    with (
        torch.inference_mode(),
        tqdm(
            total=len(items),
            desc=f"item state of {name}",
            unit=" items",
            unit_scale=True,
            leave=False,
        ) as bar,
    ):
        for start in range(0, len(items), CHUNK):
            rows = slice(start, start + CHUNK)
            dense, ids = torch.from_numpy(items.dense[rows]), torch.from_numpy(items.ids[rows])
            yield scorer.item(dense, ids).numpy()
            bar.update(len(ids))


def write_item_state(scorer: Scorer, items: Catalogue, folder: Path, name: str) -> Mapped:
    """Write the item state of the whole catalogue into a file that will be mapped."""
    mapped = Mapped(f"{ITEM_STATE}.bin", "float32", (len(items), scorer.item_width))
    (folder / mapped.file).unlink(missing_ok=True)  # a server that has the old one mapped keeps it
    with (folder / mapped.file).open("wb") as file:
        for states in item_states(scorer, items, name):
            states.astype("<f4", copy=False).tofile(file)
    return mapped


def write_item_ids(items: Catalogue, folder: Path) -> Mapped:
    """The outside world's id of every catalogue row."""
    mapped = Mapped(f"{CATALOGUE_IDS}.bin", "int64", (len(items), 1))
    (folder / mapped.file).unlink(missing_ok=True)
    items.item_ids.astype("<i8").tofile(folder / mapped.file)
    return mapped


def write_tower(retriever: Scorer, schema: Schema, folder: Path) -> UserTower:
    """The user tower's graphs."""
    module = UserTower(retriever)
    description = Description(
        RETRIEVE, schema.hash, ("user_dense", "user_ids"), ("user_vector",), mapped={}
    )
    _write(module, _example(schema), description, folder)
    return module


def write_scoring(
    scorer: Scorer, stage: Stage, schema: Schema, items: Catalogue, folder: Path
) -> TopCandidates:
    """A scoring stage's graphs, item state and ids; returns the eager module over the same rows."""
    keep = stage.outputs[0].dims[0]
    with_ids = stage.outputs[-1].name == "scores"
    module = TopCandidates(scorer, keep, with_ids)
    mapped = {ITEM_STATE: write_item_state(scorer, items, folder, stage.name)}
    if with_ids:
        mapped[CATALOGUE_IDS] = write_item_ids(items, folder)
    example = _example(schema)
    example["candidates"] = torch.zeros(2, stage.inputs[-1].dims[0], dtype=torch.long)
    inputs, outputs = (tuple(t.name for t in side) for side in (stage.inputs, stage.outputs))
    _write(module, example, Description(stage.name, schema.hash, inputs, outputs, mapped), folder)
    for name, value in mapped.items():
        setattr(module, name, torch.from_numpy(np.asarray(value.open(folder))))
    return module


def _example(schema: Schema) -> dict[str, Tensor]:
    return {
        "user_dense": torch.zeros(2, schema.dense_width("user")),
        "user_ids": torch.zeros(2, schema.ids_width("user"), dtype=torch.long),
    }


def _write(
    module: nn.Module, example: dict[str, Tensor], description: Description, folder: Path
) -> None:
    """model.onnx, model.pt and stage.json."""
    onnx_file.export(module, example, description, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; Triton's PyTorch backend is not
        traced = torch.jit.trace(module, tuple(example.values()), check_trace=False)
        traced.save(str(folder / TORCH_FILE))
    description.save(folder)
