"""Models of DeepCTR-Torch with the weights of ours: `reference(scorer, rows)` -> logits [B].

A number that has a vector is a categorical there, whose k-th row is the k-th of NUMBERS times the
vector. Their linear layers in front of the logit have no bias; the one behind them is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cascade.models.fields import Fields
from cascade.models.layers import CrossLayer
from cascade.models.retrieval.mf import MatrixFactorization
from cascade.models.scoring.autoint import AutoInt
from cascade.models.scoring.dcn import DCN
from cascade.models.scoring.dcnv2 import DCNv2
from cascade.models.scoring.deepfm import DeepFM
from cascade.models.scoring.din import DIN, DiceMLP
from cascade.models.scoring.logistic import LogisticRegression
from cascade.models.scoring.mlp import MLP
from cascade.models.scoring.wide_deep import WideDeep
from cascade.schema import Feature
from perf.quality.deepfm import _quiet
from tests.unit.independent.case import (
    BY_NAME,
    NUMBERS,
    SCHEMA,
    Rows,
    fill,
    fill_linear,
    fill_linears,
    places,
    row_layout,
    rows_of,
    table,
    vector_layout,
)

_quiet()
from deepctr_torch import inputs, models  # noqa: E402
from deepctr_torch.layers import CrossNet  # noqa: E402
from deepctr_torch.layers.activation import Dice  # noqa: E402

Columns = list[Any]


def columns(
    width: int, numbers: bool = True, features: Sequence[Feature] = SCHEMA.features
) -> Columns:
    """Their description of the features; without `numbers`, numbers are categoricals."""
    found = []
    for f in features:
        rows = len(NUMBERS) if f.kind == "dense" else f.cardinality
        sparse = inputs.SparseFeat(f.name, rows, width)
        if f.multivalued:
            found.append(inputs.VarLenSparseFeat(sparse, f.length, "mean"))
        else:
            dense = f.kind == "dense" and numbers
            found.append(inputs.DenseFeat(f.name, 1) if dense else sparse)
    return found


def order(described: Columns) -> list[str]:
    """The features as they stand in the input of their DNN."""
    kinds = inputs.SparseFeat, inputs.VarLenSparseFeat, inputs.DenseFeat
    return [one.name for kind in kinds for one in described if isinstance(one, kind)]


def matrix(model: Any, rows: Rows, **others: Tensor) -> Tensor:
    """All features as columns of one matrix of floats."""
    dense = {c.name for c in model.dnn_feature_columns if isinstance(c, inputs.DenseFeat)}
    dense |= {column.name for column in model.linear_model.dense_feature_columns}
    found = []
    for name in model.feature_index:
        if name in others:
            found.append(others[name])
        elif BY_NAME[name].kind == "dense" and name not in dense:
            found.append(rows.steps(name))
        else:
            found.append(rows.of(name))
    return torch.cat([values.float() for values in found], dim=1)


def run(model: Any, rows: Rows, **others: Tensor) -> Tensor:
    logits: Tensor = model.eval()(matrix(model, rows, **others)).clone()
    return logits.squeeze(1)


def fill_tables(model: Any, fields: Fields) -> None:
    for name, embedding in model.embedding_dict.items():
        fill(embedding.weight, table(fields, name))


def fill_wide(model: Any, wide: LogisticRegression) -> None:
    """First-order weights; those of numbers one by one, or as rows of tables."""
    linear, weights = model.linear_model, {}
    for side, layer in (("user", wide.user_dense), ("item", wide.item_dense)):
        dense = SCHEMA.dense("user" if side == "user" else "item")
        weights |= {f.name: layer.weight[0, place] for place, f in enumerate(dense)}
    for name, embedding in linear.embedding_dict.items():
        if name in weights:
            fill(embedding.weight, NUMBERS.unsqueeze(1) * weights[name])
        else:
            side_ids = wide.user_ids if BY_NAME[name].side == "user" else wide.item_ids
            fill(embedding.weight, rows_of(side_ids, name))
    if linear.dense_feature_columns:
        names = [column.name for column in linear.dense_feature_columns]
        fill(linear.weight, torch.stack([weights[name] for name in names]).unsqueeze(1))


def fill_deep(model: Any, layers: nn.ModuleList, at: Tensor, bias: Tensor | float = 0.0) -> None:
    """An MLP that ends in the logit; `bias` is that of other parts."""
    *hidden, last = layers
    assert isinstance(last, nn.Linear)
    fill_linears(model.dnn.linears, hidden, at)
    fill(model.dnn_linear.weight, last.weight)
    fill(model.out.bias, last.bias + bias)


def logistic(scorer: LogisticRegression, rows: Rows) -> Tensor:
    model = models.DeepFM(columns(1), [], False, (), task="regression")
    fill_wide(model, scorer)
    fill(model.out.bias, scorer.bias)
    return run(model, rows)


def mf(scorer: MatrixFactorization, rows: Rows) -> Tensor:
    """A factorisation machine over the two ids (Rendle, ICDM 2010, section V-A)."""
    described = columns(scorer.user_width - 2, features=scorer.ids)
    model = models.DeepFM(described, described, True, (), task="regression")
    vectors, biases = model.embedding_dict, model.linear_model.embedding_dict
    fill(vectors["person"].weight, rows_of(scorer.user_factors, "person"))
    fill(vectors["product"].weight, rows_of(scorer.item_factors, "product"))
    fill(biases["person"].weight, rows_of(scorer.user_bias, "person"))
    fill(biases["product"].weight, rows_of(scorer.item_bias, "product"))
    fill(model.out.bias, scorer.mean)
    return run(model, rows)


def mlp(scorer: MLP, rows: Rows) -> Tensor:
    width, hidden = scorer.fields.user.width, [layer.out_features for layer in scorer.layers][:-1]
    described = columns(width)
    model = models.WDL([], described, hidden, task="regression")
    fill_tables(model, scorer.fields)
    fill_deep(model, scorer.layers, places(row_layout(width), order(described)))
    return run(model, rows)


def wide_deep(scorer: WideDeep, rows: Rows) -> Tensor:
    width, hidden = scorer.fields.user.width, [layer.out_features for layer in scorer.deep][:-1]
    described = columns(width)
    model = models.WDL(described, described, hidden, task="regression")
    fill_tables(model, scorer.fields)
    fill_wide(model, scorer.wide)
    at = places(row_layout(width), order(described))
    fill_deep(model, scorer.deep, at, scorer.wide.bias)
    return run(model, rows)


def deepfm(scorer: DeepFM, rows: Rows) -> Tensor:
    width, hidden = scorer.fields.user.width, [layer.out_features for layer in scorer.deep][:-1]
    described = columns(width, numbers=bool(scorer.fields.numbers))
    model = models.DeepFM(described, described, True, hidden, task="regression")
    fill_tables(model, scorer.fields)
    fill_wide(model, scorer.first_order)
    layout = row_layout(width) if scorer.fields.numbers else vector_layout(width)
    at = places(layout, order(described))
    fill_deep(model, scorer.deep, at, scorer.first_order.bias)
    return run(model, rows)


def dcn(scorer: DCN, rows: Rows) -> Tensor:
    model, at = _crosses(scorer, "vector")
    for place, (weight, bias) in enumerate(zip(scorer.crosses, scorer.biases, strict=True)):
        assert isinstance(weight, nn.Linear)
        fill(model.crossnet.kernels[place], weight.weight[:, at].t())
        fill(model.crossnet.bias[place], bias[at].unsqueeze(1))
    return run(model, rows)


def dcnv2(scorer: DCNv2, rows: Rows) -> Tensor:
    """A matrix of low rank is a product of two; their network knows full ones. Of the stacked
    structure they have the layers alone."""
    model, at = _crosses(scorer, "matrix")
    fill_matrices(model.crossnet, scorer.crosses, at)
    if not scorer.stacked:
        return run(model, rows)
    found = model.input_from_feature_columns(
        matrix(model, rows), model.dnn_feature_columns, model.embedding_dict
    )
    deep = model.dnn(model.crossnet(inputs.combined_dnn_input(*found)))
    return nn.functional.linear(deep, scorer.last.weight, scorer.last.bias).squeeze(1)


def crossed(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """Cross layers with matrices, [B, W] -> [B, W]."""
    network = CrossNet(x.shape[1], len(layers), "matrix")
    fill_matrices(network, layers, torch.arange(x.shape[1]))
    found: Tensor = network(x)
    return found


def fill_matrices(network: Any, layers: nn.ModuleList, at: Tensor) -> None:
    for place, layer in enumerate(layers):
        assert isinstance(layer, CrossLayer)
        up = layer.up.weight
        whole = up if layer.down is None else up @ layer.down.weight
        fill(network.kernels[place], whole[at][:, at])
        fill(network.bias[place], layer.up.bias[at].unsqueeze(1))


def _crosses(scorer: DCN | DCNv2, parameterization: str) -> tuple[Any, Tensor]:
    """Their network without its cross layers' weights, and the places of its inputs."""
    width, count = scorer.fields.user.width, len(scorer.crosses)
    hidden = [layer.out_features for layer in scorer.deep]
    described = columns(width)
    model = models.DCN([], described, count, parameterization, hidden, task="regression")
    fill_tables(model, scorer.fields)
    at = places(row_layout(width), order(described))
    fill_linears(model.dnn.linears, scorer.deep, at)
    if parameterization == "vector" or not scorer.stacked:
        both = torch.cat((at, torch.arange(len(at), len(at) + hidden[-1])))
        fill(model.dnn_linear.weight, scorer.last.weight[:, both])
    fill(model.out.bias, scorer.last.bias)
    return model, at


def autoint(scorer: AutoInt, rows: Rows) -> Tensor:
    width, heads = scorer.fields.user.width, scorer.layers[0].heads
    described = columns(width, numbers=False)
    model = models.AutoInt([], described, len(scorer.layers), heads, True, (), task="regression")
    fill_tables(model, scorer.fields)
    for theirs, ours in zip(model.int_layers, scorer.layers, strict=True):
        fill(theirs.W_Query, ours.query.weight.t())
        fill(theirs.W_key, ours.key.weight.t())
        fill(theirs.W_Value, ours.value.weight.t())
        fill(theirs.W_Res, ours.residual.weight.t())
    at = places(vector_layout(width), order(described))
    fill(model.dnn_linear.weight, scorer.last.weight[:, at])
    fill(model.out.bias, scorer.last.bias)
    return run(model, rows)


def din(scorer: DIN, rows: Rows) -> Tensor:
    """What the user bought is there twice: as a list of the user's, whose mean is a field of the
    row, and as the history, whose members have the table of the products. The members of their
    history stand first, and their number is a feature."""
    width, ours = scorer.fields.user.width, scorer.network
    sizes, attention = (
        [layer.out_features for layer in one.layers] for one in (ours, scorer.unit.network)
    )
    members = inputs.SparseFeat("hist_product", 30, width, embedding_name="product")
    history = inputs.VarLenSparseFeat(members, 5, length_name="length")
    described = [*columns(width), history]

    class Wide(Dice):
        def __init__(self) -> None:
            super().__init__(sizes[0], dim=2)  # all layers have this width

    model = models.DIN(
        described, ["product"], False, sizes, Wide, attention, "dice", task="regression"
    )
    fill_tables(model, scorer.fields)
    layout = [*row_layout(width), ("hist_product", width)]
    _fill_dice(model.dnn, ours, places(layout, order(described)))
    fill(model.dnn_linear.weight, ours.last.weight)
    fill(model.out.bias, ours.last.bias)
    unit = model.attention.local_att
    _fill_dice(unit.dnn, scorer.unit.network)
    fill_linear(unit.dense, scorer.unit.network.last)
    there = rows.of("bought") > 0
    first = torch.argsort((~there).long(), dim=1, stable=True)  # the members before the pads
    bought = rows.of("bought").gather(1, first)
    return run(model, rows, hist_product=bought, length=there.sum(1, keepdim=True))


def _fill_dice(theirs: Any, ours: DiceMLP, at: Tensor | None = None) -> None:
    fill_linears(theirs.linears, ours.layers, at)
    for one, other in zip(theirs.activation_layers, ours.activations, strict=True):
        fill(one.alpha.flatten(), other.alpha)
        fill(one.bn.running_mean, other.norm.running_mean)
        fill(one.bn.running_var, other.norm.running_var)
