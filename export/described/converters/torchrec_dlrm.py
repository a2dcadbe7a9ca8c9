"""`DLRM` and `DLRM_DCN` of torchrec.models.dlrm: keys `sparse_arch.embedding_bag_collection.
embedding_bags.TABLE.weight`, `dense_arch.…`, `over_arch.…`, and `inter_arch.crossnet.…` of a DCN.

`ids` has the features in the order of the collection: table by table, and of a table that serves
several features one after the other. Of a sharded model gather the state_dict first (`torchrec.
inference.state_dict_transform.state_dict_gather`).
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor, nn

from cascade.located import Node
from export.described.converters.fields import Fields
from export.described.converters.layers import Dlrm, Dots, Lookup, linear, mlp
from export.described.converters.weights import Weights

TABLES = "sparse_arch.embedding_bag_collection.embedding_bags."
CROSS = "inter_arch.crossnet."
POOLINGS = ("sum", "mean")


def convert(weights: Weights, fields: Fields, config: Node) -> nn.Module:
    """The module. `config` may say `tables`, their order, and `pooling`, sum (as the package's
    EmbeddingBagConfig has it) or mean, for all bags."""
    config.only("tables", "pooling")
    names = weights.tables(TABLES, config)
    bottom = weights.layers("dense_arch.model._mlp.", "._linear")
    width, count = len(bottom[-1][0]), len(names) + 1
    own = {name: weights.take(f"{TABLES}{name}.weight", None, width) for name in {*names}}
    fields.check_dense(bottom[0][0].shape[1], "dense_arch")
    fields.check_ids(len(names), f"the tables {', '.join(names)}")
    interaction, gives = _interaction(weights, count, width)
    hidden = weights.layers("over_arch.model.0._mlp.", "._linear", gives)
    last = weights.take("over_arch.model.1.weight", 1, len(hidden[-1][0]))
    top = mlp(hidden, True).append(linear(last, weights.take("over_arch.model.1.bias", 1)))
    mean = config.take("pooling", lambda n: n.choice("pooling", POOLINGS), "sum") == "mean"
    lookup = Lookup(fields.ids, [own[name] for name in names], mean)
    return Dlrm(mlp(bottom, True), lookup, interaction, top)


def _interaction(weights: Weights, count: int, width: int) -> tuple[nn.Module, int]:
    """Dots or a cross net, and how many numbers it gives of `count` vectors."""
    if not weights.has(CROSS):
        pairs = [*combinations(range(count), 2)]
        return Dots(pairs), width + len(pairs)
    flat, layers = count * width, []
    for number in weights.numbers(f"{CROSS}W_kernels.", ""):
        expand = weights.take(f"{CROSS}W_kernels.{number}", flat, None)
        reduce = weights.take(f"{CROSS}V_kernels.{number}", expand.shape[1], flat)
        layers.append((reduce, expand, weights.take(f"{CROSS}bias.{number}", flat)))
    return LowRankCross(layers), flat


class LowRankCross(nn.Module):
    """Vectors [n, D] side by side as x0, then for each layer x0 * (W V x + b) + x."""

    def __init__(self, layers: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(linear(reduce, None) for reduce, _, _ in layers)
        self.expand = nn.ModuleList(linear(expand, bias) for _, expand, bias in layers)

    def forward(self, vectors: list[Tensor]) -> Tensor:
        first = x = torch.cat(vectors, 1)
        for reduce, expand in zip(self.reduce, self.expand, strict=True):
            x = first * expand(reduce(x)) + x
        return x
