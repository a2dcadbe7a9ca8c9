"""A release with other numbers of candidates and survivors, without exporting it again.

The graphs take any number of candidates; an index needs another effort for them, and what a graph
keeps is one constant in it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from cascade import index
from cascade.artifact import ONNX_FILE, Array, Description
from cascade.encoding import Encoder
from cascade.spec import CATALOGUE_IDS, RANK, RETRIEVE
from cascade.stages.retrieve import Retrieve
from cascade.training import checkpoint
from export.artifacts.stage_files import item_states
from export.build import read_catalogue
from perf.artifacts import Artifacts
from perf.costs import Opened, folders_of

QUERIES = 128


class Retuner:
    """Sets the effort of a release's index for other numbers of candidates, against exact search.

    Args:
        made: checkpoints and repository; the vectors are computed anew, in the order of the rows
            that are served.
        target: recall to reach.
    """

    def __init__(self, made: Artifacts, target: float) -> None:
        self._target = target
        schema = Encoder.load(made.checkpoints).schema
        retriever = checkpoint.load(made.checkpoints / RETRIEVE, schema)
        items = read_catalogue(made.checkpoints)
        rank = folders_of(made.repository)[RANK]
        served = Description.load(rank).mapped[CATALOGUE_IDS].open(rank)[:, 0]
        by_id = np.argsort(items.item_ids)
        items = items.take(by_id[np.searchsorted(items.item_ids[by_id], served)])
        self._vectors = np.concatenate(list(item_states(retriever, items, RETRIEVE)))
        self._retriever = retriever

    def tune(self, opened: Opened, dense: Array, categorical: Array) -> dict[str, Any]:
        """Set the index of opened stages to their own number of candidates -> recall and knobs.

        Args:
            dense, categorical: users as they come over the wire, a few hundred.
        """
        retrieve = opened.stages[RETRIEVE]
        assert isinstance(retrieve, Retrieve)
        found: Any = retrieve.index
        if not isinstance(found, index.Index):  # exact search: there is nothing to set
            return {"recall": 1.0}
        users = retrieve.encoder.encode("user", dense[:QUERIES], categorical[:QUERIES])
        with torch.inference_mode():
            queries = self._retriever.user(*(torch.from_numpy(x) for x in users)).numpy()
        recall = index.tune(found, self._vectors, queries, opened.candidates, self._target)
        return {"recall": recall, "index": found.facts.parameters}


def with_survivors(folder: Path, target: Path, survivors: int) -> None:
    """The version folder of a preranker that keeps so many; all but its graph is linked.

    Raises:
        ValueError: the graph keeps its best in another way than by one TopK.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in folder.iterdir():
        if file.is_file() and file.name != ONNX_FILE:
            os.link(file, target / file.name)
    model = onnx.load(str(folder / ONNX_FILE), load_external_data=False)
    keeping = [node for node in model.graph.node if node.op_type == "TopK"]
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    if len(keeping) != 1 or keeping[0].input[1] not in constants:
        raise ValueError(f"{folder / ONNX_FILE} has {len(keeping)} TopK; expected one, of constant")
    kept = numpy_helper.from_array(np.array([survivors]), keeping[0].input[1])
    constants[kept.name].CopyFrom(kept)
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[1].dim_value = survivors
    del model.graph.value_info[:]  # shapes of what lies between, with the old number in them
    onnx.save(model, str(target / ONNX_FILE))
