"""DLRM: embeddings, dot products of all pairs of vectors, and an MLP.

Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation
Systems", 2019 (arXiv:1906.00091), figure 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cascade.models.embeddings import Embeddings
from cascade.models.layers import CrossLayer, cross
from cascade.models.scorer import Scorer, mlp, run_mlp
from cascade.schema import Schema, Side


@dataclass(frozen=True)
class DLRMConfig:
    """The widths of all layers."""

    width: int  # of every embedding, and of the bottom MLP's output
    bottom: tuple[int, ...]  # of the bottom MLP's hidden layers; `width` follows
    top: tuple[int, ...]  # of the top MLP's hidden layers; 1 follows
    crosses: int = 0  # layers of DCN-v2 in place of the dot products
    rank: int = 0  # of these


PRESETS = {
    # Naumov et al. 2019, section 5: Criteo Kaggle, bottom 512-256-64-16, top 512-256-1.
    "criteo": DLRMConfig(width=16, bottom=(512, 256, 64), top=(512, 256)),
    # Gupta et al. and DeepRecSys (below), table 1: a small model of few tables.
    "rmc1": DLRMConfig(width=32, bottom=(256, 128), top=(256, 64)),
    # Gupta et al., "The Architectural Implications of Facebook's DNN-based Personalized
    # Recommendation", HPCA 2020, and DeepRecSys, ISCA 2020, table 1: bound by the lookups of
    # its many tables, which the Schema brings.
    "rmc2": DLRMConfig(width=32, bottom=(256, 128), top=(512, 128)),
    # The same papers: bound by the multiply-adds of its bottom MLP.
    "rmc3": DLRMConfig(width=32, bottom=(2560, 512), top=(512, 128)),
    # MLPerf's DLRM-v2 (torchrec's DLRM_DCN): three cross layers of rank 512 interact.
    "mlperf-v2": DLRMConfig(128, (512, 256), (1024, 1024, 512, 256), crosses=3, rank=512),
    # For preranking: a tenth of the ranker's work per candidate.
    "small": DLRMConfig(width=8, bottom=(64,), top=(32,)),
    # For tests.
    "tiny": DLRMConfig(width=4, bottom=(8,), top=(8,)),
}


class DLRM(Scorer):
    """The vectors of a row are: user bottom, user ids, item bottom, item ids. They interact by
    their dot products, or by the cross layers of DCN-v2.

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
        self.bottoms = (*bottoms,)  # the sides that have one, of which it gives the first vector
        self.user_bottom, self.item_bottom = bottoms.get("user"), bottoms.get("item")
        self.n_user = len(schema.ids("user")) + ("user" in bottoms)
        self.n_item = len(schema.ids("item")) + ("item" in bottoms)
        vectors = self.n_user + self.n_item
        first, second = torch.tril_indices(vectors, vectors, offset=-1)  # the pairs i > j
        self.register_buffer("pairs", first * vectors + second, persistent=False)
        self.crosses = nn.ModuleList(
            CrossLayer(vectors * config.width, config.rank) for _ in range(config.crosses)
        )
        pairs = len(bottoms) * config.width + len(self.pairs)
        self.top = mlp((vectors * config.width if config.crosses else pairs, *config.top, 1))
        self.user_width, self.item_width = self.n_user * self.width, self.n_item * self.width

    def vectors(self, side: Side, dense: Tensor, ids: Tensor) -> Tensor:
        """-> a side's vectors [B, F, D]; the bottom MLP's, where there is one, is the first."""
        embedded: Tensor = (self.user_ids if side == "user" else self.item_ids)(ids)
        bottom = self.user_bottom if side == "user" else self.item_bottom
        if bottom is None:
            return embedded
        hidden = run_mlp(bottom, dense, last_relu=True)  # [B, D]
        return torch.cat((hidden.unsqueeze(1), embedded), dim=1)

    def user(self, dense: Tensor, ids: Tensor) -> Tensor:
        return self.vectors("user", dense, ids).flatten(1)

    def item(self, dense: Tensor, ids: Tensor) -> Tensor:
        return self.vectors("item", dense, ids).flatten(1)

    def cross(self, user: Tensor, item: Tensor) -> Tensor:
        items = item.to(user.dtype).flatten(0, 1)  # [B * K, Fi * D]
        users = user.unsqueeze(1).expand(-1, item.shape[1], -1).flatten(0, 1)  # [B * K, Fu * D]
        vectors = torch.cat((users, items), dim=1)  # [B * K, F * D]
        if len(self.crosses):
            return run_mlp(self.top, cross(self.crosses, vectors)).reshape(item.shape[:2])
        vectors = vectors.reshape(-1, self.n_user + self.n_item, self.width)
        dots = torch.matmul(vectors, vectors.transpose(1, 2)).flatten(1)  # [B * K, F * F]
        states = {"user": users, "item": items}
        dense = [states[side][:, : self.width] for side in self.bottoms]
        inputs = torch.cat((*dense, dots.index_select(1, self.pairs)), dim=1)
        return run_mlp(self.top, inputs).reshape(item.shape[:2])

    def user_parts(self) -> tuple[str, ...]:
        return ("user_ids", "user_bottom")

    def item_parts(self) -> tuple[str, ...]:
        return ("item_ids", "item_bottom")
