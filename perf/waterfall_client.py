"""Asks a served cascade one request after the other, and notes when it did what, in ns of the
monotonic clock. Blocks of requests with traces and without take turns.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from tritonclient.grpc import service_pb2

from cascade.runtime import spans
from cascade.server.launcher import Server
from cascade.spec import ENSEMBLE
from perf.payload import Payload

METHOD = "/inference.GRPCInferenceService/ModelInfer"
OUTPUTS = ("item_ids", "scores")
BLOCK = 25  # requests with traces, then as many without
WARM_UP = 50
TRACES, MARKS = "trace.json", "marks"


@dataclass(frozen=True)
class Plan:
    """What to ask.

    Args:
        batches: users per request, one waterfall each.
        requests: how many are traced for each; as many are not.
    """

    users: Payload
    batches: Sequence[int]
    requests: int


@dataclass(frozen=True)
class Call:
    """One request, as its sender saw it.

    Args:
        started_ns: `infer` was called, with inputs that had been made before.
        sent_ns: the request is bytes; from here on it is gRPC's.
        received_ns: the answer's bytes are there.
        ended_ns: the answer is arrays.
    """

    started_ns: int
    sent_ns: int
    received_ns: int
    ended_ns: int

    @property
    def us(self) -> float:
        """The whole of it, in microseconds."""
        return (self.ended_ns - self.started_ns) / 1000


class TimedClient:
    """tritonclient as it is, but for the two functions between messages and bytes: these look at
    the clock."""

    def __init__(self, url: str, control_headers: Mapping[str, str]) -> None:
        self._control_headers = dict(control_headers)
        self.client = grpc.InferenceServerClient(url)
        self._sent_ns = self._received_ns = 0
        # gRPC takes the two functions when a method is made, so the method is made anew.
        self.client._client_stub.ModelInfer = self.client._channel.unary_unary(
            METHOD, request_serializer=self._serialise, response_deserializer=self._parse
        )

    def __enter__(self) -> TimedClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.client.close()

    def ask(self, inputs: Sequence[Any], request_id: str = "") -> Call:
        """Send one request and read its answer.

        Raises:
            InferenceServerException: the server refused or failed it.
        """
        started_ns = time.monotonic_ns()
        answer = self.client.infer(ENSEMBLE, inputs, request_id=request_id)
        for name in OUTPUTS:
            answer.as_numpy(name)
        return Call(started_ns, self._sent_ns, self._received_ns, time.monotonic_ns())

    def trace(self, on: bool) -> None:
        """Switch the server's traces."""
        level = "TIMESTAMPS" if on else "OFF"
        self.client.update_trace_settings(
            settings={"trace_level": level, "trace_rate": "1"}, headers=self._control_headers
        )

    def _serialise(self, request: Any) -> bytes:
        content: bytes = request.SerializeToString()
        self._sent_ns = time.monotonic_ns()
        return content

    def _parse(self, content: bytes) -> Any:
        self._received_ns = time.monotonic_ns()
        read: Callable[[bytes], Any] = service_pb2.ModelInferResponse.FromString
        return read(content)


def request_of(dense: Any, categorical: Any) -> list[Any]:
    """The two tensors of a request, dense [B, F_dense] and categorical [B, F_cat], made once."""
    inputs = []
    for name, kind, values in (("dense", "FP32", dense), ("categorical", "BYTES", categorical)):
        tensor = grpc.InferInput(name, list(values.shape), kind)
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    return inputs


def ask(
    repository: Path, plan: Plan, scratch: Path
) -> tuple[dict[str, Call], dict[int, list[float]]]:
    """Serve a repository and ask it.

    Args:
        scratch: a folder for the server's traces and the stages' marks.

    Returns:
        the traced requests by id, `<batch>-<number>`, and by batch the times of the others in
        microseconds.
    """
    traces = ("--trace-config", f"triton,file={scratch / TRACES}")
    options = ("mode=triton", "rate=1", "level=OFF")
    arguments = [*traces, *(word for option in options for word in ("--trace-config", option))]
    calls: dict[str, Call] = {}
    plain: dict[int, list[float]] = {}
    with (
        _marked(scratch / MARKS),
        Server(repository, extra_args=arguments) as server,
        TimedClient(server.url, server.control_headers) as client,
    ):
        for batch in plan.batches:
            requests = _requests(plan.users, batch)
            for _ in range(WARM_UP):
                client.ask(next(requests))
            plain[batch] = []
            for start in range(0, plan.requests, BLOCK):
                block = range(start, min(start + BLOCK, plan.requests))
                client.trace(on=True)
                for number in block:
                    name = f"{batch}-{number}"
                    calls[name] = client.ask(next(requests), name)
                client.trace(on=False)
                plain[batch] += [client.ask(next(requests)).us for _ in block]
    return calls, plain


@contextmanager
def _marked(folder: Path) -> Iterator[None]:
    """Servers that start inside have their stages marked."""
    before = os.environ.get(spans.VARIABLE)
    os.environ[spans.VARIABLE] = str(folder)
    try:
        yield
    finally:
        del os.environ[spans.VARIABLE]
        if before is not None:
            os.environ[spans.VARIABLE] = before


def _requests(users: Payload, batch: int) -> Iterator[list[Any]]:
    """Requests of different users, without end."""
    start = 0
    while True:
        rows = (start + np.arange(batch)) % len(users)
        yield request_of(users.dense[rows], users.categorical[rows])
        start += batch
