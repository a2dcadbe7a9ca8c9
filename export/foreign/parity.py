"""Does the wrapped graph rank as the third-party file does? On random users, pads and all."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cascade.artifact import Array
from cascade.config import Serving
from cascade.runtime.load import load_graph
from cascade.schema import Schema
from cascade.spec import Stage
from export.artifacts.parity import Parity
from export.artifacts.stage_files import Catalogue
from export.foreign.inputs import Rows
from export.foreign.onnx_model import Foreign

BATCHES = (1, 3, 64)
TIE = 1e-5  # relative: the score of one row differs by so much between two batch sizes


def compare(
    foreign: Foreign, stage: Stage, schema: Schema, items: Catalogue, folder: Path
) -> list[Parity]:
    """Reload a version folder, and run it beside the file itself."""
    _, graph = load_graph(folder, schema, Serving(threads=1))
    random = np.random.default_rng(1)
    found = []
    for batch in BATCHES:
        users = draw_users(schema, batch, random)
        rows = _draw_candidates(stage, len(items), batch, random)
        differences, shared, wanted = [0.0], 0, 0
        outputs = graph(*users, rows)
        names = items.item_ids if len(outputs) > 1 else np.arange(len(items))
        for b, ids in enumerate(outputs[0]):
            expected = _expected(foreign, users, b, items, rows[b], names)
            difference, common = _judge(expected, ids, outputs[1][b] if len(outputs) > 1 else None)
            differences, shared = [*differences, difference], shared + common
            wanted += min(len(ids), len(expected))
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
    """Rows [B, K] with pads at random places; the last users have few candidates, and none."""
    width, results = stage.inputs[-1].dims[0], stage.outputs[0].dims[0]
    rows = np.full((batch, width), -1, np.int64)
    for b in range(batch):
        most = {batch - 1: 0, batch - 2: results // 2}.get(b, int(0.95 * width)) if b else width
        real = min(items, most)
        places = random.choice(width, real, replace=False)
        rows[b, places] = random.choice(items, real, replace=False)
    return rows


def _expected(
    foreign: Foreign,
    users: tuple[Array, Array],
    b: int,
    items: Catalogue,
    rows: Array,
    names: Array,
) -> dict[int, float]:
    """Probability of one user's candidates, by what the stage calls them: from the file as it
    came."""
    real = rows[rows >= 0]
    dense, ids = (np.repeat(values[b : b + 1], len(real), axis=0) for values in users)
    values = foreign.probabilities(flat_rows(dense, ids, items, real))
    return dict(zip(names[real].tolist(), values.tolist(), strict=True))


def _judge(expected: dict[int, float], ids: Array, scores: Array | None) -> tuple[float, int]:
    """-> largest difference of a score, and how many of the ids belong to the top K; a tie may
    fall either way. A stage that returns no scores is judged by those of the file."""
    best = np.sort(list(expected.values()))[::-1][: len(ids)]
    got = ids[: len(best)].tolist()
    if (
        len(set(got)) != len(best)
        or not expected.keys() >= set(got)
        or (ids[len(best) :] >= 0).any()
    ):
        return float("inf"), 0
    own = np.array([expected[i] for i in got])
    wanted = np.zeros(len(ids))
    wanted[: len(best)] = best
    if scores is None:
        scores = np.pad(own, (0, len(ids) - len(own)))
    difference = np.abs(wanted - scores).max(
        initial=np.abs(own - scores[: len(own)]).max(initial=0)
    )
    least = best[-1] if len(best) else 0.0
    return float(difference), int((own >= least - TIE * abs(least)).sum())
