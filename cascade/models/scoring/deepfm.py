"""DeepFM: a factorisation machine and an MLP over the same vectors, added up.

Guo, Tang, Ye, Li and He, "DeepFM: A Factorization-Machine based Neural Network for CTR
Prediction", IJCAI 2017, equations 1 to 4.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cascade.models.fields import Fields
from cascade.models.scorer import Scorer, mlp, run_mlp
from cascade.models.scoring.logistic import LogisticConfig, LogisticRegression
from cascade.schema import Schema


@dataclass(frozen=True)
class DeepFMConfig:
    """The widths of all layers, and how numbers enter: as themselves, by the first order and the
    MLP, or, as in the paper, as vectors, by the products of pairs, too."""

    width: int = 16  # of every vector
    hidden: tuple[int, ...] = (256, 128)
    vectors_of_all: bool = False


PRESETS = {
    "default": DeepFMConfig(),
    # Section 3.1: vectors of 10, three layers of 400 units on Criteo.
    "paper": DeepFMConfig(width=10, hidden=(400, 400, 400), vectors_of_all=True),
    "tiny": DeepFMConfig(width=4, hidden=(8,)),
}


class DeepFM(Scorer):
    """First order, second order and deep: <w, x> + sum of <v_i, v_j> x_i x_j over the pairs of
    fields + MLP. The sum over the pairs is half of |sum of v|^2 - sum of |v|^2 (Rendle, ICDM 2010).

        >>> from cascade.models.example import SHOP, rows
        >>> DeepFM(SHOP, PRESETS["paper"])(*rows(2)).shape
        torch.Size([2])
    """

    def __init__(self, schema: Schema, config: DeepFMConfig) -> None:
        super().__init__(schema)
        self.first_order = LogisticRegression(schema, LogisticConfig())
        self.fields = Fields(schema, config.width, config.vectors_of_all)
        self.deep = mlp((self.fields.width, *config.hidden, 1))

    def forward(
        self, user_dense: Tensor, user_ids: Tensor, item_dense: Tensor, item_ids: Tensor
    ) -> Tensor:
        row = user_dense, user_ids, item_dense, item_ids
        numbers, vectors = self.fields(*row)  # [B, n], [B, F, D]
        total = vectors.sum(1)
        pairs = ((total * total) - (vectors * vectors).sum(1)).sum(1) / 2
        deep = run_mlp(self.deep, self.fields.beside(numbers, vectors)).squeeze(1)
        logits: Tensor = self.first_order(*row) + pairs + deep
        return logits
