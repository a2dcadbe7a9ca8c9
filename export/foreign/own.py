"""Takes a model of ours apart, as a third party's file is: its flat graph is traced, and the parts
of the user, of the item and of the pair are derived from that."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cascade.artifact import ONNX_FILE
from cascade.config import Serving
from cascade.files import write_json
from cascade.models import contract, registry
from cascade.models.scorer import Scorer
from cascade.runtime.load import load_graph
from cascade.spec import Stage
from cascade.training import checkpoint
from export.artifacts import device, parity
from export.artifacts.graphs import CandidateLogits, TopCandidates, outputs, several
from export.artifacts.stage_files import candidates_module, item_states
from export.context import Build, Catalogue, Source
from export.foreign.flat import flat_onnx
from export.foreign.inputs import ForeignError
from export.foreign.onnx_model import Foreign, draw_users
from export.foreign.split import NotSplit
from export.foreign.taken import Taken

PROVED_USERS, PROVED_ITEMS = 3, 256


class Own(Taken):
    """One model, taken apart for one stage. Raises NotSplit: it cannot be, or what was derived does
    not give the model's logits; says why."""

    def __init__(self, scorer: Scorer, stage: Stage, items: Catalogue) -> None:
        contract.check(scorer)
        folder = tempfile.TemporaryDirectory(prefix="flat-")
        path = Path(folder.name) / ONNX_FILE
        mapping = path.with_suffix(".json")
        write_json(mapping, flat_onnx(scorer, scorer.schema, path))
        try:
            foreign = Foreign(path, mapping, scorer.schema)
        except ForeignError as error:
            raise NotSplit(f"{error}") from error
        super().__init__(foreign, stage, items, scorer)
        self._flat = folder  # read again for every variant
        self._prove(items)

    def eager(self, items: Catalogue) -> CandidateLogits:
        """The trained model over a catalogue, with which the graph is compared."""
        module = candidates_module(self.scorer, self.stage)
        states = [*item_states(self.scorer, items, self.stage.name)]
        module.item_state = torch.from_numpy(np.concatenate(states))
        if isinstance(module, TopCandidates) and module.with_ids:
            module.catalogue_ids = torch.from_numpy(items.item_ids[:, None].astype(np.int64))
        return module

    def _prove(self, items: Catalogue) -> None:
        """Compare float32 outputs, which no variant has rounded, on drawn users and items."""
        random = np.random.default_rng(0)
        some = items.take(random.permutation(len(items))[:PROVED_ITEMS])
        schema = self.scorer.schema
        dense, ids = draw_users(schema, PROVED_USERS, random)
        users = dense if schema.dense("user") else np.zeros_like(dense), ids
        rows = np.tile(np.arange(len(some)), (PROVED_USERS, 1))
        with tempfile.TemporaryDirectory(prefix="proof-") as folder:
            self.write(some, Path(folder), logits=True)
            graph = load_graph(Path(folder), schema, Serving(threads=1))[1]
            found = graph(*users, rows)[0]
        with torch.inference_mode():
            user = self.scorer.user(*map(torch.from_numpy, users))
            item = self.scorer.item(*map(torch.from_numpy, (some.dense, some.ids)))
            expected = outputs(self.scorer, user, item.expand(len(user), -1, -1)).numpy()
        difference = float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))
        limit = parity.LARGEST_DIFFERENCE
        if several(self.scorer):
            difference, limit = parity.of_tasks(found, expected, rows), parity.LARGEST_OF_TASKS
        if not difference <= limit:
            raise NotSplit(f"what was derived differs from the model by {difference:.1e}")


def taken_apart(build: Build, source: Source, scoring: Sequence[Stage]) -> dict[str, Own]:
    """The models of these stages, as far as they can be taken apart, where no CUDA graph is
    recorded of them. A derived graph does not compute in half precision: where that is asked for, a
    model that has `user`, `item` and `cross` of its own is served by these. Raises ContractError.
    """
    found: dict[str, Own] = {}
    if build.flat or build.serving.cuda_graphs:
        return found
    on_gpu = build.serving.device == "cuda"
    half = build.weights in device.HALVES or (build.weights == "auto" and on_gpu)
    for stage in scoring:
        checkpoint_ = build.checkpoint(stage.name)
        model = registry.find(checkpoint.describe(source.folder / checkpoint_)["model"]).model
        own_states = model.item is not Scorer.item
        if half and own_states:
            continue
        name = f"{stage.name}, {model.__name__}"
        try:
            found[stage.name] = Own(source.scorer(checkpoint_), stage, source.items)
        except NotSplit as error:
            how = "by its user, item and cross" if own_states else "flat"
            print(f"{name} is served {how}, because it cannot be taken apart: {error}")
        else:
            print(f"{name}: {found[stage.name].derived.report()}")
    return found
