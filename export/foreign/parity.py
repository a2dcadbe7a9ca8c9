"""Compares a wrapped graph with the third-party file itself, on random users with random pads."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cascade.artifact import Array
from cascade.config import Serving
from cascade.runtime.load import load_graph
from cascade.schema import Schema
from cascade.spec import Stage
from export.artifacts.parity import Parity, judge
from export.context import Catalogue
from export.foreign.inputs import Rows
from export.foreign.onnx_model import Foreign

BATCHES = (1, 3, 64)


def compare(foreign: Foreign, stage: Stage, items: Catalogue, folder: Path) -> list[Parity]:
    """Reload a version folder, and run it beside the file. A stage that returns scores must give
    the file's probabilities; the other is judged by its choice alone."""
    _, graph = load_graph(folder, foreign.schema, Serving(threads=1))
    random = np.random.default_rng(1)
    found = []
    for batch in BATCHES:
        users = draw_users(foreign.schema, batch, random)
        rows = _draw_candidates(stage, len(items), batch, random)
        outputs = graph(*users, rows)
        names = items.item_ids if len(outputs) > 1 else np.arange(len(items))
        differences, shared, wanted = [0.0], 0, 0
        for b, answer in enumerate(outputs[0]):
            real = rows[b][rows[b] >= 0]
            dense, ids = (np.repeat(values[b : b + 1], len(real), axis=0) for values in users)
            expected = foreign.probabilities(flat_rows(dense, ids, items, real))
            values = dict(zip(names[real].tolist(), expected.tolist(), strict=True))
            difference, common = judge(values, answer, relative=True)
            differences.append(difference)
            if len(outputs) > 1:
                best = np.sort(expected)[::-1][: len(answer)]
                padded = np.pad(best, (0, len(answer) - len(best)))
                differences.append(float(np.abs(padded - outputs[1][b]).max(initial=0)))
            shared, wanted = shared + common, wanted + min(len(answer), len(values))
        overlap = shared / max(1, wanted)
        found.append(Parity(stage.name, "onnx", batch, float(np.max(differences)), overlap))
    return found


def draw_users(schema: Schema, count: int, random: np.random.Generator) -> tuple[Array, Array]:
    """Random encoded users: dense [B, F_dense], ids [B, C]."""
    dense = random.exponential(size=(count, schema.dense_width("user"))).astype(np.float32)
    features = schema.ids("user")
    cardinalities = np.repeat([f.cardinality for f in features], [f.length for f in features])
    ids = np.zeros((count, schema.ids_width("user")), np.int64)
    if features:
        ids[:] = random.integers(cardinalities, size=ids.shape)
    return dense, ids


def flat_rows(dense: Array, ids: Array, items: Catalogue, rows: Array) -> Rows:
    """Users [n, F] beside catalogue rows [n]."""
    return {
        "user_dense": dense,
        "user_ids": ids,
        "item_dense": items.dense[rows],
        "item_ids": items.ids[rows],
    }


def _draw_candidates(stage: Stage, items: int, batch: int, random: np.random.Generator) -> Array:
    """Rows [B, K] with pads at random places; the last two users have few and none."""
    width, results = stage.inputs[-1].dims[0], stage.outputs[0].dims[0]
    rows = np.full((batch, width), -1, np.int64)
    for b in range(batch):
        most = {batch - 1: 0, batch - 2: results // 2}.get(b, int(0.95 * width)) if b else width
        real = min(items, most)
        places = random.choice(width, real, replace=False)
        rows[b, places] = random.choice(items, real, replace=False)
    return rows
