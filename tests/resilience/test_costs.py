"""What the largest requests cost: no request takes time or memory without a bound.

Each kind is asked in turns with an ordinary request, so that other work on the machine meets both.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from cascade.config import Serving
from cascade.encoding import MAX_VALUE_BYTES
from cascade.filters_wire import MOST_EXCLUDED, MOST_VALUES
from cascade.schema import Feature, Schema
from cascade.spec import ENSEMBLE, RECOMMEND_FILTERED
from cascade.stages.context import MAX_CONTEXT_BYTES
from perf.harness.table import number
from tests.cascades import Cascade
from tests.filter_cases import column
from tests.resilience.claims import Record
from tests.served import Served, serve

BATCH, TURNS, LENGTH = 32, 12, 50
HUGE = 64 << 20  # bytes of one value
SCHEMA = Schema(
    "costs",
    (
        Feature("age", "user", "dense", "log1p"),
        Feature("history", "user", "bag", "vocabulary", length=LENGTH),
        Feature("seen", "user", "sequence", "vocabulary", length=LENGTH),
        Feature("price", "item", "dense", "log1p"),
        Feature("genre", "item", "categorical", "vocabulary"),
        Feature("tags", "item", "bag", "vocabulary", length=LENGTH),
    ),
)
Tensors = dict[str, Any]


@pytest.fixture(scope="module")
def shop(make_cascade: Callable[..., Cascade]) -> Cascade:
    return make_cascade(schema=SCHEMA, items=5000, serving=Serving(max_batch_size=BATCH))


@pytest.fixture(scope="module")
def served(shop: Cascade, workplace: Path) -> Iterator[Served]:
    with serve(shop.repository, workplace / "costs.log", "--exit-timeout-s=2") as running:
        yield running


def ordinary(shop: Cascade, users: int = 1) -> Tensors:
    return {"dense": shop.dense[:users], "categorical": shop.categorical[:users]}


def longest_values(users: int = 1) -> Tensors:
    """Bags of as many members as the longest value holds."""
    members = b"|".join(b"%d" % number for number in range(MAX_VALUE_BYTES))[:MAX_VALUE_BYTES]
    return {
        "dense": np.full((users, 1), np.finfo(np.float32).max, np.float32),
        "categorical": np.full((users, 2), members, object),
    }


def most_filters(shop: Cascade, users: int = 1) -> Tensors:
    """As many excluded items and allowed values as are taken, and the largest context."""
    ids = np.arange(MOST_EXCLUDED, dtype="<i8").tobytes()
    allow = json.dumps({"genre": [f"genre-{number}" for number in range(MOST_VALUES)]})
    room = (MAX_CONTEXT_BYTES - 100) // 8
    context = json.dumps({"history": [f"{number:05}" for number in range(room // 2)]})
    texts = {"exclude": ids, "allow": allow.encode(), "context": context.encode()}
    return {n: column([text] * users) for n, text in texts.items()} | longest_values(users)


def kinds(shop: Cascade) -> dict[str, tuple[str, Tensors]]:
    one, huge = ordinary(shop), ordinary(shop)
    huge["categorical"] = np.array([[b"x" * HUGE, b""]], object)
    return {
        "longest values": (ENSEMBLE, longest_values()),
        "most filters, longest values": (RECOMMEND_FILTERED, most_filters(shop)),
        f"{BATCH} users": (ENSEMBLE, ordinary(shop, BATCH)),
        f"{BATCH} users, longest values": (ENSEMBLE, longest_values(BATCH)),
        f"{BATCH} users, most filters": (RECOMMEND_FILTERED, most_filters(shop, BATCH)),
        f"a value of {HUGE >> 20} MiB": (ENSEMBLE, huge),
        f"{BATCH + 1} users": (ENSEMBLE, ordinary(shop, BATCH + 1)),
        "100,000 users": (ENSEMBLE, {n: np.repeat(v, 100_000, 0) for n, v in one.items()}),
    }


def test_the_largest_requests_are_bounded(shop: Cascade, served: Served, record: Record) -> None:
    rows, answered_ms = [], [0.0]
    with grpc.InferenceServerClient(served.url) as client:
        for _ in range(TURNS):  # buffers grow to their size
            ask(client, ENSEMBLE, ordinary(shop))
        before_mb = last_mb = served.anonymous_mb()
        for kind, (model, tensors) in kinds(shop).items():
            plain_ms, kind_ms, outcome = [], [], ""
            for _ in range(TURNS):
                plain_ms.append(ask(client, ENSEMBLE, ordinary(shop))[0])
                taken_ms, outcome = ask(client, model, tensors)
                kind_ms.append(taken_ms)
            users = min(BATCH, len(tensors["dense"]))
            per_user_ms = float(np.median(kind_ms)) / users
            if not outcome:
                answered_ms.append(per_user_ms)
            ratio = float(np.median(np.array(kind_ms) / np.array(plain_ms)))
            now_mb = served.anonymous_mb()
            grown_mb, last_mb = now_mb - last_mb, now_mb
            row = [kind, number(float(np.median(kind_ms))), number(ratio), number(per_user_ms)]
            rows.append([*row, number(grown_mb), outcome or "answered"])
    header = ["request", "ms", "over an ordinary one", "ms per user", "MB grown", "outcome"]
    record.table(header, rows)
    record(costly_ms_per_user=max(answered_ms), costly_growth_mb=last_mb - before_mb)
    outcomes = {row[0]: row[-1] for row in rows}
    assert sum(outcome == "answered" for outcome in outcomes.values()) == 5, outcomes
    assert f"at most {MAX_VALUE_BYTES} are read" in outcomes[f"a value of {HUGE >> 20} MiB"]


def ask(client: grpc.InferenceServerClient, model: str, tensors: Tensors) -> tuple[float, str]:
    """-> milliseconds, and the beginning of the error, empty for an answer."""
    inputs = []
    for name, values in tensors.items():
        inputs.append(grpc.InferInput(name, values.shape, np_to_triton_dtype(values.dtype)))
        inputs[-1].set_data_from_numpy(values)
    start = time.perf_counter_ns()
    try:
        client.infer(model, inputs, client_timeout=60)
        error = ""
    except InferenceServerException as refused:
        error = refused.message()[:120]
    return (time.perf_counter_ns() - start) / 1e6, error
