"""Ids that training does not know: how often they come, and how a model learns to meet them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cascade.data.dataset import Dataset
from cascade.schema import Feature, Side


class Unknowns:
    """Turns ids of a side into the unknown one as often as validation rows have it, so that its row
    is trained for those whom training has not seen."""

    def __init__(self, dataset: Dataset, side: Side) -> None:
        self.share: dict[int, tuple[float, int]] = {}  # by column: how often, the unknown id
        items = dataset.items()[1]
        rows = [dataset.sample(split, 20_000) for split in ("train", "validation")]
        for feature in dataset.schema.ids(side):
            column = dataset.schema.first_column(feature)
            if _has_unknown(feature):
                ids = [(r.user_ids if side == "user" else items[r.item])[:, column] for r in rows]
                before, now = (float((part == feature.unknown_id).mean()) for part in ids)
                if now > before:
                    self.share[column] = ((now - before) / (1 - before), feature.unknown_id)

    def put(self, ids: Tensor, random: np.random.Generator) -> Tensor:
        """ids [B, C] -> a copy with some of them unknown."""
        ids = ids.clone() if self.share else ids
        for column, (share, unknown) in self.share.items():
            hit = torch.from_numpy(random.random(len(ids)) < share).to(ids.device)
            ids[hit, column] = unknown
        return ids


def _has_unknown(feature: Feature) -> bool:
    return feature.kind == "categorical" and feature.unknown_id >= 0
