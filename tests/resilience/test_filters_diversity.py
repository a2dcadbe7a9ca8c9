"""What diversity changes in the lists, and what it costs in the rank stage."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cascade.config import Serving
from cascade.spec import RETRIEVE
from cascade.stages.pipeline import Pipeline
from cascade.training import checkpoint
from export.context import read_catalogue
from perf.harness.artifacts import Artifacts
from perf.harness.table import number
from tests.filter_cases import intra_list_similarity
from tests.resilience.claims import Record
from tests.resilience.conftest import UNTUNED

POOL, DIVERSITY = 50, 0.3
USERS, ROUNDS = 48, 6


@pytest.mark.thorough
def test_diversity(fused: Artifacts, work: Path, record: Record) -> None:
    """Figures without a claim: the rank stage's median time over that without diversity, how alike
    the items of a list are over that without, and the share of the mean score that is lost."""
    _export(fused, work / "diverse")
    ways = {
        "by score": Pipeline.load(fused.repository, serving=Serving(threads=1)),
        f"diversity {DIVERSITY} of {POOL}": Pipeline.load(
            work / "diverse", serving=Serving(threads=1)
        ),
    }
    sent, pipeline = fused.users(), ways["by score"]
    encoded = pipeline.retrieve(sent.dense[:USERS], sent.categorical[:USERS])
    inputs = (*encoded[:2], pipeline.prerank(*encoded))
    times_us: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(USERS * ROUNDS):
        user = slice(turn % USERS, turn % USERS + 1)
        for way, each in ways.items():
            start = time.perf_counter_ns()
            each.rank(*(x[user] for x in inputs))
            times_us[way].append((time.perf_counter_ns() - start) / 1e3)
    found = {way: (np.median(times_us[way]), *_lists(fused, ways[way], inputs)) for way in ways}
    header = ["rank, one user", "p50 µs", "similarity in a list", "mean score"]
    rows = [[way, *(number(float(value)) for value in row)] for way, row in found.items()]
    record.table(header, rows)
    (plain_us, alike, score), (diverse_us, less_alike, lower) = found.values()
    record(
        diversity_rank_ratio=float(diverse_us / plain_us),
        diversity_similarity=float(less_alike / alike),
        diversity_lost_score=float(1 - lower / score),
    )


def _export(made: Artifacts, repository: Path) -> None:
    """The same checkpoints once more, with diversity."""
    command = [
        *(sys.executable, "-m", "export", "--topology", "fused", "--max-batch-size", "8"),
        *("--checkpoints", str(made.checkpoints), "--repository", str(repository)),
        *("--retrieve-from", str(made.repository)),
        *("--pool", str(POOL), "--diversity", str(DIVERSITY), *UNTUNED),
    ]
    subprocess.run(command, check=True)


def _lists(made: Artifacts, pipeline: Pipeline, inputs: Any) -> tuple[float, float]:
    """Mean similarity within the lists, and mean score."""
    ids, scores = pipeline.rank(*inputs)
    items = read_catalogue(made.checkpoints)
    order = np.argsort(items.item_ids)
    some = items.take(order[np.searchsorted(items.item_ids, ids.ravel(), sorter=order)])
    retriever = checkpoint.load(made.checkpoints / RETRIEVE, pipeline.schema)
    with torch.inference_mode():
        found = retriever.item(torch.from_numpy(some.dense), torch.from_numpy(some.ids)).numpy()
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    lists = found.reshape(*ids.shape, -1)
    return float(np.mean([intra_list_similarity(mine) for mine in lists])), float(scores.mean())
