"""The first top layer of a DLRM, evaluated in the order user, item, cross.

The layer is linear, so it is a sum over its input columns, and every column belongs to the user
alone, to the item alone, or to a pair of the two:

    W [dense; all pairs] + b = (W_u [...] + b) + W_v [...] + W_x [user x item pairs]
                                 once per user   once per item   per candidate

The last term is linear in the item's vectors, too, once the user is known: W_x can be folded with
the user's vectors into one matrix, and a candidate then costs one product with its packed state.
That pays where the layer is narrow (`SplitLayer.arranged`).

The export derives the same split from the graph of `forward` where a model has nothing else
(`export.foreign.split`): with as many multiply-adds, and about as fast (`python -m perf.split`).
This one is what TorchScript, AOTInductor and half precision compute, what distillation and
brute-force evaluation score many candidates of a user by, and what can recompute the item's slice.
"""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn

from cascade.schema import Side

LANES = 16  # float32 in a register: a product of fewer columns takes as long


class SplitLayer(nn.Module):
    """Which columns of the layer belong to which side; the layer itself is an argument.

    A user state is the user's vectors and slice of the layer, [Fu * D + H]; an item state
    likewise, [Fi * D + H], or without its slice, which `cross` then computes anew.

    Args:
        n_user, n_item: vectors of each side, Fu and Fi.
        width: of a vector, D.
        hidden: outputs of the layer, H.
        bottoms: the sides whose first vector comes from a bottom MLP and is an input itself.
    """

    user_columns: Tensor
    item_columns: Tensor
    cross_columns: Tensor
    cross_weight: Tensor | None
    user_pairs: Tensor
    item_pairs: Tensor

    def __init__(
        self, n_user: int, n_item: int, width: int, hidden: int, bottoms: Collection[Side]
    ) -> None:
        super().__init__()
        self.n_user, self.n_item, self.width, self.hidden = n_user, n_item, width, hidden
        self.bottoms = bottoms
        self.folded = self.recomputed = False
        self.register_buffer("cross_weight", None, persistent=False)  # of an arranged model
        dense = torch.arange(len(bottoms) * width)
        blocks: dict[str, Tensor] = dict(zip(bottoms, torch.split(dense, width), strict=False))
        i, j = torch.tril_indices(n_user + n_item, n_user + n_item, offset=-1)  # the pairs i > j
        columns = len(dense) + torch.arange(len(i))
        owned = {"user": i < n_user, "item": j >= n_user}
        owned["cross"] = ~(owned["user"] | owned["item"])
        for owner, some in owned.items():
            own = torch.cat((blocks.get(owner, dense[:0]), columns[some]))
            self.register_buffer(f"{owner}_columns", own, persistent=False)
        places = {"user": i * n_user + j, "item": (i - n_user) * n_item + j - n_user}
        for side, values in places.items():
            self.register_buffer(f"{side}_pairs", values[owned[side]], persistent=False)

    def state_width(self, side: Side) -> int:
        if side == "user":
            return self.n_user * self.width + self.hidden
        return self.n_item * self.width + (0 if self.recomputed else self.hidden)

    def arranged(self, layer: nn.Linear, candidates: int, recompute: bool) -> SplitLayer:
        """Fold the user into the layer where that takes fewer multiply-adds.

        W_x becomes a tensor of its own, so that an exporter sees the weight of a product and not
        how it was cut out: only the former can be quantised.
        """
        arranged = copy.copy(self)
        arranged.__dict__["_buffers"] = dict(self._buffers)
        arranged.recomputed = recompute
        pairs, packed = self.n_item * self.n_user, self.n_item * self.width
        columns = -(-self.n_user // LANES) * LANES  # of the products of vectors, as computed
        by_pairs = candidates * (self.n_item * columns * self.width + pairs * self.hidden)
        by_folding = (
            packed * self.n_user * self.hidden + candidates * self.state_width("item") * self.hidden
        )
        arranged.folded = by_folding < by_pairs
        arranged.cross_weight = arranged._cut_weight(layer).detach()
        return arranged

    def _cut_weight(self, layer: nn.Linear) -> Tensor:
        """W_x as `cross` wants it: [Fi * Fu, H], or [Fi, Fu, H] to be folded."""
        weight = layer.weight.index_select(1, self.cross_columns).t().contiguous()
        return weight.reshape(self.n_item, self.n_user, -1) if self.folded else weight

    def user(self, vectors: Tensor, layer: nn.Linear) -> Tensor:
        """Vectors [B, Fu, D] -> user state; the bias of the layer is in the user's slice."""
        own = self._own("user", vectors, layer) + layer.bias
        return torch.cat((vectors.flatten(1), own), dim=1)

    def item(self, vectors: Tensor, layer: nn.Linear) -> Tensor:
        """Vectors [N, Fi, D] -> item state."""
        if self.recomputed:
            return vectors.flatten(1)
        return torch.cat((vectors.flatten(1), self._own("item", vectors, layer)), dim=1)

    def _own(self, side: Side, vectors: Tensor, layer: nn.Linear) -> Tensor:
        """A side's vectors [B, F, D] -> its slice of the layer [B, H]."""
        columns = self.user_columns if side == "user" else self.item_columns
        pairs = self.user_pairs if side == "user" else self.item_pairs
        inputs = [vectors[:, 0]] if side in self.bottoms else []
        if len(pairs):
            dots = torch.matmul(vectors, vectors.transpose(1, 2)).flatten(1)  # [B, F * F]
            inputs.append(dots.index_select(1, pairs))
        if not inputs:
            return vectors.new_zeros((vectors.shape[0], self.hidden))
        weight = layer.weight.index_select(1, columns)
        return torch.matmul(torch.cat(inputs, dim=1), weight.t())

    def cross(self, user: Tensor, item: Tensor, layer: nn.Linear) -> Tensor:
        """States [B, U] and [B, K, V] -> the layer's outputs [B * K, H]."""
        users = user[:, : self.n_user * self.width].reshape(-1, self.n_user, self.width)
        weight = self._cut_weight(layer) if self.cross_weight is None else self.cross_weight
        if self.folded:
            first = torch.matmul(item.to(user.dtype), self._fold(users, weight))  # [B, K, H]
            return (first + self._rest(user, item, layer)).flatten(0, 1)
        items = item[:, :, : self.n_item * self.width].to(user.dtype)  # [B, K, Fi * D]
        items = items.reshape(items.shape[0], -1, self.width)  # [B, K * Fi, D]
        dots = torch.matmul(items, users.transpose(1, 2))  # [B, K * Fi, Fu]
        dots = dots.reshape(-1, self.n_item * self.n_user)  # [B * K, Fi * Fu]
        # One product that begins with the sum of the slices, in place of a product and sums.
        return torch.addmm(self._rest(user, item, layer).flatten(0, 1), dots, weight)

    def _rest(self, user: Tensor, item: Tensor, layer: nn.Linear) -> Tensor:
        """The slices of the layer that `cross` adds to that of the pairs: [B, K, H], or [B, 1, H]
        where `_fold` has the item's."""
        own = user[:, None, self.n_user * self.width :]
        if self.recomputed:
            count = item.shape[0] * item.shape[1]
            items = item.to(user.dtype).reshape(count, self.n_item, self.width)
            slices = self._own("item", items, layer)
            return own + slices.reshape(item.shape[0], -1, self.hidden)
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
