"""Retrievers of Torch-RecHub with the weights of ours: `reference(scorer, rows)` -> scores [B].

Their MLP normalises behind each linear layer: with the mean and the variance that it begins with,
and without an epsilon, that changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
from torch_rechub.models import matching

from cascade.models.retrieval.sasrec import Block, SASRec
from cascade.models.retrieval.two_tower import Tower, TwoTower
from cascade.models.retrieval.youtube import YouTube
from cascade.schema import Feature, Side
from tests.unit.independent.case import (
    BY_NAME,
    SCHEMA,
    Rows,
    fill,
    fill_linear,
    fill_linears,
    places,
    rows_of,
)


def described(
    features: Iterable[Feature], width: int, shared: dict[str, str] | None = None
) -> list[Any]:
    """Their description of the features; `shared`: of a list, whose table it has."""
    found = []
    for f in features:
        if f.kind == "dense":
            found.append(DenseFeature(f.name))
        elif f.multivalued:
            owner = (shared or {}).get(f.name)
            found.append(SequenceFeature(f.name, f.cardinality, width, "mean", owner, 0))
        else:
            found.append(SparseFeature(f.name, f.cardinality, width))
    return found


def order(features: Iterable[Any]) -> list[str]:
    """As they stand in the input of an MLP: the numbers are last."""
    return [f.name for f in sorted(features, key=lambda f: isinstance(f, DenseFeature))]


def values(rows: Rows, **others: Tensor) -> dict[str, Tensor]:
    found = {name: rows.of(name) for name in BY_NAME}
    several = {name for name, feature in BY_NAME.items() if feature.multivalued}
    return {n: v if n in several else v.squeeze(1) for n, v in found.items()} | others


def fill_mlp(theirs: nn.Sequential, ours: Iterable[nn.Module], at: Tensor) -> None:
    fill_linears((one for one in theirs if isinstance(one, nn.Linear)), ours, at)
    for one in theirs:
        if isinstance(one, nn.BatchNorm1d):
            one.eps = 0.0


def two_tower(scorer: TwoTower, rows: Rows) -> Tensor:
    """DSSM, whose towers have ReLU behind the last layer, too, which is taken out."""
    ours: dict[Side, Tower] = {"user": scorer.user_tower, "item": scorer.item_tower}
    width, dims = ours["user"].embeddings.width, [one.out_features for one in ours["user"].layers]
    features = {side: described(SCHEMA.side(side), width) for side in ours}
    model = matching.DSSM(features["user"], features["item"], {"dims": dims}, {"dims": dims})
    for side, tower in ours.items():
        layout = [(f.name, 1) for f in SCHEMA.dense(side)]
        layout += [(f.name, width) for f in SCHEMA.ids(side)]
        theirs = model.user_mlp if side == "user" else model.item_mlp
        fill_mlp(theirs.mlp, tower.layers, places(layout, order(features[side])))
        theirs.mlp[-2] = nn.Identity()
        for feature in SCHEMA.ids(side):
            rows_there = model.embedding.embed_dict[feature.name].weight
            fill(rows_there, rows_of(tower.embeddings, feature.name))
    cosine: Tensor = torch.special.logit(model.eval()(values(rows)))  # it gives the sigmoid
    return cosine


def youtube(scorer: YouTube, rows: Rows) -> Tensor:
    """The user's vector by their embeddings and MLP; they then compare angles, where the paper has
    a softmax of dot products."""
    width, dims = scorer.features.width, [layer.out_features for layer in scorer.layers]
    others = [*scorer.others, *SCHEMA.dense("user")]
    features = described([scorer.met.sequence, *others], width, {"bought": "product"})
    model = matching.YoutubeDNN(
        features, described([BY_NAME["product"]], width), [], {"dims": dims}
    )
    tables = model.embedding.embed_dict
    fill(tables["product"].weight, rows_of(scorer.items, "product"))
    for feature in scorer.others:
        fill(tables[feature.name].weight, rows_of(scorer.features, feature.name))
    layout = [("bought", width), *((f.name, width) for f in scorer.others)]
    layout += [(f.name, 1) for f in SCHEMA.dense("user")]
    fill_mlp(model.user_mlp.mlp, scorer.layers, places(layout, order(features)))
    model.eval()
    user = model.user_mlp(model.embedding(values(rows), model.user_features, squeeze_dim=True))
    product = rows.of("product").squeeze(1)
    bias = rows_of(scorer.bias, "product")[product].squeeze(1)
    return (user * tables["product"](product)).sum(1) + bias


def sasrec(scorer: SASRec, rows: Rows) -> Tensor:
    """Their sequences begin at the first place, ours end at the last one: users with as many
    members are a batch, in front of pads that no member sees. Nothing is known of a user without
    members but the bias of the last normalisation. Features and bias they do not have."""
    ids, places_of = rows.of("bought"), scorer.places
    counts = (ids > 0).sum(1)
    users = scorer.last.bias.repeat(len(ids), 1)
    for count in range(1, ids.shape[1] + 1):
        among = counts == count
        last = ids[among][:, -count:]
        padded = nn.functional.pad(last, (0, 2))  # theirs fails for a single place
        model = _sasrec(scorer, nn.functional.pad(places_of[-count:], (0, 0, 0, 2)))
        users[among] = model({"seq": padded})
    product = rows.of("product").squeeze(1)
    items = rows_of(scorer.items, "product")[product].clone()
    if not scorer.features:
        return (users * items).sum(1)
    for feature in (f for f in SCHEMA.ids("item") if f.name != "product"):
        for place, members in enumerate(rows.members(feature.name)):
            vectors = rows_of(scorer.items, feature.name)[members]
            items[place] += vectors.sum(0) / max(1, len(members))
    items += rows.of("price") * scorer.numbers.weight.squeeze(1)
    numbers = torch.cat([rows.of(feature.name) for feature in SCHEMA.dense("user")], dim=1)
    found = nn.functional.linear(
        torch.cat((users, numbers), dim=1), scorer.head.weight, scorer.head.bias
    )
    bias = rows_of(scorer.bias, "product")[product]
    return (found * torch.cat((items, bias), dim=1)).sum(1)


def _sasrec(scorer: SASRec, positions: Tensor) -> Any:
    items = rows_of(scorer.items, "product")
    feature = SequenceFeature("seq", *items.shape, pooling="concat")
    heads = scorer.blocks[0].attention.heads
    model = matching.SASRec([feature], len(positions), 0.0, len(scorer.blocks), heads)
    model.mode = "user"
    fill(model.item_emb.embed_dict["seq"].weight, items)
    fill(model.position_emb.weight, positions)
    _fill_norm(model.last_layernorm, scorer.last)
    for place, block in enumerate(scorer.blocks):
        assert isinstance(block, Block)
        _fill_norm(model.attention_layernorms[place], block.before_attention)
        _fill_norm(model.forward_layernorms[place], block.before_network)
        fill_attention(model.attention_layers[place], block.attention)
        network = block.network[0], block.network[3]
        layers = model.forward_layers[place]
        for theirs, ours in zip((layers.conv1, layers.conv2), network, strict=True):
            fill(theirs.weight, ours.weight.unsqueeze(2))
            fill(theirs.bias, ours.bias)
    return model.eval()


def _fill_norm(theirs: nn.LayerNorm, ours: nn.LayerNorm) -> None:
    theirs.load_state_dict(ours.state_dict())
    theirs.eps = ours.eps  # 1e-5 in place of their 1e-8, which half precision takes for 0


def fill_attention(theirs: nn.MultiheadAttention, ours: Any) -> None:
    """The layers of ours, which has three instead of one for queries, keys and values."""
    three = ours.query, ours.key, ours.value
    fill(theirs.in_proj_weight, torch.cat([layer.weight for layer in three]))
    fill(theirs.in_proj_bias, torch.cat([layer.bias for layer in three]))
    fill_linear(theirs.out_proj, ours.out)
