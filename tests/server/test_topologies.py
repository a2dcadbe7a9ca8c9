"""Whichever stages share a process, the answers are those of the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from cascade import pbtxt
from cascade.client import InvalidInput, Recommender
from cascade.server.launcher import Server
from cascade.spec import ENSEMBLE, FUSED, RANK, RECOMMEND_FILTERED, TOPOLOGIES
from cascade.stages.pipeline import Pipeline
from export.artifacts.stage_files import ITEMS_FILE
from export.releases.rewire import rewire, serving_of
from tests.example_models import TEXTBOOK


@pytest.mark.parametrize("topology", ["paired", "fused"])
def test_rewired_release_answers_as_before(
    topology: Any, criteo: Any, tmp_path: Path, assert_same_answers: Callable[..., None]
) -> None:
    """Small runs and two instances, so that batches are cut and put together again."""
    serving = replace(
        serving_of(criteo.repository), topology=topology, instances=2, users_per_run=3
    )
    rewire(criteo.repository, tmp_path, serving)
    models = {ENSEMBLE, RECOMMEND_FILTERED, *TOPOLOGIES[topology]}
    assert {p.parent.name for p in tmp_path.glob("*/config.pbtxt")} == models
    expected = criteo.ask(criteo.pipeline())
    assert_same_answers(criteo.ask(Pipeline.load(tmp_path)), expected, 0)
    with Server(tmp_path) as server, Recommender(server.url, deadline_s=30) as client:
        found = client.recommend_many(criteo.users)
        got = np.stack([r.item_ids for r in found]), np.stack([r.scores for r in found])
        assert_same_answers(got, expected)
        with grpc.InferenceServerClient(server.url) as raw:
            stats = raw.get_inference_statistics().model_stats
        assert {s.name for s in stats} == models


def test_models_that_were_taken_apart_answer_as_the_pipeline(
    make_cascade: Callable[..., Any], assert_same_answers: Callable[..., None]
) -> None:
    cascade = make_cascade(items=600, models=TEXTBOOK, state="float16", also=())
    assert (cascade.repository / RANK / "1" / ITEMS_FILE).exists()
    with Server(cascade.repository) as server, Recommender(server.url, deadline_s=30) as client:
        found = client.recommend_many(cascade.users)
    got = np.stack([r.item_ids for r in found]), np.stack([r.scores for r in found])
    assert_same_answers(got, cascade.ask(cascade.pipeline()))


def test_one_bad_user_costs_the_fused_batch_nothing(seven: Any, tmp_path: Path) -> None:
    rewire(seven.repository, tmp_path, replace(serving_of(seven.repository), topology="fused"))
    path = tmp_path / FUSED / "config.pbtxt"
    patient = pbtxt.read(path)
    patient.dynamic_batching.max_queue_delay_microseconds = 300_000
    pbtxt.save(patient, path)

    def ask(user: int) -> Any:
        dense = seven.dense[user : user + 1].copy()
        if user == 1:
            dense[0, 0] = np.inf
        inputs = [
            grpc.InferInput("dense", dense.shape, "FP32"),
            grpc.InferInput("categorical", [1, seven.categorical.shape[1]], "BYTES"),
        ]
        inputs[0].set_data_from_numpy(dense)
        inputs[1].set_data_from_numpy(seven.categorical[user : user + 1])
        try:
            return client.infer(ENSEMBLE, inputs, client_timeout=30)
        except InferenceServerException as error:
            return error

    with Server(tmp_path) as server, grpc.InferenceServerClient(server.url) as client:
        with ThreadPoolExecutor(3) as pool:
            outcomes = list(pool.map(ask, range(3)))
        [stats] = client.get_inference_statistics(FUSED).model_stats
    assert "inf is not a finite number" in str(outcomes[1])
    expected = seven.ask(seven.pipeline())
    for user in (0, 2):
        np.testing.assert_array_equal(outcomes[user].as_numpy("item_ids")[0], expected[0][user])
    assert stats.execution_count < stats.inference_count  # they shared a batch


def test_the_client_knows_a_fused_model(criteo: Any, tmp_path: Path) -> None:
    rewire(criteo.repository, tmp_path, replace(serving_of(criteo.repository), topology="fused"))
    with Server(tmp_path) as server, Recommender(server.url, deadline_s=30) as client:
        with pytest.raises(InvalidInput, match="I1"):
            client.recommend({"I1": "many"})
        assert len(client.recommend(criteo.users[0]).item_ids) == 10
