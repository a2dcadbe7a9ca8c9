"""Deep & Cross: layers that multiply a row by a weighted sum of it, beside an MLP.

Wang, Fu, Fu and Wang, "Deep & Cross Network for Ad Click Predictions", ADKDD 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cascade.models.fields import Fields
from cascade.models.scorer import Scorer, mlp, run_mlp
from cascade.schema import Schema


@dataclass(frozen=True)
class DCNConfig:
    """The sizes of both parts."""

    width: int = 16  # of every embedding
    crosses: int = 3
    hidden: tuple[int, ...] = (256, 128)


PRESETS = {
    "default": DCNConfig(),
    # Section 4.3: six cross layers and two deep ones of 1024 units on Criteo.
    "paper": DCNConfig(crosses=6, hidden=(1024, 1024)),
    # Naumov et al. 2019, section 5: what the DLRM is compared with on Criteo Kaggle.
    "dlrm-paper": DCNConfig(crosses=6, hidden=(512, 256)),
    "tiny": DCNConfig(width=4, crosses=2, hidden=(8,)),
}


class DCN(Scorer):
    """x_{l+1} = x_0 (w_l^T x_l) + b_l + x_l, equation 3; the last x and the MLP's output have one
    linear layer.

        >>> from cascade.models.example import SHOP, rows
        >>> DCN(SHOP, PRESETS["dlrm-paper"])(*rows(2)).shape
        torch.Size([2])
    """

    def __init__(self, schema: Schema, config: DCNConfig) -> None:
        super().__init__(schema)
        self.fields = Fields(schema, config.width)
        width = self.fields.width
        self.crosses = nn.ModuleList(nn.Linear(width, 1, bias=False) for _ in range(config.crosses))
        self.biases = nn.ParameterList(torch.zeros(width) for _ in range(config.crosses))
        self.deep = mlp((width, *config.hidden))
        self.last = nn.Linear(width + config.hidden[-1], 1)

    def forward(
        self, user_dense: Tensor, user_ids: Tensor, item_dense: Tensor, item_ids: Tensor
    ) -> Tensor:
        x0 = x = self.fields.flat(user_dense, user_ids, item_dense, item_ids)
        for weight, bias in zip(self.crosses, self.biases, strict=True):
            x = x0 * weight(x) + bias + x
        deep = run_mlp(self.deep, x0, last_relu=True)
        logits: Tensor = self.last(torch.cat((x, deep), dim=1)).squeeze(1)
        return logits
