"""The equations of papers in NumPy, row by row in float64, with the weights of ours:
`reference(scorer, rows)` -> logits [B]. Nothing but PyTorch is needed to try these."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cascade.models.embeddings import Embeddings
from cascade.models.scoring.autoint import AutoInt
from cascade.models.scoring.dlrm import DLRM
from cascade.models.scoring.ncf import NeuMF
from cascade.schema import Feature
from tests.unit.independent.case import COUNT, SCHEMA, SIDES, Rows, rows_of

Array = np.ndarray[Any, np.dtype[np.float64]]


def array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def each(formula: Callable[[int], float]) -> Tensor:
    return torch.tensor([formula(row) for row in range(COUNT)])


def linear(layer: nn.Module, x: Array) -> Array:
    assert isinstance(layer, nn.Linear)
    found = array(layer.weight) @ x
    return found if layer.bias is None else found + array(layer.bias)


def network(layers: Iterable[nn.Module], x: Array, last_relu: bool) -> Array:
    *hidden, last = layers
    for layer in hidden:
        x = np.maximum(0, linear(layer, x))
    found = linear(last, x)
    return np.maximum(0, found) if last_relu else found


def vector(embeddings: Embeddings, feature: Feature, rows: Rows, row: int) -> Array:
    """The vector of a categorical, or the mean of those of a list's members."""
    table, members = array(rows_of(embeddings, feature.name)), rows.members(feature.name)[row]
    found: Array = sum((table[m] for m in members), np.zeros(table.shape[1]))
    return found / max(1, len(members))


def number(rows: Rows, feature: Feature, row: int) -> float:
    return float(rows.of(feature.name)[row, 0])


def dlrm(scorer: DLRM, rows: Rows) -> Tensor:
    """Naumov et al. 2019, figure 1; each side's numbers have a bottom MLP. With cross layers, as in
    MLPerf's DLRM-v2, equations 1 and 2 of DCN-v2 over all vectors side by side."""

    def logit(row: int) -> float:
        bottoms, vectors = [], []
        for side in SIDES:
            layers = scorer.user_bottom if side == "user" else scorer.item_bottom
            assert layers is not None
            numbers = np.array([number(rows, f, row) for f in SCHEMA.dense(side)])
            bottoms.append(network(layers, numbers, last_relu=True))
            tables = scorer.user_ids if side == "user" else scorer.item_ids
            vectors.append(bottoms[-1])
            vectors += [vector(tables, f, rows, row) for f in SCHEMA.ids(side)]
        if len(scorer.crosses):
            x = x0 = np.concatenate(vectors)
            for layer in scorer.crosses:
                inner = x if layer.down is None else linear(layer.down, x)
                x = x0 * linear(layer.up, inner) + x
            return float(network(scorer.top, x, last_relu=False)[0])
        products = [vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i)]
        return float(network(scorer.top, np.array([*np.concatenate(bottoms), *products]), False)[0])

    return each(logit)


def ncf(scorer: NeuMF, rows: Rows) -> Tensor:
    """He et al. 2017, equations 8, 10 and 12: h^T [p^G * q^G, MLP(p^M, q^M)]."""

    def logit(row: int) -> float:
        user, item = scorer.ids
        factors = vector(scorer.user_factors, user, rows, row)
        factors = factors * vector(scorer.item_factors, item, rows, row)
        both = vector(scorer.user_vectors, user, rows, row)
        both = np.concatenate((both, vector(scorer.item_vectors, item, rows, row)))
        deep = network(scorer.layers, both, last_relu=True)
        return float(linear(scorer.fused, np.concatenate((factors, deep)))[0])

    return each(logit)


def autoint(scorer: AutoInt, rows: Rows) -> Tensor:
    """Song et al. 2019, equations 4 to 9; the heads of a layer may be wider than its input."""

    def logit(row: int) -> float:
        fields = []
        for side in SIDES:
            tables = scorer.fields.user if side == "user" else scorer.fields.item
            fields += [vector(tables, f, rows, row) for f in SCHEMA.ids(side)]
            vectors = array(scorer.fields.scales[side])
            dense = SCHEMA.dense(side)
            fields += [number(rows, f, row) * v for f, v in zip(dense, vectors, strict=True)]
        for layer in scorer.layers:
            heads = [_head(layer, head, fields) for head in range(layer.heads)]
            together = [np.concatenate(parts) for parts in zip(*heads, strict=True)]
            fields = [
                np.maximum(0, found + linear(layer.residual, field))
                for found, field in zip(together, fields, strict=True)
            ]
        return float(linear(scorer.last, np.concatenate(fields))[0])

    return each(logit)


def _head(layer: Any, head: int, fields: list[Array]) -> list[Array]:
    """One head's view of each field."""
    size = layer.query.out_features // layer.heads
    own = slice(head * size, (head + 1) * size)
    query, key, value = (
        [linear(one, field)[own] for field in fields]
        for one in (layer.query, layer.key, layer.value)
    )
    found = []
    for m in range(len(fields)):
        alike = [np.exp(query[m] @ key[k]) for k in range(len(fields))]
        found.append(sum(a / sum(alike) * v for a, v in zip(alike, value, strict=True)))
    return found
