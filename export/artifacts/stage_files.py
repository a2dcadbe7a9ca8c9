"""The files of one stage's version folder."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from tqdm import tqdm

from cascade.artifact import AOTI_FILE, TORCH_FILE, Description, Mapped
from cascade.config import Device
from cascade.models.scorer import Scorer
from cascade.schema import Schema
from cascade.spec import CATALOGUE_IDS, RETRIEVE, Precision, Stage, Weights
from export.artifacts import device, onnx_file
from export.artifacts.graphs import CandidateLogits, TopCandidates, UserTower

CHUNK = 16_384  # items at a time
SCALE_ITEMS = 65_536  # whose largest values set the scale of an int8 state
INT8_LARGEST = 127
ITEM_STATE = "item_state"


@dataclass(frozen=True)
class Variant:
    """How a scoring stage is stored. Whatever is not float32 has to pass `guard` first.

    Args:
        state: of the item state, which is what a stage waits for.
        weights: of the layers. int8 is ONNX Runtime's dynamic quantisation, in model.onnx alone;
            float16 and bfloat16 compute in that precision, which pays on a GPU.
        recompute: leave out of the item state what can be computed from the rest of it.
    """

    state: Precision = "float32"
    weights: Weights = "float32"
    recompute: bool = False

    @property
    def one_by_one(self) -> bool:
        """Dynamic quantisation takes one scale for a whole batch."""
        return self.weights == "int8"

    def applied(self, scorer: Scorer, candidates: int) -> Scorer:
        """The model as it is served: arranged for so many candidates, in the precision of its
        layers where that is the model's own affair."""
        if self.weights in device.HALVES:
            scorer = device.half(scorer, self.weights)
        return scorer.arranged(candidates, self.recompute)

    def __str__(self) -> str:
        text = f"state {self.state}, weights {self.weights}"
        return f"{text}, recomputed" if self.recompute else text


@dataclass(frozen=True)
class Catalogue:
    """The items of a release: encoded dense [N, F_dense] and ids [N, C], item_ids [N]; and the
    raw features by name, where they are at hand."""

    dense: np.ndarray
    ids: np.ndarray
    item_ids: np.ndarray
    raw: pa.Table | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray) -> Catalogue:
        """These rows, in this order."""
        raw = None if self.raw is None else self.raw.take(rows)
        return Catalogue(self.dense[rows], self.ids[rows], self.item_ids[rows], raw)


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


def column_scale(scorer: Scorer, items: Catalogue) -> Tensor:
    """[V]: what the value 1 of an int8 item state stands for, from some items; what goes beyond
    them in another is cut off."""
    some = np.random.default_rng(0).permutation(len(items))[:SCALE_ITEMS]
    with torch.inference_mode():
        states = scorer.item(*(torch.from_numpy(x[some]) for x in (items.dense, items.ids)))
    return states.abs().amax(0).clamp(min=1e-12) / INT8_LARGEST


def stored(states: np.ndarray, precision: Precision, scale: np.ndarray | None) -> np.ndarray:
    """float32 [n, V] in the form in which it lies in the file."""
    if precision == "int8":
        assert scale is not None
        steps = np.rint(states / scale)
        return np.clip(steps, -INT8_LARGEST, INT8_LARGEST).astype(np.int8)
    return states.astype({"float32": "<f4", "float16": "<f2"}[precision], copy=False)


def write_item_state(
    scorer: Scorer,
    items: Catalogue,
    folder: Path,
    name: str,
    precision: Precision = "float32",
    scale: np.ndarray | None = None,
) -> Mapped:
    """Write the item state of the whole catalogue into a file that will be mapped."""
    mapped = Mapped(f"{ITEM_STATE}.bin", precision, (len(items), scorer.item_width))
    (folder / mapped.file).unlink(missing_ok=True)  # a server that has the old one mapped keeps it
    with (folder / mapped.file).open("wb") as file:
        for states in item_states(scorer, items, name):
            stored(states, precision, scale).tofile(file)
    return mapped


def write_item_ids(items: Catalogue, folder: Path) -> Mapped:
    """The outside world's id of every catalogue row."""
    mapped = Mapped(f"{CATALOGUE_IDS}.bin", "int64", (len(items), 1))
    (folder / mapped.file).unlink(missing_ok=True)
    items.item_ids.astype("<i8").tofile(folder / mapped.file)
    return mapped


def write_tower(
    retriever: Scorer, schema: Schema, folder: Path, packaged_for: Device | None = None
) -> UserTower:
    """The user tower's graphs."""
    module = UserTower(retriever)
    description = Description(
        RETRIEVE, schema.hash, ("user_dense", "user_ids"), ("user_vector",), mapped={}
    )
    _write(module, example_users(schema), description, folder, packaged_for=packaged_for)
    return module


def fill_state(
    module: CandidateLogits, scorer: Scorer, items: Catalogue, folder: Path, name: str
) -> Mapped:
    """Write the item state in the precision of the module; an int8 module learns its scale."""
    scale = None
    if module.precision == "int8":
        module.item_scale.copy_(column_scale(scorer, items))
        scale = module.item_scale.numpy()
    return write_item_state(scorer, items, folder, name, module.precision, scale)


def write_scoring(
    scorer: Scorer,
    stage: Stage,
    schema: Schema,
    items: Catalogue,
    folder: Path,
    variant: Variant = Variant(),
    packaged_for: Device | None = None,
) -> TopCandidates:
    """A scoring stage's graphs, item state and ids; returns the eager module over the same rows.

    Args:
        packaged_for: write native code for this kind of device as well, `export.artifacts.device`.
    """
    keep = stage.outputs[0].dims[0]
    with_ids = stage.outputs[-1].name == "scores"
    scorer = variant.applied(scorer, stage.inputs[-1].dims[0])
    module = TopCandidates(scorer, keep, with_ids, variant.state)
    mapped = {ITEM_STATE: fill_state(module, scorer, items, folder, stage.name)}
    if with_ids:
        mapped[CATALOGUE_IDS] = write_item_ids(items, folder)
    example = example_users(schema)
    example["candidates"] = torch.zeros(2, stage.inputs[-1].dims[0], dtype=torch.long)
    inputs, outputs = (tuple(t.name for t in side) for side in (stage.inputs, stage.outputs))
    description = Description(
        stage.name,
        schema.hash,
        inputs,
        outputs,
        mapped,
        widths={tensor.name: tensor.dims[0] for tensor in stage.inputs},
        one_by_one=variant.one_by_one,
    )
    _write(module, example, description, folder, variant.weights, packaged_for)
    for name, value in mapped.items():
        setattr(module, name, torch.from_numpy(np.asarray(value.open(folder))))
    return module


def example_users(schema: Schema) -> dict[str, Tensor]:
    """Two users to trace a graph with."""
    return {
        "user_dense": torch.zeros(2, schema.dense_width("user")),
        "user_ids": torch.zeros(2, schema.ids_width("user"), dtype=torch.long),
    }


def _write(
    module: nn.Module,
    example: dict[str, Tensor],
    description: Description,
    folder: Path,
    weights: Weights = "float32",
    packaged_for: Device | None = None,
) -> None:
    """model.onnx, model.pt and stage.json; model.pt2 where it is asked for."""
    onnx_file.export(module, example, description, folder, weights)
    (folder / AOTI_FILE).unlink(missing_ok=True)
    if packaged_for:
        device.package(module, example, description, folder, packaged_for)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; Triton's PyTorch backend is not
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            module, tuple(example.values()), check_trace=False
        )
        traced.save(str(folder / TORCH_FILE))
    description.save(folder)
