"""The stages of one release, opened as a server opens them, in every size of a plan.

A graph hands on a fixed number of items, the constant of its last TopK. A copy with another
constant is the graph that an export of that size would write, over the same mapped files.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cascade.artifact import DESCRIPTION_FILE, ONNX_FILE, Array, Description
from cascade.evaluation.brute_force import Encoded
from cascade.files import content, link
from cascade.index import Index
from cascade.runtime.load import Graph, load_graph
from cascade.server.threads import cores, threads_per_process
from cascade.spec import PRERANK, RANK, RETRIEVE, stage_path
from cascade.stages.load import LoadedStage, load_stage
from cascade.stages.retrieve import Retrieve
from cascade.stages.scoring import Score
from cascade.stages.tasks import RANKED
from export.context import Build
from export.planning.grid import Setting

KEEP, ROWS = "planned_keep", "planned_rows"  # what a copy has that the graph has not


class Opened:
    """The stages of a release. Every size is opened when it is first asked for; what it needs on
    the disk is written into `scratch`.

    Args:
        export: that wrote the release.
    """

    def __init__(self, export: Build, scratch: Path) -> None:
        repository, version, serving = export.repository, export.version, export.serving
        topology = serving.topology
        self.sizes, self._product = export.sizes, export.product
        threads = serving.threads or threads_per_process(repository)
        self.serving = replace(serving, threads=threads, runtime="onnx")
        self._folders = {
            name: repository / stage_path(topology, name, version)
            for name in (RETRIEVE, PRERANK, RANK)
        }
        self._scratch = scratch
        self.retrieve = cache(self._retrieve)
        self.prerank = cache(self._prerank)
        self.sorting = cache(self._sorting)
        self.rank: LoadedStage = load_stage(
            RANK,
            self._folders[RANK],
            self.serving,
            self.sizes.candidates,
            product=export.product,
        )

    @property
    def index(self) -> Index | None:
        """The index, if it has a search effort."""
        found = self.retrieve(self.sizes.candidates).index
        return found if isinstance(found, Index) and found.effort else None

    @property
    def item_ids(self) -> Array:
        """int64 [N]: the key of every row of the release."""
        rank: Any = self.rank
        return np.asarray(rank.item_ids)

    def tower(self) -> Graph:
        """Encoded users -> their vectors."""
        return load_graph(self._folders[RETRIEVE], None, self.serving)[1]

    def encode(self, dense: Array, categorical: Array) -> Encoded:
        """Raw users -> encoded ones."""
        return Encoded(
            *self.retrieve(self.sizes.candidates).encoder.encode("user", dense, categorical)
        )

    def set_effort(self, setting: Setting) -> Retrieve:
        """The first stage at a setting."""
        stage = self.retrieve(setting.candidates)
        if setting.effort is not None and isinstance(stage.index, Index):
            stage.index.set_effort(setting.effort)
        return stage

    def _retrieve(self, candidates: int) -> Retrieve:
        """The first stage, which hands on so many candidates."""
        return Retrieve(self._folders[RETRIEVE], self.serving, candidates)

    def _prerank(self, survivors: int) -> Score:
        """The second stage, which hands on so many survivors."""
        return Score(self._resized(PRERANK, survivors), self.serving, self._product)

    def _sorting(self, survivors: int) -> Score:
        """The ranker, which hands on the best of the rows it is given, so many of them, as rows and
        their scores before the sigmoid; on all cores, for nothing else is timed by it."""
        serving = replace(self.serving, threads=cores())
        return Score(self._resized(RANK, survivors, as_rows=True), serving, self._product)

    def _resized(self, stage: str, keep: int, as_rows: bool = False) -> Path:
        target = self._scratch / f"{stage}-{keep}"
        resize(self._folders[stage], keep, target, as_rows)
        return target


def resize(folder: Path, keep: int, target: Path, as_rows: bool = False) -> None:
    """Write a version folder of a scoring stage that hands on `keep` items; `as_rows`, as catalogue
    rows and the scores that they were chosen by."""
    description = Description.load(folder)
    target.mkdir(parents=True)
    for file in content(folder):
        if file.name not in (ONNX_FILE, DESCRIPTION_FILE, "model.py"):
            link(file, target / file.relative_to(folder))
    if description.tasks:  # its stage chooses
        link(folder / ONNX_FILE, target / ONNX_FILE)
        if as_rows:
            mapped = description.graph_mapped
            description = replace(description, mapped=mapped, outputs=(ROWS, RANKED))
        replace(description, keep=keep).save(target)
        return
    model = onnx.load(str(folder / ONNX_FILE), load_external_data=False)
    graph = model.graph
    del graph.value_info[:]  # shapes that held for the former size
    for output in (value for value in graph.output if value.name in description.outputs):
        output.type.tensor_type.shape.dim[-1].dim_value = keep
    choices = [place for place, node in enumerate(graph.node) if node.op_type == "TopK"]
    if choices:  # the last is the answer's, for nodes are in order
        choice = graph.node[choices[-1]]
        choice.input[1] = KEEP
        graph.initializer.append(numpy_helper.from_array(np.array([keep], np.int64), KEEP))
    else:  # a stage without a model hands on what it is given
        rows_in = next(value for value in graph.input if value.name == description.inputs[-1])
        rows_in.type.tensor_type.shape.dim[-1].dim_value = keep
    if as_rows:
        values, places = choice.output
        del graph.node[choices[-1] + 1 :]  # which make of the choice what a release answers with
        rows = [description.inputs[-1], places]
        graph.node.append(helper.make_node("GatherElements", rows, [ROWS], axis=1))
        del graph.output[:]
        for name, kind in ((ROWS, TensorProto.INT64), (values, TensorProto.FLOAT)):
            graph.output.append(helper.make_tensor_value_info(name, kind, [None, keep]))
        description = replace(description, outputs=(ROWS, values), counts_not_finite=False)
    description.save(target)
    onnx.save(model, str(target / ONNX_FILE))
