"""`DCN` of DeepCTR-Torch: keys `embedding_dict.NAME.weight`, `linear_model.…`, `dnn.…`,
`crossnet.kernels`, `dnn_linear.weight`, `out.bias`; DCN-V (vectors) and DCN-M (matrices).

`ids` has the features in the order of `embedding_dict`, where bags (VarLenSparseFeat) stand last;
`dense` those of the DenseFeat columns. The package's sigmoid (task="binary") is left off.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cascade.located import Node
from export.described.converters.fields import Fields
from export.described.converters.layers import Lookup, linear
from export.described.converters.weights import Layer, Weights

TABLES, LINEAR = "embedding_dict.", "linear_model.embedding_dict."
POOLINGS = ("mean", "sum")
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "linear": nn.Identity,
}  # fmt: skip


def convert(weights: Weights, fields: Fields, config: Node) -> nn.Module:
    """The module. `config` may say `tables`, their order, `pooling` (the `combiner`, mean or sum)
    for all bags, and `activation` of the deep net (relu, sigmoid, linear)."""
    config.only("tables", "pooling", "activation")
    names = weights.tables(TABLES, config)
    own = {name: weights.take(f"{TABLES}{name}.weight", None, None) for name in {*names}}
    numbers = {name: torch.zeros(len(table), 1) for name, table in own.items()}
    for name in {*names} & {*weights.names(LINEAR, ".weight")}:
        numbers[name] = weights.take(f"{LINEAR}{name}.weight", len(own[name]), 1)
    hidden = weights.layers("dnn.linears.")
    flat = hidden[0][0].shape[1]
    fields.check_ids(len(names), f"the tables {', '.join(names)}")
    lists = [field.pad is not None for field in fields.ids]
    if lists != sorted(lists):
        raise fields.node.error("`ids` has a bag before a single id; in this model bags are last")
    tables = [own[name] for name in names]
    fields.check_dense(flat - sum(table.shape[1] for table in tables), "dnn.linears.0")
    mean = config.take("pooling", lambda n: n.choice("pooling", POOLINGS), "mean") == "mean"
    cross = _cross(weights, flat)
    last = weights.take("dnn_linear.weight", 1, flat * (cross is not None) + len(hidden[-1][0]))
    first = None
    if weights.has("linear_model.weight"):
        first = linear(weights.take("linear_model.weight", fields.dense, 1).T, None)
    net = Dcn if fields.dense else DcnOfIds
    return net(
        Lookup(fields.ids, tables, mean),
        Lookup(fields.ids, [numbers[name] for name in names], mean),
        first,
        _deep(weights, hidden, config),
        cross,
        linear(last, weights.take("out.bias", 1)),
    )


class _Net(nn.Module):
    """A linear part over ids and numbers, and one layer over a cross net and a deep net."""

    def __init__(
        self, lookup: Lookup, wide: Lookup, first: nn.Module | None, deep: nn.Module,
        cross: nn.Module | None, last: nn.Module,
    ) -> None:  # fmt: skip
        super().__init__()
        self.lookup, self.wide, self.first = lookup, wide, first
        self.deep, self.cross, self.last = deep, cross, last

    def logits(self, ids: Tensor, dense: list[Tensor]) -> Tensor:
        x = torch.cat((*self.lookup(ids), *dense), 1)
        deep = self.deep(x)
        total = self.last(deep if self.cross is None else torch.cat((self.cross(x), deep), 1))
        total = total + torch.cat(self.wide(ids), 1).sum(1, keepdim=True)
        if self.first is not None:
            total = total + self.first(dense[0])
        return total.squeeze(1)


class Dcn(_Net):
    """dense [n, D], ids [n, columns] -> logit [n]."""

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        return self.logits(ids, [dense])


class DcnOfIds(_Net):
    """ids [n, columns] -> logit [n], of a model without numbers."""

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits(ids, [])


class Cross(nn.Module):
    """x0 * (w . x) + b + x for each vector w, x0 * (W x + b) + x for each matrix W."""

    def __init__(self, kernels: Tensor, bias: Tensor, matrices: bool) -> None:
        super().__init__()
        weights = kernels if matrices else kernels.transpose(1, 2)
        biases = [*bias.squeeze(2)]
        self.layers = nn.ModuleList(
            linear(weight, plus if matrices else None)
            for weight, plus in zip(weights, biases, strict=True)
        )
        self.bias = nn.ParameterList([] if matrices else biases)

    def forward(self, first: Tensor) -> Tensor:
        x = first
        for number, layer in enumerate(self.layers):
            x = first * layer(x) + x
            if len(self.bias):
                x = x + self.bias[number]
        return x


def _cross(weights: Weights, flat: int) -> Cross | None:
    """None of a model without cross layers."""
    kernels = weights.take("crossnet.kernels", None, flat, None)
    bias = weights.take("crossnet.bias", len(kernels), flat, 1)
    if kernels.shape[2] not in (1, flat):
        raise weights.error(
            f"crossnet.kernels is {[*kernels.shape]}; expected vectors [{flat}, 1] or matrices "
            f"[{flat}, {flat}]"
        )
    return Cross(kernels, bias, kernels.shape[2] == flat) if len(kernels) else None


def _deep(weights: Weights, layers: list[Layer], config: Node) -> nn.Sequential:
    """Layers, each followed by its normalisation, where it has one, and the activation."""
    kind = config.take("activation", lambda n: n.choice("activation", ACTIVATIONS), "relu")
    made: list[nn.Module] = []
    for number, (weight, bias) in enumerate(layers):
        made.append(linear(weight, bias))
        if weights.has(f"dnn.bn.{number}."):
            normal = nn.BatchNorm1d(len(weight))
            keys = ("weight", "bias", "running_mean", "running_var")
            state = {key: weights.take(f"dnn.bn.{number}.{key}", len(weight)) for key in keys}
            normal.load_state_dict(state, strict=False)
            weights.drop(f"dnn.bn.{number}.num_batches_tracked")
            made.append(normal)
        made.append(ACTIVATIONS[kind]())
    return nn.Sequential(*made)
