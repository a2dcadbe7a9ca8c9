"""Catalogues smaller than what a stage hands on: short lists, no item twice, pads at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tritonclient import grpc

from cascade.client import Recommender
from cascade.server.launcher import Server
from cascade.spec import ENSEMBLE
from cascade.training import checkpoint
from export.context import read_catalogue
from tests.cascades import PLAIN


def exact(cascade: Any, model: str, keep: int) -> list[list[tuple[int, float]]]:
    """Each user's best items and their probabilities when the model sees the whole catalogue."""
    items = read_catalogue(cascade.checkpoints)
    scorer = checkpoint.load(cascade.checkpoints / model, cascade.schema)
    users = cascade.pipeline().retrieve(cascade.dense, cascade.categorical)[:2]
    with torch.inference_mode():
        states = scorer.item(torch.from_numpy(items.dense), torch.from_numpy(items.ids))
        user = scorer.user(*map(torch.from_numpy, users))
        scores = torch.sigmoid(scorer.cross(user, states.expand(len(user), -1, -1))).numpy()
    best = np.argsort(-scores, axis=1)[:, :keep]
    return [
        [(int(items.item_ids[row]), float(scores[user, row])) for row in rows]
        for user, rows in enumerate(best)
    ]


def as_arrays(lists: list[list[tuple[int, float]]], length: int) -> tuple[Any, Any]:
    """The same with pads: item_ids and scores, [B, length]."""
    ids = np.full((len(lists), length), -1, np.int64)
    scores = np.zeros((len(lists), length), np.float32)
    for user, pairs in enumerate(lists):
        ids[user, : len(pairs)], scores[user, : len(pairs)] = zip(*pairs, strict=True)
    return ids, scores


def assert_padded(rows: Any, items: int) -> None:
    """[B, K]: `items` different values, none of them below 0, then -1."""
    real = min(items, rows.shape[1])
    assert (rows[:, :real] >= 0).all()
    assert (rows[:, real:] == -1).all()
    assert all(len(set(row[:real])) == real for row in rows.tolist())


@pytest.fixture(scope="module", params=[7, 150, 900])
def small(request: pytest.FixtureRequest, make_cascade: Callable[..., Any], seven: Any) -> Any:
    items = request.param
    if items == 7:
        return seven
    return make_cascade(schema=PLAIN, items=items, users=40)


@pytest.mark.parametrize("runtime", ["onnx", "torchscript"])
def test_every_stage_pads_what_it_does_not_have(
    small: Any, runtime: str, assert_same_answers: Callable[..., None]
) -> None:
    items = len(read_catalogue(small.checkpoints))
    pipeline = small.pipeline(runtime=runtime)
    user_dense, user_ids, candidates = pipeline.retrieve(small.dense, small.categorical)
    assert candidates.shape == (len(small.dense), 1000)
    assert_padded(candidates, items)
    survivors = pipeline.prerank(user_dense, user_ids, candidates)
    assert survivors.shape == (len(small.dense), 200)
    assert_padded(survivors, min(items, 200))
    item_ids, scores = pipeline.rank(user_dense, user_ids, survivors)
    assert item_ids.shape == scores.shape == (len(small.dense), 10)
    assert_padded(item_ids, min(items, 10))
    assert (scores[item_ids < 0] == 0).all()
    assert ((scores > 0) == (item_ids >= 0)).all()
    if items <= 200:  # nothing is lost on the way: the ranker sees every item
        expected = as_arrays(exact(small, "rank", 10), 10)
        assert_same_answers((item_ids, scores), expected)


def test_the_server_pads_and_the_client_does_not(
    seven: Any, patient_server: Server, assert_same_answers: Callable[..., None]
) -> None:
    batch = seven.serving.max_batch_size
    expected = exact(seven, "rank", 10)[: 2 * batch]
    with grpc.InferenceServerClient(patient_server.url) as client:
        inputs = [
            grpc.InferInput("dense", [batch, 2], "FP32"),
            grpc.InferInput("categorical", [batch, 4], "BYTES"),
        ]
        inputs[0].set_data_from_numpy(seven.dense[:batch])
        inputs[1].set_data_from_numpy(seven.categorical[:batch])
        answer = client.infer(ENSEMBLE, inputs, client_timeout=30)
    got = answer.as_numpy("item_ids"), answer.as_numpy("scores")
    assert_padded(got[0], 7)
    assert_same_answers(got, as_arrays(expected[:batch], 10))
    with Recommender(patient_server.url, deadline_s=30) as recommender:
        lists = recommender.recommend_many(seven.users[: 2 * batch])
    assert [len(r.item_ids) for r in lists] == [len(r.scores) for r in lists] == [7] * 2 * batch
    trimmed = [list(zip(r.item_ids, r.scores, strict=True)) for r in lists]
    assert_same_answers(as_arrays(trimmed, 10), as_arrays(expected, 10))
