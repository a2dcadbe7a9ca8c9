"""DCN-v2: cross layers with matrices, of low rank, in front of an MLP or beside it.

Wang, Shivanna, Cheng, Jain, Lin, Hong and Chi, "DCN V2: Improved Deep & Cross Network and Practical
Lessons for Web-scale Learning to Rank Systems", WWW 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cascade.models.fields import Fields
from cascade.models.layers import CrossLayer, cross
from cascade.models.scorer import Scorer, mlp, run_mlp
from cascade.schema import Schema


@dataclass(frozen=True)
class DCNv2Config:
    """The sizes of both parts; a rank of 0 is a full matrix."""

    width: int = 16  # of every embedding
    crosses: int = 2
    rank: int = 64
    hidden: tuple[int, ...] = (256, 128)
    structure: Literal["stacked", "parallel"] = "stacked"


PRESETS = {
    "default": DCNv2Config(),
    # Table 5, Criteo: embeddings of 39, two cross layers, two layers of 768 units, stacked.
    "paper": DCNv2Config(width=39, rank=0, hidden=(768, 768)),
    "parallel": DCNv2Config(structure="parallel"),
    # MLPerf's DLRM-v2 (mlcommons/training, recommendation_v2), but for its layers of the numbers.
    "mlperf": DCNv2Config(width=128, crosses=3, rank=512, hidden=(1024, 1024, 512, 256)),
    "tiny": DCNv2Config(width=4, rank=3, hidden=(8,)),
}


class DCNv2(Scorer):
    """Equations 1 to 3; `stacked` gives the MLP what the cross layers made, `parallel` the row.

    >>> from cascade.models.example import SHOP, rows
    >>> DCNv2(SHOP, PRESETS["parallel"])(*rows(2)).shape
    torch.Size([2])
    """

    def __init__(self, schema: Schema, config: DCNv2Config) -> None:
        super().__init__(schema)
        self.fields = Fields(schema, config.width)
        self.stacked = config.structure == "stacked"
        width, rank = self.fields.width, config.rank or None
        self.crosses = nn.ModuleList(CrossLayer(width, rank) for _ in range(config.crosses))
        self.deep = mlp((width, *config.hidden))
        self.last = nn.Linear(config.hidden[-1] + (0 if self.stacked else width), 1)

    def forward(
        self, user_dense: Tensor, user_ids: Tensor, item_dense: Tensor, item_ids: Tensor
    ) -> Tensor:
        row = self.fields.flat(user_dense, user_ids, item_dense, item_ids)
        crossed = cross(self.crosses, row)
        deep = run_mlp(self.deep, crossed if self.stacked else row, last_relu=True)
        found = deep if self.stacked else torch.cat((crossed, deep), dim=1)
        logits: Tensor = self.last(found).squeeze(1)
        return logits
