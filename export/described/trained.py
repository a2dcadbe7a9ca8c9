"""Checkpoints that training here wrote, as one more form of a model in the file."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cascade.artifact import Array
from cascade.errors import CascadeError
from cascade.located import Node
from cascade.models.scorer import Scorer
from cascade.training import checkpoint
from export.context import Source
from export.described.features import Features
from export.foreign.inputs import Rows


class Checkpoints:
    """What the folder that a node names holds: features, items and users. Raises LocatedError."""

    def __init__(self, node: Node) -> None:
        self.node, self.folder = node, node.file_path()
        try:
            self.source = Source.load(self.folder)
            self.raw_users = pq.read_table(self.folder / "users.parquet")
        except (CascadeError, pa.ArrowInvalid) as error:
            raise node.error(str(error)) from error
        names = [feature.name for feature in self.source.schema.features]
        nodes = dict.fromkeys(names, node)
        self.features = Features(self.source.encoder, nodes, {name: name for name in names})

    @property
    def ids(self) -> pa.Array:
        """The ids of the items, as outside."""
        column = pq.read_table(self.folder / "catalogue.parquet", columns=["item_id"])["item_id"]
        whole = column.combine_chunks()
        return whole.cast(pa.large_string() if pa.types.is_string(whole.type) else whole.type)

    def name(self, stage: str, node: Node | None) -> str:
        """The subfolder of a stage's model: `checkpoint: NAME`, by default that of its stage."""
        name = stage if node is None else node.take("checkpoint", Node.text)
        if node is not None:
            node.only("checkpoint")
        try:
            checkpoint.describe(self.folder / name)
        except CascadeError as error:
            raise (node or self.node).error(str(error)) from error
        return name

    def scored(self, name: str) -> Trained:
        """The ranker in a subfolder, to be compared with golden rows."""
        return Trained(checkpoint.load(self.folder / name, self.source.schema))


class Trained:
    """A model of training over encoded rows."""

    is_logit = True

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def probabilities(self, rows: Rows) -> Array:
        """Encoded rows -> click probability, float32 [n]."""
        arguments = (rows[k] for k in ("user_dense", "user_ids", "item_dense", "item_ids"))
        with torch.inference_mode():
            logits = self._scorer.score_rows(*(torch.from_numpy(value) for value in arguments))
        found: Array = logits.sigmoid().numpy()
        return found


def is_checkpoint(node: Node | None) -> bool:
    """Whether a stage of the file is a checkpoint: by its key, or because nothing is said of it."""
    return node is None or (isinstance(node.value, dict) and "checkpoint" in node.value)
