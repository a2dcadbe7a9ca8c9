"""An MLP over the embeddings and numbers of a row, the base of deep click models.

Zhang, Du and Wang, "Deep Learning over Multi-field Categorical Data", ECIR 2016 (FNN), without its
pre-training.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cascade.models.fields import Fields
from cascade.models.scorer import Scorer, mlp, run_mlp
from cascade.schema import Schema


@dataclass(frozen=True)
class MLPConfig:
    """The widths of all layers."""

    width: int = 16  # of every embedding
    hidden: tuple[int, ...] = (256, 128)


PRESETS = {
    "default": MLPConfig(),
    # Section 4: 200, 300 and 100 units on iPinYou.
    "paper": MLPConfig(width=11, hidden=(200, 300, 100)),
    "tiny": MLPConfig(width=4, hidden=(8,)),
}


class MLP(Scorer):
    """All of a row side by side, through an MLP.

    >>> from cascade.models.example import SHOP, rows
    >>> MLP(SHOP, PRESETS["default"])(*rows(2)).shape
    torch.Size([2])
    """

    def __init__(self, schema: Schema, config: MLPConfig) -> None:
        super().__init__(schema)
        self.fields = Fields(schema, config.width)
        self.layers = mlp((self.fields.width, *config.hidden, 1))

    def forward(
        self, user_dense: Tensor, user_ids: Tensor, item_dense: Tensor, item_ids: Tensor
    ) -> Tensor:
        row = self.fields.flat(user_dense, user_ids, item_dense, item_ids)
        return run_mlp(self.layers, row).squeeze(1)
