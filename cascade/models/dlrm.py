"""DLRM, evaluated in the order user / item / cross.

Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation
Systems", 2019 (arXiv:1906.00091). The parameters are the paper's; only the order of evaluation is
ours. The first top layer is linear, so it is a sum over its input columns, and every column
belongs to the user alone, to the item alone, or to a pair of the two:

    W [dense; all pairs] + b = (W_u [...] + b) + W_v [...] + W_x [user x item pairs]
                                 once per user   once per item   per candidate

The last term is linear in the item's vectors, too, once the user is known: W_x can be folded with
the user's vectors into one matrix, and a candidate then costs one product with its packed state.
That pays where the first top layer is narrow (`arranged`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cascade.models.embeddings import Embeddings
from cascade.models.scorer import Scorer, mlp, run_mlp
from cascade.schema import Schema, Side


@dataclass(frozen=True)
class DLRMConfig:
    """Args:
    width: of every embedding, and of the bottom MLP's output.
    bottom: hidden widths of the bottom MLP; `width` follows.
    top: hidden widths of the top MLP; 1 follows.
    """

    width: int
    bottom: tuple[int, ...]
    top: tuple[int, ...]


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


LANES = 16  # float32 in a register: a product of fewer columns takes as long


class DLRM(Scorer):
    """The vectors of a row are: user bottom, user ids, item bottom, item ids; a side without
    numbers has no bottom. The paper knows one bottom MLP; a schema with numbers on both sides
    gets one for each, so that the item's can be computed once per item.

    A user state is the user's vectors and slice of the first top layer, [Fu * D + H]; an item
    state likewise, [Fi * D + H], or without its slice, which `cross` then computes anew.
    """

    recomputes = True

    user_columns: Tensor
    item_columns: Tensor
    cross_columns: Tensor
    cross_weight: Tensor | None
    user_pairs: Tensor
    item_pairs: Tensor
    user_bottom: nn.ModuleList | None
    item_bottom: nn.ModuleList | None
    top: nn.ModuleList

    def __init__(self, schema: Schema, config: DLRMConfig) -> None:
        super().__init__()
        self.width = config.width
        self.user_ids = Embeddings(schema.ids("user"), config.width)
        self.item_ids = Embeddings(schema.ids("item"), config.width)
        bottoms = {
            side: mlp((len(schema.dense(side)), *config.bottom, config.width))
            for side in ("user", "item")
            if schema.dense(side)
        }
        self.sides_with_bottom = tuple(bottoms)
        self.user_bottom = bottoms.get("user")
        self.item_bottom = bottoms.get("item")
        self.n_user = len(schema.ids("user")) + (self.user_bottom is not None)
        self.n_item = len(schema.ids("item")) + (self.item_bottom is not None)
        vectors = self.n_user + self.n_item
        inputs = len(bottoms) * config.width + vectors * (vectors - 1) // 2
        self.top = mlp((inputs, *config.top, 1))
        self.hidden = self._first.out_features
        self.user_width = self.n_user * self.width + self.hidden
        self.item_width = self.n_item * self.width + self.hidden
        self.folded = self.recomputed = False
        self.register_buffer("cross_weight", None, persistent=False)  # of an arranged model
        self._split_columns(len(bottoms))

    def arranged(self, candidates: int, recompute: bool = False) -> DLRM:
        """Fold the user into the first top layer where that takes fewer multiply-adds.

        W_x becomes a tensor of its own, so that an exporter sees the weight of a product and not
        how it was cut out: only the former can be quantised.
        """
        item, pairs = self.n_item * self.width, self.n_item * self.n_user
        columns = -(-self.n_user // LANES) * LANES  # of the products of vectors, as computed
        by_pairs = candidates * (self.n_item * columns * self.width + pairs * self.hidden)
        by_folding = item * self.n_user * self.hidden + candidates * self.item_width * self.hidden
        arranged = copy.copy(self)
        arranged.folded = by_folding < by_pairs
        arranged.recomputed = recompute
        if recompute:
            arranged.item_width = item
        arranged.__dict__["_buffers"] = dict(self._buffers)
        arranged.register_buffer("cross_weight", arranged._cut_weight().detach(), persistent=False)
        return arranged

    def _cut_weight(self) -> Tensor:
        """W_x as `cross` wants it: [Fi * Fu, H], or [Fi, Fu, H] to be folded."""
        weight = self._first.weight.index_select(1, self.cross_columns).t().contiguous()
        return weight.reshape(self.n_item, self.n_user, -1) if self.folded else weight

    @property
    def _first(self) -> nn.Linear:
        layer = self.top[0]
        assert isinstance(layer, nn.Linear)
        return layer

    def _split_columns(self, bottoms: int) -> None:
        """Which input columns of the first top layer belong to the user, the item, the pair."""
        user_bottom = self.width * (self.user_bottom is not None)
        columns: dict[str, list[int]] = {
            "user": list(range(user_bottom)),
            "item": list(range(user_bottom, bottoms * self.width)),
            "cross": [],
        }
        pairs: dict[str, list[int]] = {"user": [], "item": []}
        column = bottoms * self.width
        for i in range(self.n_user + self.n_item):  # the order of the paper's code: i > j
            for j in range(i):
                if i < self.n_user:
                    owner = "user"
                    pairs[owner].append(i * self.n_user + j)
                elif j >= self.n_user:
                    owner = "item"
                    pairs[owner].append((i - self.n_user) * self.n_item + j - self.n_user)
                else:
                    owner = "cross"
                columns[owner].append(column)
                column += 1
        for name, values in columns.items():
            self.register_buffer(f"{name}_columns", torch.tensor(values).long(), persistent=False)
        for name, values in pairs.items():
            self.register_buffer(f"{name}_pairs", torch.tensor(values).long(), persistent=False)

    def user(self, dense: Tensor, ids: Tensor) -> Tensor:
        vectors = self._vectors("user", dense, ids)
        own = self._own("user", vectors) + self._first.bias
        return torch.cat((vectors.flatten(1), own), dim=1)

    def item(self, dense: Tensor, ids: Tensor) -> Tensor:
        vectors = self._vectors("item", dense, ids)
        if self.recomputed:
            return vectors.flatten(1)
        return torch.cat((vectors.flatten(1), self._own("item", vectors)), dim=1)

    def _vectors(self, side: Side, dense: Tensor, ids: Tensor) -> Tensor:
        """-> a side's vectors [B, F, D]; the bottom MLP's, where there is one, is the first."""
        vectors: Tensor = (self.user_ids if side == "user" else self.item_ids)(ids)
        bottom = self.user_bottom if side == "user" else self.item_bottom
        if bottom is None:
            return vectors
        hidden = run_mlp(bottom, dense, last_relu=True)  # [B, D]
        return torch.cat((hidden.unsqueeze(1), vectors), dim=1)

    def _own(self, side: Side, vectors: Tensor) -> Tensor:
        """A side's vectors [B, F, D] -> its slice of the first top layer [B, H]."""
        columns = self.user_columns if side == "user" else self.item_columns
        pairs = self.user_pairs if side == "user" else self.item_pairs
        inputs = [vectors[:, 0]] if side in self.sides_with_bottom else []
        if len(pairs):
            dots = torch.matmul(vectors, vectors.transpose(1, 2)).flatten(1)  # [B, F * F]
            inputs.append(dots.index_select(1, pairs))
        if not inputs:
            return vectors.new_zeros((vectors.shape[0], self.hidden))
        weight = self._first.weight.index_select(1, columns)
        return torch.matmul(torch.cat(inputs, dim=1), weight.t())

    def cross(self, user: Tensor, item: Tensor) -> Tensor:
        users = user[:, : self.n_user * self.width].reshape(-1, self.n_user, self.width)
        weight = self._cut_weight() if self.cross_weight is None else self.cross_weight
        if self.folded:
            first = torch.matmul(item.to(user.dtype), self._fold(users, weight))  # [B, K, H]
            first = (first + self._rest(user, item)).flatten(0, 1)
        else:
            items = item[:, :, : self.n_item * self.width].to(user.dtype)  # [B, K, Fi * D]
            items = items.reshape(items.shape[0], -1, self.width)  # [B, K * Fi, D]
            dots = torch.matmul(items, users.transpose(1, 2))  # [B, K * Fi, Fu]
            dots = dots.reshape(-1, self.n_item * self.n_user)  # [B * K, Fi * Fu]
            # One product that begins with the sum of the slices, in place of a product and sums.
            first = torch.addmm(self._rest(user, item).flatten(0, 1), dots, weight)
        if len(self.top) > 1:
            # As rows of one matrix, so that each layer is one product with its bias.
            first = run_mlp(self.top[1:], torch.relu(first))  # [B * K, 1]
        return first.reshape(item.shape[0], item.shape[1])

    def _rest(self, user: Tensor, item: Tensor) -> Tensor:
        """The slices of the first top layer that `cross` adds to that of the pairs: [B, K, H], or
        [B, 1, H] where `_fold` has the item's."""
        own = user[:, None, self.n_user * self.width :]
        if self.recomputed:
            count = item.shape[0] * item.shape[1]
            items = item.to(user.dtype).reshape(count, self.n_item, self.width)
            return own + self._own("item", items).reshape(item.shape[0], -1, self.hidden)
        return own if self.folded else own + item[:, :, self.n_item * self.width :].to(user.dtype)

    def _fold(self, users: Tensor, weight: Tensor) -> Tensor:
        """users [B, Fu, D], weight [Fi, Fu, H] -> [B, V, H]: what to multiply an item state with;
        an identity at its end adds the item's own slice of the layer, where that is stored."""
        folded = torch.matmul(users.transpose(1, 2).unsqueeze(1), weight)  # [B, Fi, D, H]
        folded = folded.reshape(-1, self.n_item * self.width, self.hidden)
        if self.recomputed:
            return folded
        own = torch.eye(self.hidden, dtype=weight.dtype, device=weight.device)
        return torch.cat((folded, own.expand(folded.shape[0], -1, -1)), dim=1)
