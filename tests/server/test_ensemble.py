"""The ensemble over gRPC gives the answers of the in-process pipeline, also under load."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc

from cascade import pbtxt
from cascade.client import Recommender
from cascade.server.launcher import Server
from cascade.spec import ENSEMBLE, RECOMMEND_FILTERED, STAGES

CONCURRENCY = 16


def ask(client: grpc.InferenceServerClient, dense: Any, categorical: Any) -> tuple[Any, Any]:
    """item_ids and scores, [B, 10] each."""
    inputs = [
        grpc.InferInput("dense", dense.shape, "FP32"),
        grpc.InferInput("categorical", categorical.shape, "BYTES"),
    ]
    inputs[0].set_data_from_numpy(dense)
    inputs[1].set_data_from_numpy(categorical)
    answer = client.infer(ENSEMBLE, inputs, client_timeout=30)
    return answer.as_numpy("item_ids"), answer.as_numpy("scores")


def ask_in_batches(url: str, cascade: Any, sizes: list[int]) -> tuple[Any, Any]:
    """All users, in requests of these sizes by turns."""
    parts, start = [], 0
    with grpc.InferenceServerClient(url) as client:
        while start < len(cascade.dense):
            stop = start + sizes[len(parts) % len(sizes)]
            parts.append(ask(client, cascade.dense[start:stop], cascade.categorical[start:stop]))
            start = stop
    ids, scores = zip(*parts, strict=True)
    return np.concatenate(ids), np.concatenate(scores)


def counts(url: str) -> dict[str, tuple[int, int]]:
    """Of each stage: users answered and batches run since the server started. The server counts
    them only after it has answered, so ask until nothing is added any more."""
    seen: dict[str, tuple[int, int]] = {}
    with grpc.InferenceServerClient(url) as client:
        while True:
            stats = client.get_inference_statistics().model_stats
            now = {s.name: (s.inference_count, s.execution_count) for s in stats}
            if now == seen:
                return {stage: seen[stage] for stage in STAGES}
            seen = now
            time.sleep(0.2)


@pytest.fixture(scope="module")
def expected(criteo: Any) -> tuple[Any, Any]:
    return criteo.ask(criteo.pipeline())


def test_the_server_gives_the_answers_of_the_pipeline(
    criteo: Any, criteo_server: Server, expected: Any, assert_same_answers: Callable[..., None]
) -> None:
    assert len(criteo.dense) >= 200
    sizes = [1, 3, 17, criteo.serving.max_batch_size]
    assert_same_answers(ask_in_batches(criteo_server.url, criteo, sizes), expected)
    ids, scores = expected
    assert ids.min() >= 5_000_000_000  # the world's ids, not rows
    assert (np.diff(scores) <= 0).all()
    assert len(np.unique(ids[:, 0])) > 5  # users differ, so the test could fail
    assert scores.std() > 0.01


def test_the_client_gets_the_same(
    criteo: Any, criteo_server: Server, expected: Any, assert_same_answers: Callable[..., None]
) -> None:
    with Recommender(criteo_server.url, deadline_s=30) as client:
        found = client.recommend_many(criteo.users)  # more than one request takes
    assert len(found) == len(criteo.dense) > criteo.serving.max_batch_size
    got = np.stack([r.item_ids for r in found]), np.stack([r.scores for r in found])
    assert_same_answers(got, expected)


def test_requests_at_once_share_batches_and_none_fails(
    criteo: Any, criteo_server: Server, expected: Any, assert_same_answers: Callable[..., None]
) -> None:
    before = counts(criteo_server.url)
    rounds, together = 3, threading.Barrier(CONCURRENCY)
    users = len(criteo.dense)

    def ask_all(worker: int) -> list[tuple[int, tuple[Any, Any]]]:
        answers = []
        with grpc.InferenceServerClient(criteo_server.url) as client:
            together.wait(30)
            for turn in range(rounds * users // CONCURRENCY):
                row = (turn * CONCURRENCY + worker) % users
                rows = slice(row, row + 1)
                answers.append((row, ask(client, criteo.dense[rows], criteo.categorical[rows])))
        return answers

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        answers = [a for part in pool.map(ask_all, range(CONCURRENCY)) for a in part]
    assert len(answers) == rounds * users // CONCURRENCY * CONCURRENCY
    rows, got = zip(*answers, strict=True)
    ids, scores = (np.concatenate(part) for part in zip(*got, strict=True))
    assert_same_answers((ids, scores), tuple(part[list(rows)] for part in expected))
    for stage, (inferences, executions) in counts(criteo_server.url).items():
        inferences -= before[stage][0]
        executions -= before[stage][1]
        assert inferences == len(answers)
        assert executions < 0.7 * inferences, stage


def test_the_stages_answer_alone_and_say_what_they_take(criteo: Any, criteo_server: Server) -> None:
    pipeline = criteo.pipeline()
    dense, categorical = criteo.dense[:4], criteo.categorical[:4]
    user_dense, user_ids, candidates = pipeline.retrieve(dense, categorical)
    survivors = pipeline.prerank(user_dense, user_ids, candidates)
    with grpc.InferenceServerClient(criteo_server.url) as client:
        inputs = []
        for name, value, dtype in (
            ("user_dense", user_dense, "FP32"),
            ("user_ids", user_ids, "INT64"),
            ("candidates", candidates, "INT64"),
        ):
            inputs.append(grpc.InferInput(name, value.shape, dtype))
            inputs[-1].set_data_from_numpy(value)
        answer = client.infer("prerank", inputs, client_timeout=30)
        assert set(answer.as_numpy("survivors")[0]) == set(survivors[0])
        metadata = client.get_model_metadata(ENSEMBLE)
        filtered = client.get_model_metadata(RECOMMEND_FILTERED)
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("dense", "FP32", [-1, 13]),
        ("categorical", "BYTES", [-1, 6]),
    ]
    assert [t.name for t in filtered.inputs] == [
        "dense",
        "categorical",
        "context",
        "exclude",
        "allow",
    ]
    assert filtered.outputs == metadata.outputs
    assert {t.name: (t.datatype, list(t.shape)) for t in metadata.outputs} == {
        "item_ids": ("INT64", [-1, 10]),
        "scores": ("FP32", [-1, 10]),
        "release": ("INT64", [-1, 1]),
        "unknown_values": ("INT64", [-1, 1]),
    }


@pytest.fixture(scope="module")
def torchscript(criteo: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same artifacts behind the other runtime, without a file of ONNX."""
    repository: Path = tmp_path_factory.mktemp("torchscript") / "repository"
    others = shutil.ignore_patterns("config.pbtxt", "model.py", "model.onnx")
    shutil.copytree(criteo.repository, repository, copy_function=os.link, ignore=others)
    serving = replace(criteo.serving, runtime="torchscript")
    pbtxt.write(repository, criteo.schema, criteo.sizes, serving, version=1)
    with Server(repository) as server:
        yield server


def test_torchscript_serves_the_same_answers(
    criteo: Any, torchscript: Server, expected: Any, assert_same_answers: Callable[..., None]
) -> None:
    assert_same_answers(criteo.ask(criteo.pipeline(runtime="torchscript")), expected)
    assert_same_answers(ask_in_batches(torchscript.url, criteo, [1, 7, 32]), expected)
