"""Whether a server answers what the pipeline answers: a fast wrong answer is worth nothing."""

from __future__ import annotations

import http.client
from typing import Any

import numpy as np
import tritonclient.grpc as grpc

from cascade.spec import ENSEMBLE
from cascade.stages.pipeline import Pipeline
from perf.contenders.servers import Endpoint
from perf.contenders.wire import Answer, WireError
from perf.payload import Payload

SLACK = 1e-4  # of a probability; a GPU adds up in another order


def check(name: str, endpoint: Endpoint, pipeline: Pipeline, users: Payload, count: int) -> None:
    """Ask for some users over every protocol that the server speaks.

    Raises:
        WireError: an answer is not the pipeline's; says whose.
    """
    for row in np.linspace(0, len(users) - 1, min(count, len(users))).astype(int):
        user = users.dense[row : row + 1], users.categorical[row : row + 1]
        item_ids, scores = pipeline(*user)
        answers = {"HTTP": ask_http(endpoint, *user)}
        if endpoint.grpc:
            answers["gRPC"] = ask_grpc(endpoint.grpc, *user)
        for protocol, answer in answers.items():
            wrong = difference(answer, (item_ids[0], scores[0]))
            if wrong:
                raise WireError(f"{name} over {protocol}, user {row}: {wrong}")


def difference(got: Answer, expected: Answer) -> str | None:
    """What distinguishes two answers to one user, None if nothing does. Items of equal score may
    change places, and at the end of the list stand in for one another."""
    (got_ids, got_scores), (ids, scores) = got, expected
    if len(got_ids) != len(ids) or len(got_scores) != len(scores):
        return f"{len(got_ids)} items came, {len(ids)} were expected"
    real = ids >= 0
    if not np.array_equal(got_ids >= 0, real):
        return f"items {got_ids.tolist()} came, {ids.tolist()} were expected"
    if not np.allclose(got_scores[real], scores[real], rtol=0, atol=SLACK):
        return f"scores {got_scores.tolist()} came, {scores.tolist()} were expected"
    if len(set(got_ids[real].tolist())) != real.sum():
        return f"an item came twice: {got_ids.tolist()}"
    wanted = dict(zip(ids[real].tolist(), scores[real].tolist(), strict=True))
    last = min(wanted.values(), default=0.0)
    for item, score in zip(got_ids[real].tolist(), got_scores[real].tolist(), strict=True):
        if abs(score - wanted.get(item, last)) > SLACK:
            return f"item {item} came with score {score}, {wanted.get(item, 'none')} was expected"
    return None


def ask_http(endpoint: Endpoint, dense: Any, categorical: Any) -> Answer:
    """One user, through the very bytes that the load generator sends.

    Raises:
        WireError: the server refuses it.
    """
    head, _, body = endpoint.wire.request(dense, categorical).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, path, _ = first.split()
    headers = dict(line.split(": ", 1) for line in lines)
    connection = http.client.HTTPConnection(endpoint.address, timeout=30)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise WireError(f"{endpoint.address}{path} answers {response.status}: {content[:500]!r}")
    return endpoint.wire.answer({k.lower(): v for k, v in response.getheaders()}, content)


def ask_grpc(url: str, dense: Any, categorical: Any) -> Answer:
    """One user, through Triton's own client."""
    inputs = [
        grpc.InferInput("dense", dense.shape, "FP32"),
        grpc.InferInput("categorical", categorical.shape, "BYTES"),
    ]
    inputs[0].set_data_from_numpy(dense)
    inputs[1].set_data_from_numpy(categorical)
    with grpc.InferenceServerClient(url) as client:
        result = client.infer(ENSEMBLE, inputs)
    return result.as_numpy("item_ids")[0], result.as_numpy("scores")[0]
