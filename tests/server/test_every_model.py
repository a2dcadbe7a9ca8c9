"""Every registered model is served: the server answers as the stages in this process do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascade.client import Recommender
from cascade.config import Product, Serving
from cascade.models import MODELS
from cascade.server.launcher import Server
from cascade.spec import Sizes
from cascade.store import UserStore
from export.users import layout_of
from perf.demo import compare
from tests.cascades import SHOP

# A retriever, a preranker and a ranker each.
CASCADES = (
    ("mf", "logistic", "dlrm"),
    ("two_tower", "mlp", "ncf"),
    ("youtube", "wide_deep", "deepfm"),
    ("sasrec", "dcn", "dcnv2"),
    ("gru4rec", "autoint", "din"),
    ("sasrec", "shared_bottom", "mmoe"),
    ("youtube", "blend", "transformer"),
)
SMALL = {"logistic": "default", "blend": "default"}  # of the others: tiny
SIZES = Sizes(candidates=60, survivors=30, results=10)


def test_no_model_is_left_out() -> None:
    assert {model for models in CASCADES for model in models} == {*MODELS}


def made(make_cascade: Callable[..., Any], models: tuple[str, ...], **options: Any) -> Any:
    stages = zip(("retrieve", "prerank", "rank"), models, strict=True)
    named = {stage: (model, SMALL.get(model, "tiny")) for stage, model in stages}
    usual = {"items": 200, "users": 100, "sizes": SIZES, "index": "flat", "also": ()}
    serving = Serving(max_batch_size=8, topology="fused")
    return make_cascade(schema=SHOP, models=named, serving=serving, **usual, **options)


@pytest.mark.parametrize("models", CASCADES, ids="-".join)
def test_the_server_answers_as_the_stages_do(
    make_cascade: Callable[..., Any], models: tuple[str, ...]
) -> None:
    cascade = made(make_cascade, models)
    with Server(cascade.repository) as server:
        found = compare(server.url, cascade.repository, cascade.checkpoints / "users.jsonl")
    assert (found["server_users_compared"], found["server_equals_pipeline"]) == (100, True)


def test_an_event_in_the_store_changes_what_a_sequential_model_answers(
    make_cascade: Callable[..., Any], tmp_path: Path
) -> None:
    """By id: the newest item tells, and so does the order of the others."""
    store = f"lmdb:{tmp_path / 'users'}"
    cascade = made(make_cascade, ("sasrec", "mlp", "transformer"), product=Product(store=store))
    layout = layout_of(cascade.repository)
    histories = {
        "anna": ["product-1", "product-2", "product-3"],
        "ben": ["product-3", "product-2", "product-1"],
        "cleo": ["product-1", "product-2", "product-3"],
    }
    users = [{"age": 31.0, "city": "city-4", "bought": bought} for bought in histories.values()]
    with (
        UserStore.create(store, layout) as stored,
        Server(cascade.repository) as server,
        Recommender(server.url, deadline_s=30) as client,
    ):
        stored.put([*histories], *layout.arrays(users))
        before = client.recommend_users([*histories])
        assert before[0].item_ids.tolist() == before[2].item_ids.tolist()
        assert before[0].scores.tolist() != before[1].scores.tolist()  # the same items, turned
        stored.append("anna", "bought", ["product-9"])
        after = client.recommend_users([*histories])
        now = {**users[0], "bought": [*histories["anna"], "product-9"]}
        expected = client.recommend(now)
    assert after[0].item_ids.tolist() == expected.item_ids.tolist()
    assert after[0].scores.tolist() == pytest.approx(expected.scores.tolist(), abs=1e-5)
    assert after[0].scores.tolist() != before[0].scores.tolist()
    for user in (1, 2):
        assert after[user].item_ids.tolist() == before[user].item_ids.tolist()
