"""A flat graph that was taken apart for a stage, in the variants in which a stage can be stored."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from cascade.artifact import Mapped
from cascade.models.scorer import Scorer
from cascade.spec import Stage
from export.artifacts import onnx_file
from export.artifacts.graphs import VALUE
from export.artifacts.stage_files import PLAIN, Variant
from export.context import Build, Catalogue
from export.foreign import wrapper
from export.foreign.apart import take_apart
from export.foreign.onnx_model import Foreign
from export.foreign.split import Derived, NotSplit


class Taken:
    """One model, taken apart for one stage. Raises NotSplit: it cannot be; says why.

    Args:
        scorer: gives the model's own scores, by which variants are judged.
        both_classes: the output has two columns, of which the last is meant.
    """

    def __init__(
        self,
        foreign: Foreign,
        stage: Stage,
        items: Catalogue,
        scorer: Scorer,
        both_classes: bool = False,
    ) -> None:
        self.foreign, self.stage, self.scorer = foreign, stage, scorer
        self.both_classes = both_classes
        self.derived = take_apart(foreign, items, stage.inputs[-1].dims[0])

    def write(
        self, items: Catalogue, folder: Path, variant: Variant = PLAIN, logits: bool = False
    ) -> dict[str, Mapped]:
        """Write a version folder -> the item states in it.

        Args:
            logits: the graph gives those of all candidates instead of the best items.
        """
        derived = self.derived
        if variant.weights == "int8":
            derived = replace(derived, pairs=_in_8_bits(derived))
        where = (self.foreign, self.stage, items, folder)
        return wrapper.write_files(*where, derived, self.both_classes, variant, logits)


class Rows(Scorer):
    """A third-party model over encoded rows; its output, whatever it means, stands for a logit, or,
    where it has tasks, for what they say."""

    def __init__(self, foreign: Foreign) -> None:
        super().__init__(foreign.schema)
        self._foreign = foreign
        self.tasks = foreign.mapping.tasks or self.tasks

    @property
    def kinds(self) -> tuple[Any, ...]:
        return (VALUE,) * len(self.tasks) if self._foreign.mapping.tasks else super().kinds

    def forward(
        self, user_dense: Tensor, user_ids: Tensor, item_dense: Tensor, item_ids: Tensor
    ) -> Tensor:
        rows = {
            "user_dense": user_dense.numpy(),
            "user_ids": user_ids.numpy(),
            "item_dense": item_dense.numpy(),
            "item_ids": item_ids.numpy(),
        }
        found = self._foreign.run(rows).reshape(len(user_ids), -1)
        if not self._foreign.mapping.tasks:
            found = found[:, -1]
        return torch.from_numpy(np.ascontiguousarray(found, np.float32))


def taken_apart(
    build: Build, foreign: Mapping[str, Foreign], scoring: Sequence[Stage], items: Catalogue
) -> tuple[dict[str, Taken], dict[str, str]]:
    """The third-party models of these stages, as far as they can be taken apart, and why the others
    cannot."""
    found: dict[str, Taken] = {}
    reasons: dict[str, str] = {}
    for stage in scoring:
        if stage.name not in foreign:
            continue
        model = foreign[stage.name]
        both = model.has_both_classes(items)
        try:
            if build.flat:
                raise NotSplit("as --flat says")
            found[stage.name] = Taken(model, stage, items, Rows(model), both)
        except NotSplit as error:
            reasons[stage.name] = f"{error}".splitlines()[-1]
    return found, reasons


def _in_8_bits(derived: Derived) -> onnx.ModelProto:
    """The pairs' graph with dynamically quantised layers: those that see every candidate and give
    more than one number. The first layer after a product of both sides is cut out of a larger one,
    and does not bear one scale for all of its inputs: it is not among them."""
    weights = {tensor.name: tensor.dims for tensor in derived.pairs.graph.initializer}
    layers = {name for name in derived.layers if weights[name][-1] > 1}
    model = onnx.ModelProto()
    model.CopyFrom(derived.pairs)
    for node in model.graph.node:
        node.name = node.output[0]  # the quantiser leaves out by name
    with tempfile.TemporaryDirectory(prefix="pairs-") as folder:
        path = Path(folder) / "pairs.onnx"
        onnx.save(model, path)
        onnx_file.quantise(path, layers)
        return onnx.load(path)
