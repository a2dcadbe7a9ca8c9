"""Models with weights as training would leave them: the vectors of a world, and random layers.

The embeddings of all three models hold the world's vectors, so that retrieval finds what ranking
likes; noise makes every value its own. The layers are drawn (He et al., 2015, arXiv:1502.01852).
The two towers share theirs: where the sums of two rows' vectors agree, so do the rows' vectors in
the space of retrieval. A DLRM gets a path from the pairs of user and item vectors to the logit, as
every trained one has, over a random rest that differs from model to model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cascade.models import build, preset
from cascade.models.dlrm import DLRM
from cascade.models.embeddings import Embeddings
from cascade.models.scorer import Scorer, run_mlp
from cascade.models.two_tower import Tower, TwoTower
from cascade.schema import Schema, Side
from perf.fixture_world import LATENT, Floats, Values

TABLE_CHUNK = 1 << 20  # rows of an embedding table that are drawn at once
TABLE_NOISE = 0.1  # of a value's vector, relative to the spread of the values that were seen
TOWER_BIAS = 0.3
DENSE_SHARE = 0.05  # weight of a number, relative to that of a vector's element
OWN_SHARE = 0.2  # how far a feature's first layer is its own
VECTOR_RMS = 0.5  # of the elements of a DLRM's vectors
AFFINITY = 2.0  # of the path from pairs to logit, relative to the largest gain of random weights
LOGIT_STD, CLICK_RATE = 1.25, 0.2
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Rows:
    """Pairs of a user and an item, encoded: dense [B, F_dense] and ids [B, C] of either."""

    user_dense: Any
    user_ids: Any
    item_dense: Any
    item_ids: Any

    def tensors(self, start: int) -> list[Tensor]:
        """The next rows from `start`, in the order that a `Scorer` takes."""
        part = slice(start, start + ROWS_AT_ONCE)
        columns = (self.user_dense, self.user_ids, self.item_dense, self.item_ids)
        return [
            torch.from_numpy(np.ascontiguousarray(x[part], np.int64 if i % 2 else np.float32))
            for i, x in enumerate(columns)
        ]


class Drawer:
    """Draws the weights of models of one schema over one world."""

    def __init__(self, schema: Schema, values: dict[Side, Values], seed: int) -> None:
        self.schema, self.values, self.seed = schema, values, seed

    def two_tower(self, size: str, rows: Rows) -> TwoTower:
        """Both towers, centred on the items of some rows: without that, all vectors would lie in
        one narrow cone."""
        model = self._empty("two_tower", size)
        assert isinstance(model, TwoTower)
        random = np.random.default_rng((self.seed, 1))
        width = model.item_tower.embeddings.width
        projection = _projection(random, width)
        self._fill(model.user_tower.embeddings, "user", projection, random)
        self._fill(model.item_tower.embeddings, "item", projection, random)
        widths = [_linear(layer).out_features for layer in model.item_tower.layers]
        shared = random.standard_normal((widths[0], width), dtype=np.float32) / width**0.5
        _draw_layers(model.item_tower.layers, random, TOWER_BIAS)
        for tower in (model.item_tower, model.user_tower):
            _draw_first(tower, shared, random)
        _copy_layers(model.item_tower.layers, model.user_tower.layers)
        _centre(model, rows)
        return model

    def dlrm(self, size: str, rows: Rows, number: int) -> DLRM:
        """A ranker whose clicks can be predicted: on these rows its logits have a standard
        deviation of `LOGIT_STD`, and its probabilities a mean of `CLICK_RATE`."""
        model = self._empty("dlrm", size)
        assert isinstance(model, DLRM)
        random = np.random.default_rng((self.seed, 3, number))
        projection = _projection(random, model.width)
        self._fill(model.user_ids, "user", projection, random, VECTOR_RMS)
        self._fill(model.item_ids, "item", projection, random, VECTOR_RMS)
        for layers in (model.user_bottom, model.item_bottom, model.top):
            if layers is not None:
                _draw_layers(layers, random, bias=0.0)
        if model.user_bottom is not None:
            _level(model.user_bottom, rows.tensors(0)[0])
        _add_affinity(model, random)
        _calibrate(model, rows)
        return model

    def _empty(self, model: str, size: str) -> Scorer:
        torch.manual_seed(self.seed)
        return build(model, preset(model, size), self.schema)

    def _fill(
        self,
        embeddings: Embeddings,
        side: Side,
        projection: Floats,
        random: np.random.Generator,
        rms: float | None = None,
    ) -> None:
        """The table of a side: noise for all, in place, for it may have gigabytes; the vectors of
        the values that were seen on top of it, scaled to a root mean square if one is given."""
        table = embeddings.table.weight.detach().numpy()
        found = self.values[side]
        vectors = found.vectors @ projection
        if rms:
            vectors *= rms / max(float(np.sqrt((vectors**2).mean())), 1e-12)
        spread = float(vectors.std())
        for start in range(0, len(table), TABLE_CHUNK):
            part = table[start : start + TABLE_CHUNK]
            random.standard_normal(dtype=np.float32, out=part)
            part *= spread
        table[found.rows] *= TABLE_NOISE
        table[found.rows] += vectors


def _projection(random: np.random.Generator, width: int) -> Floats:
    """[LATENT, width]: rows at right angles where there is room, else columns."""
    square = np.linalg.qr(random.standard_normal((max(width, LATENT),) * 2))[0]
    return np.asarray(square[:LATENT, :width], np.float32)


def _linear(layer: nn.Module) -> nn.Linear:
    assert isinstance(layer, nn.Linear)
    return layer


@torch.no_grad()
def _draw_layers(layers: nn.ModuleList, random: np.random.Generator, bias: float) -> None:
    for layer in map(_linear, layers):
        scale = (2 / layer.in_features) ** 0.5
        shape = tuple(layer.weight.shape)
        layer.weight.copy_(_normal(random, shape) * scale)
        layer.bias.copy_(_normal(random, shape[:1]) * bias)


def _normal(random: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(random.standard_normal(shape, dtype=np.float32))


@torch.no_grad()
def _draw_first(tower: Tower, shared: Floats, random: np.random.Generator) -> None:
    """The first layer: the same weights for every feature's vector, so that it sees their sum; a
    little of its own for each."""
    layer = _linear(tower.layers[0])
    scale = float(shared.std())
    features = len(tower.embeddings.features)
    own = _normal(random, tuple(layer.weight.shape)) * scale
    layer.weight.copy_(own * OWN_SHARE)
    layer.weight[:, : tower.dense_count] = own[:, : tower.dense_count] * DENSE_SHARE
    layer.weight[:, tower.dense_count :] += torch.from_numpy(np.tile(shared, features))


@torch.no_grad()
def _copy_layers(source: nn.ModuleList, target: nn.ModuleList) -> None:
    """All but the first layer's weights, which have an input for every feature of a side."""
    for number, (a, b) in enumerate(zip(map(_linear, source), map(_linear, target), strict=True)):
        b.bias.copy_(a.bias)
        if number:
            b.weight.copy_(a.weight)


@torch.no_grad()
def _centre(model: TwoTower, rows: Rows) -> None:
    """Move the last bias of either tower such that its vectors have a mean of zero before they
    are made unit vectors."""
    user_dense, user_ids, item_dense, item_ids = rows.tensors(0)
    for tower, dense, ids in (
        (model.user_tower, user_dense, user_ids),
        (model.item_tower, item_dense, item_ids),
    ):
        x = tower.embeddings(ids).flatten(1)
        if tower.dense_count:
            x = torch.cat((dense, x), dim=1)
        last = _linear(tower.layers[-1])
        last.bias.sub_(run_mlp(tower.layers, x).mean(0))


@torch.no_grad()
def _level(bottom: nn.ModuleList, dense: Tensor) -> None:
    """Make what the bottom MLP says of these numbers half as loud as the embeddings are."""
    out = run_mlp(bottom, dense, last_relu=True)
    factor = VECTOR_RMS / 2 / out.pow(2).mean().sqrt().clamp(min=1e-12)
    _linear(bottom[-1]).weight.mul_(factor)
    _linear(bottom[-1]).bias.mul_(factor)


@torch.no_grad()
def _add_affinity(model: DLRM, random: np.random.Generator) -> None:
    """A path through all the top layers that grows with the dots of user and item vectors.

    One positive direction for each layer's outputs; the weights get the product of the directions
    on their two sides, as large as the random weights are along any one direction."""
    pairs = torch.zeros(_linear(model.top[0]).in_features)
    columns = model.split.cross_columns.reshape(model.n_item, model.n_user)
    bottoms = int(model.item_bottom is not None), int(model.user_bottom is not None)
    pairs[columns[bottoms[0] :, bottoms[1] :].flatten()] = 1.0
    before = pairs / pairs.norm()
    for layer in map(_linear, model.top):
        after = _normal(random, (layer.out_features,)).abs() + 0.1
        after /= after.norm()
        strength = AFFINITY * float(torch.linalg.matrix_norm(layer.weight, 2))
        layer.weight += strength * torch.outer(after, before)
        before = after


@torch.no_grad()
def logits(model: Scorer, rows: Rows) -> Floats:
    """[B] of all rows."""
    starts = range(0, len(rows.user_ids), ROWS_AT_ONCE)
    return np.concatenate([model(*rows.tensors(start)).numpy() for start in starts])


@torch.no_grad()
def _calibrate(model: DLRM, rows: Rows) -> None:
    """Scale the last layer, then find its bias by bisection."""
    found = logits(model, rows).astype(np.float64)
    scale = LOGIT_STD / max(float(found.std()), 1e-12)
    low, high = -50.0, 50.0
    centred = (found - found.mean()) * scale
    while high - low > 1e-6:
        middle = (low + high) / 2
        rate = float((1 / (1 + np.exp(-centred - middle))).mean())
        low, high = (middle, high) if rate < CLICK_RATE else (low, middle)
    last = _linear(model.top[-1])
    last.bias.copy_((last.bias - found.mean()) * scale + low)
    last.weight.mul_(scale)
