"""Each kind of server that is compared: how it is started, and what goes over the wire to it.

Requests are complete HTTP requests built beforehand; Triton's own client writes and reads those of
its binary tensor extension. Every server gets the machine as its own users would give it: one
compute thread a process, a process per core, and no log of every access.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import np_to_triton_dtype

from cascade.errors import CascadeError
from cascade.item_keys import as_keys
from cascade.server import process
from cascade.server.launcher import Ports, Server
from cascade.server.threads import cores
from cascade.spec import ENSEMBLE
from perf.contenders import fastapi_app
from perf.harness.in_process import ONE_THREAD
from perf.harness.payload import Payload
from perf.harness.record import ROOT

Answer = tuple[Any, Any]  # item_ids [R], scores [R]
SLACK = 1e-4  # of a probability; a GPU adds up in another order
START_TIMEOUT_S, EXIT_TIMEOUT_S = 180.0, 20
READY = "Application startup complete"  # each worker logs it when it has loaded


class ContenderError(CascadeError):
    """A server did not start, refused a request, or its answer is wrong or cannot be read."""


@dataclass(frozen=True)
class Wire:
    """How one kind of server is asked over HTTP: dense [1, F], categorical [1, C] -> the complete
    request; lower-case headers and body of an answer -> item_ids, scores."""

    request: Callable[[Any, Any], bytes]
    answer: Callable[[dict[str, str], bytes], Answer]

    def requests(self, users: Payload) -> list[bytes]:
        """One per user, in their order."""
        return [self.request(*users.rows(row, 1)) for row in range(len(users))]


@dataclass(frozen=True)
class Endpoint:
    """HOST:PORT of a server that answers, and how to ask it."""

    address: str
    wire: Wire


def _post(path: str, kind: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = {"Host": "localhost", "Content-Type": kind, **headers, "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def triton_request(model: str, **tensors: Any) -> bytes:
    """A request to any model of Triton, with arrays by the names of its tensors."""
    inputs = [
        InferInput(name, values.shape, np_to_triton_dtype(values.dtype)).set_data_from_numpy(values)
        for name, values in tensors.items()
    ]
    body, length = InferenceServerClient.generate_request_body(inputs)
    headers = {"Inference-Header-Content-Length": str(length)}
    return _post(f"/v2/models/{model}/infer", "application/octet-stream", body, headers)


def _triton_answer(headers: dict[str, str], body: bytes) -> Answer:
    length = int(headers["inference-header-content-length"])
    result = InferenceServerClient.parse_response_body(body, header_length=length)
    return result.as_numpy("item_ids")[0], result.as_numpy("scores")[0]


def _json_request(dense: Any, categorical: Any) -> bytes:
    user = {
        "dense": [None if np.isnan(x) else float(x) for x in dense[0]],
        "categorical": [text.decode() or None for text in categorical[0]],
    }
    return _post("/recommend", "application/json", orjson.dumps(user), {})


def _json_answer(headers: dict[str, str], body: bytes) -> Answer:
    answer = orjson.loads(body)
    strings = any(isinstance(item, str) for item in answer["item_ids"])
    ids = np.array(answer["item_ids"], object if strings else np.int64)
    return ids, np.array(answer["scores"], np.float32)


TRITON = Wire(
    lambda dense, categorical: triton_request(ENSEMBLE, dense=dense, categorical=categorical),
    _triton_answer,
)
JSON = Wire(_json_request, _json_answer)


@contextmanager
def triton(repository: Path) -> Iterator[Endpoint]:
    """tritonserver on an exported repository, whatever its topology."""
    with Server(repository, startup_timeout_s=START_TIMEOUT_S) as server:
        yield Endpoint(server.http_url, TRITON)


@contextmanager
def fastapi(repository: Path) -> Iterator[Endpoint]:
    """FastAPI under uvicorn with a worker per core; `fastapi_app` says what is in it."""
    port, workers = Ports.free().resolve("127.0.0.1").http, cores()
    command = [
        *(sys.executable, "-m", "uvicorn", "perf.contenders.fastapi_app:app"),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)),
        *("--loop", "uvloop", "--http", "httptools", "--no-access-log"),
        # Clients keep their connections, as a proxy would; the default closes them after 5 s.
        *("--timeout-keep-alive", "300", "--backlog", "2048"),
    ]
    where = {fastapi_app.REPOSITORY: str(repository.resolve())}
    with tempfile.NamedTemporaryFile(prefix="contender-") as log:
        server = subprocess.Popen(
            process.tied(command),
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env={**os.environ, **ONE_THREAD, **where},
            start_new_session=True,
        )
        try:
            _wait(server, Path(log.name), workers)
            yield Endpoint(f"127.0.0.1:{port}", JSON)
        finally:
            process.end(server, EXIT_TIMEOUT_S)
            with suppress(ProcessLookupError):  # the workers of one that had to be killed
                os.killpg(server.pid, signal.SIGKILL)


def _wait(server: subprocess.Popen[bytes], log: Path, workers: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while (text := log.read_text(errors="replace")).count(READY) < workers:
        if server.poll() is not None or time.monotonic() > deadline:
            what = f"ended with {server.poll()}" if server.poll() else "did not start in time"
            raise ContenderError("\n".join([f"FastAPI {what}:", *text.splitlines()[-20:]]))
        time.sleep(0.1)


def check(name: str, endpoint: Endpoint, pipeline: Any, users: Payload, count: int) -> None:
    """Compare users' answers with the pipeline's. Raises ContenderError: says whose differs."""
    for row in np.linspace(0, len(users) - 1, min(count, len(users))).astype(int):
        user = users.rows(row, 1)
        item_ids, scores = pipeline(*user)
        if wrong := difference(ask_http(endpoint, *user), (item_ids[0], scores[0])):
            raise ContenderError(f"{name}, user {row}: {wrong}")


def difference(got: Answer, expected: Answer, slack: float = SLACK) -> str | None:
    """What distinguishes two answers to one user, None if nothing does. Items of equal score may
    change places, and at the end of the list stand in for one another."""
    (got_ids, got_scores), (ids, scores) = got, expected
    got_ids, ids = as_keys(got_ids), as_keys(ids)
    if len(got_ids) != len(ids) or len(got_scores) != len(scores):
        return f"{len(got_ids)} items came, {len(ids)} were expected"
    if not np.array_equal(got_ids >= 0, ids >= 0):
        return f"items {got_ids.tolist()} came, {ids.tolist()} were expected"
    got_ids, got_scores, ids, scores = (a[ids >= 0] for a in (got_ids, got_scores, ids, scores))
    if not np.allclose(got_scores, scores, rtol=0, atol=slack):
        return f"scores {got_scores.tolist()} came, {scores.tolist()} were expected"
    if len(np.unique(got_ids)) != len(ids):
        return f"an item came twice: {got_ids.tolist()}"
    wanted = dict(zip(ids.tolist(), scores.tolist(), strict=True))
    last = min(wanted.values(), default=0.0)
    for item, score in zip(got_ids.tolist(), got_scores.tolist(), strict=True):
        if abs(score - wanted.get(item, last)) > slack:
            return f"item {item} came with score {score}, {wanted.get(item, 'none')} was expected"
    return None


def ask_http(endpoint: Endpoint, dense: Any, categorical: Any) -> Answer:
    """One user, through the bytes that the load generator sends. Raises ContenderError."""
    host, _, port = endpoint.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(endpoint.wire.request(dense, categorical))
        response = HTTPResponse(connection)
        response.begin()
        content = response.read()
    if response.status != 200:
        raise ContenderError(f"{endpoint.address} answers {response.status}: {content[:500]!r}")
    return endpoint.wire.answer({k.lower(): v for k, v in response.getheaders()}, content)
