"""Wide & Deep: a logistic regression and an MLP, added up.

Cheng et al., "Wide & Deep Learning for Recommender Systems", DLRS 2016, equation 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cascade.models.fields import Fields
from cascade.models.scorer import Scorer, mlp, run_mlp
from cascade.models.scoring.logistic import LogisticConfig, LogisticRegression
from cascade.schema import Schema


@dataclass(frozen=True)
class WideDeepConfig:
    """The widths of the deep part."""

    width: int = 16  # of every embedding
    hidden: tuple[int, ...] = (256, 128)


PRESETS = {
    "default": WideDeepConfig(),
    # Section 4.2 and figure 4: embeddings of 32, then 1024, 512 and 256 units.
    "paper": WideDeepConfig(width=32, hidden=(1024, 512, 256)),
    "tiny": WideDeepConfig(width=4, hidden=(8,)),
}


class WideDeep(Scorer):
    """The wide part sees every id and number; crosses of them are features that the schema brings.

    >>> from cascade.models.example import SHOP, rows
    >>> WideDeep(SHOP, PRESETS["default"])(*rows(2)).shape
    torch.Size([2])
    """

    def __init__(self, schema: Schema, config: WideDeepConfig) -> None:
        super().__init__(schema)
        self.wide = LogisticRegression(schema, LogisticConfig())
        self.fields = Fields(schema, config.width)
        self.deep = mlp((self.fields.width, *config.hidden, 1))

    def forward(
        self, user_dense: Tensor, user_ids: Tensor, item_dense: Tensor, item_ids: Tensor
    ) -> Tensor:
        row = user_dense, user_ids, item_dense, item_ids
        logits: Tensor = self.wide(*row) + run_mlp(self.deep, self.fields.flat(*row)).squeeze(1)
        return logits
