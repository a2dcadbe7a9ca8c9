"""What goes over the wire to each kind of server: complete HTTP requests built beforehand, the
reading of their answers, and the check that a server answers what the pipeline answers.

Triton's requests use the binary tensor extension of its inference protocol (v2): a JSON header that
names the tensors, then their bytes. Triton's own client writes and reads them.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import tritonclient.grpc as grpc
from tritonclient import http as triton_http
from tritonclient.http import InferenceServerClient

from cascade.errors import CascadeError
from cascade.spec import ENSEMBLE
from perf.harness.payload import Payload

Answer = tuple[Any, Any]  # item_ids [R], scores [R]
SLACK = 1e-4  # of a probability; a GPU adds up in another order


class WireError(CascadeError):
    """A server refused a request, or its answer is wrong or cannot be read."""


@dataclass(frozen=True)
class Wire:
    """How one kind of server is asked over HTTP.

    Args:
        request: a user (dense [1, F], categorical [1, C]) -> the complete HTTP request.
        answer: lower-case headers and body of an answer of status 200 -> item_ids, scores.
    """

    request: Callable[[Any, Any], bytes]
    answer: Callable[[dict[str, str], bytes], Answer]

    def requests(self, users: Payload) -> list[bytes]:
        """One per user, in their order."""
        return [self.request(*users.rows(row, 1)) for row in range(len(users))]


@dataclass(frozen=True)
class Endpoint:
    """A server that answers.

    Args:
        address: HOST:PORT of its HTTP service.
        grpc: HOST:PORT of its gRPC service, or None.
        wire: how to ask over HTTP.
        pid: its first process; the others descend from it.
    """

    address: str
    grpc: str | None
    wire: Wire
    pid: int


def _post(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = {"Host": "localhost", **headers, "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def triton_request(model: str, **tensors: tuple[Any, str]) -> bytes:
    """A request to any model of Triton.

    Args:
        tensors: by name, the array [1, ...] and Triton's name of its type.
    """
    inputs = []
    for name, (values, dtype) in tensors.items():
        inputs.append(triton_http.InferInput(name, values.shape, dtype))
        inputs[-1].set_data_from_numpy(values, binary_data=True)
    body, length = InferenceServerClient.generate_request_body(inputs)
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(length),
    }
    return _post(f"/v2/models/{model}/infer", body, headers)


def grpc_inputs(dense: Any, categorical: Any) -> list[Any]:
    """The two tensors of a gRPC request, dense [B, F_dense] and categorical [B, F_cat]."""
    inputs = []
    for name, kind, values in (("dense", "FP32", dense), ("categorical", "BYTES", categorical)):
        inputs.append(grpc.InferInput(name, list(values.shape), kind))
        inputs[-1].set_data_from_numpy(values)
    return inputs


def _triton_request(dense: Any, categorical: Any) -> bytes:
    return triton_request(ENSEMBLE, dense=(dense, "FP32"), categorical=(categorical, "BYTES"))


def _triton_answer(headers: dict[str, str], body: bytes) -> Answer:
    length = int(headers["inference-header-content-length"])
    result = InferenceServerClient.parse_response_body(body, header_length=length)
    return result.as_numpy("item_ids")[0], result.as_numpy("scores")[0]


def _json_request(dense: Any, categorical: Any) -> bytes:
    user = {
        "dense": [None if np.isnan(x) else float(x) for x in dense[0]],
        "categorical": [text.decode() or None for text in categorical[0]],
    }
    return _post("/recommend", orjson.dumps(user), {"Content-Type": "application/json"})


def _json_answer(headers: dict[str, str], body: bytes) -> Answer:
    answer = orjson.loads(body)
    return np.array(answer["item_ids"], np.int64), np.array(answer["scores"], np.float32)


TRITON = Wire(_triton_request, _triton_answer)
JSON = Wire(_json_request, _json_answer)


def check(name: str, endpoint: Endpoint, pipeline: Any, users: Payload, count: int) -> None:
    """Ask for some users over every protocol that the server speaks.

    Args:
        pipeline: dense, categorical -> item_ids, scores; what the answers are compared with.

    Raises:
        WireError: an answer is not the pipeline's; says whose.
    """
    for row in np.linspace(0, len(users) - 1, min(count, len(users))).astype(int):
        user = users.rows(row, 1)
        item_ids, scores = pipeline(*user)
        answers = {"HTTP": ask_http(endpoint, *user)}
        if endpoint.grpc:
            with grpc.InferenceServerClient(endpoint.grpc) as client:
                result = client.infer(ENSEMBLE, grpc_inputs(*user))
            answers["gRPC"] = result.as_numpy("item_ids")[0], result.as_numpy("scores")[0]
        for protocol, answer in answers.items():
            wrong = difference(answer, (item_ids[0], scores[0]))
            if wrong:
                raise WireError(f"{name} over {protocol}, user {row}: {wrong}")


def difference(got: Answer, expected: Answer, slack: float = SLACK) -> str | None:
    """What distinguishes two answers to one user, None if nothing does. Items of equal score may
    change places, and at the end of the list stand in for one another."""
    (got_ids, got_scores), (ids, scores) = got, expected
    if len(got_ids) != len(ids) or len(got_scores) != len(scores):
        return f"{len(got_ids)} items came, {len(ids)} were expected"
    real = ids >= 0
    if not np.array_equal(got_ids >= 0, real):
        return f"items {got_ids.tolist()} came, {ids.tolist()} were expected"
    if not np.allclose(got_scores[real], scores[real], rtol=0, atol=slack):
        return f"scores {got_scores.tolist()} came, {scores.tolist()} were expected"
    if len(set(got_ids[real].tolist())) != real.sum():
        return f"an item came twice: {got_ids.tolist()}"
    wanted = dict(zip(ids[real].tolist(), scores[real].tolist(), strict=True))
    last = min(wanted.values(), default=0.0)
    for item, score in zip(got_ids[real].tolist(), got_scores[real].tolist(), strict=True):
        if abs(score - wanted.get(item, last)) > slack:
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
    connection = http.client.HTTPConnection(endpoint.address, timeout=30)
    try:
        connection.request(method, path, body, dict(line.split(": ", 1) for line in lines))
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise WireError(f"{endpoint.address}{path} answers {response.status}: {content[:500]!r}")
    return endpoint.wire.answer({k.lower(): v for k, v in response.getheaders()}, content)
