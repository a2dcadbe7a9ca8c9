"""DLRM: embeddings, dot products of all pairs of vectors, and an MLP.

Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation
Systems", 2019 (arXiv:1906.00091). `DLRM.forward` is the paper's figure 1. Serving evaluates the
same weights in the order user, item, cross: `cascade.models.dlrm_serving`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from cascade.models.dlrm_serving import SplitLayer
from cascade.models.embeddings import Embeddings
from cascade.models.scorer import Scorer, mlp, run_mlp
from cascade.schema import Schema, Side


@dataclass(frozen=True)
class DLRMConfig:
    """The widths of all layers."""

    width: int  # of every embedding, and of the bottom MLP's output
    bottom: tuple[int, ...]  # of the bottom MLP's hidden layers; `width` follows
    top: tuple[int, ...]  # of the top MLP's hidden layers; 1 follows


PRESETS = {
    # Naumov et al. 2019, section 5: Criteo Kaggle, bottom 512-256-64-16, top 512-256-1.
    "criteo": DLRMConfig(width=16, bottom=(512, 256, 64), top=(512, 256)),
    # Gupta et al., "The Architectural Implications of Facebook's DNN-based Personalized
    # Recommendation", HPCA 2020, and DeepRecSys, ISCA 2020, table 1: bound by the lookups of
    # its many tables, which the Schema brings.
    "rmc2": DLRMConfig(width=32, bottom=(256, 128), top=(512, 128)),
    # The same papers: bound by the multiply-adds of its bottom MLP.
    "rmc3": DLRMConfig(width=32, bottom=(2560, 512), top=(512, 128)),
    # For preranking: a tenth of the ranker's work per candidate.
    "small": DLRMConfig(width=8, bottom=(64,), top=(32,)),
    # For tests.
    "tiny": DLRMConfig(width=4, bottom=(8,), top=(8,)),
}


class DLRM(Scorer):
    """The vectors of a row are: user bottom, user ids, item bottom, item ids.

    The paper knows one bottom MLP; a schema with numbers on both sides gets one for each, so that
    the item's can be computed once per item. A side without numbers has none.

        >>> from cascade.schema import Feature
        >>> schema = Schema("ads", (
        ...     Feature("age", "user", "dense", "log1p"),
        ...     Feature("city", "user", "categorical", "vocabulary", cardinality=100),
        ...     Feature("ad", "item", "categorical", "vocabulary", cardinality=5000),
        ... ))
        >>> model = DLRM(schema, PRESETS["criteo"])
        >>> [tuple(layer.weight.shape) for layer in model.top]  # 16 + 3 pairs of 3 vectors
        [(512, 19), (256, 512), (1, 256)]
        >>> age, city = torch.tensor([[3.7]]), torch.tensor([[42]])
        >>> no_number, ads = torch.zeros(2, 1), torch.tensor([[7], [4321]])
        >>> logits = model(age.expand(2, 1), city.expand(2, 1), no_number, ads)  # two rows
        >>> user, items = model.user(age, city), model.item(no_number, ads)  # the same, once each
        >>> torch.allclose(model.cross(user, items.unsqueeze(0))[0], logits, atol=1e-5)
        True
    """

    recomputes = True
    pairs: Tensor
    user_bottom: nn.ModuleList | None
    item_bottom: nn.ModuleList | None

    def __init__(self, schema: Schema, config: DLRMConfig) -> None:
        super().__init__(schema)
        self.width = config.width
        self.user_ids = Embeddings(schema.ids("user"), config.width)
        self.item_ids = Embeddings(schema.ids("item"), config.width)
        sides: tuple[Side, ...] = ("user", "item")
        bottoms = {
            side: mlp((len(schema.dense(side)), *config.bottom, config.width))
            for side in sides
            if schema.dense(side)
        }
        self.user_bottom, self.item_bottom = bottoms.get("user"), bottoms.get("item")
        self.n_user = len(schema.ids("user")) + ("user" in bottoms)
        self.n_item = len(schema.ids("item")) + ("item" in bottoms)
        vectors = self.n_user + self.n_item
        first, second = torch.tril_indices(vectors, vectors, offset=-1)  # the pairs i > j
        self.register_buffer("pairs", first * vectors + second, persistent=False)
        self.top = mlp((len(bottoms) * config.width + len(self.pairs), *config.top, 1))
        self.hidden = self.top_layer.out_features
        self.split = SplitLayer(self.n_user, self.n_item, self.width, self.hidden, tuple(bottoms))
        self.user_width, self.item_width = map(self.split.state_width, sides)

    @property
    def top_layer(self) -> nn.Linear:
        """The first layer of the top MLP."""
        return cast(nn.Linear, self.top[0])

    def vectors(self, side: Side, dense: Tensor, ids: Tensor) -> Tensor:
        """-> a side's vectors [B, F, D]; the bottom MLP's, where there is one, is the first."""
        embedded: Tensor = (self.user_ids if side == "user" else self.item_ids)(ids)
        bottom = self.user_bottom if side == "user" else self.item_bottom
        if bottom is None:
            return embedded
        hidden = run_mlp(bottom, dense, last_relu=True)  # [B, D]
        return torch.cat((hidden.unsqueeze(1), embedded), dim=1)

    def forward(
        self, user_dense: Tensor, user_ids: Tensor, item_dense: Tensor, item_ids: Tensor
    ) -> Tensor:
        user = self.vectors("user", user_dense, user_ids)
        item = self.vectors("item", item_dense, item_ids)
        vectors = torch.cat((user, item), dim=1)  # [B, F, D]
        dots = torch.matmul(vectors, vectors.transpose(1, 2)).flatten(1)  # [B, F * F]
        bottoms = ((self.user_bottom, user), (self.item_bottom, item))
        dense = [side[:, 0] for bottom, side in bottoms if bottom is not None]
        inputs = torch.cat((*dense, dots.index_select(1, self.pairs)), dim=1)
        return run_mlp(self.top, inputs).squeeze(1)

    def user(self, dense: Tensor, ids: Tensor) -> Tensor:
        return self.split.user(self.vectors("user", dense, ids), self.top_layer)

    def item(self, dense: Tensor, ids: Tensor) -> Tensor:
        return self.split.item(self.vectors("item", dense, ids), self.top_layer)

    def cross(self, user: Tensor, item: Tensor) -> Tensor:
        hidden = self.split.cross(user, item, self.top_layer)
        if len(self.top) > 1:
            # As rows of one matrix, so that each layer is one product with its bias.
            hidden = run_mlp(self.top[1:], torch.relu(hidden))  # [B * K, 1]
        return hidden.reshape(item.shape[0], item.shape[1])

    def user_parts(self) -> tuple[str, ...]:
        return ("user_ids", "user_bottom")

    def item_parts(self) -> tuple[str, ...]:
        return ("item_ids", "item_bottom")

    def arranged(self, candidates: int, recompute: bool = False) -> DLRM:
        arranged = copy.copy(self)
        arranged.__dict__["_modules"] = dict(self._modules)
        arranged.split = self.split.arranged(self.top_layer, candidates, recompute)
        arranged.item_width = arranged.split.state_width("item")
        return arranged
