"""Asks for one recommendation after the other, and splits each request into a row of intervals.

The client, tritonserver (its trace API) and the stages' processes (`cascade.runtime.spans`) read
the same clock, CLOCK_MONOTONIC: no interval is made by subtracting the others from the whole.
"""

from __future__ import annotations

import json
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import tritonclient.grpc as grpc
from tritonclient.grpc import service_pb2

from cascade.errors import CascadeError
from cascade.runtime import spans
from cascade.runtime.spans import START, Batch
from cascade.server.launcher import Server
from cascade.spec import ENSEMBLE
from perf.harness.payload import Payload

Intervals = dict[str, float]  # microseconds, in the order of time

METHOD = "/inference.GRPCInferenceService/ModelInfer"
BLOCK, WARM_UP = 25, 50  # requests with traces, then as many without
TRACES, MARKS = "trace.json", "marks"
# The entries of the Python adapter, whatever the process; other entries name a step of a stage.
ADAPTER = {START: "there", "read": "read", "answer": "answer"}
now = time.monotonic_ns


class TraceError(CascadeError):
    """Notes that do not fit together."""


class Call(NamedTuple):
    """One request, as its sender saw it."""

    started_ns: int  # `infer` was called, with inputs that had been made before
    sent_ns: int  # the request is bytes; from here on it is gRPC's
    received_ns: int  # the answer's bytes are there
    ended_ns: int  # the answer is arrays

    @property
    def us(self) -> float:
        """The whole of it, in microseconds."""
        return (self.ended_ns - self.started_ns) / 1000


def timed(client: grpc.InferenceServerClient) -> Callable[..., Call]:
    """inputs, id -> `Call`, by a client whose two functions between messages and bytes note the
    time. gRPC takes these when a method is made, so the method is made anew."""
    noted: dict[str, int] = {}

    def serialise(request: Any) -> bytes:
        content: bytes = request.SerializeToString()
        noted["sent"] = now()
        return content

    def parse(content: bytes) -> Any:
        noted["received"] = now()
        return service_pb2.ModelInferResponse.FromString(content)

    def ask(inputs: Sequence[Any], request_id: str = "") -> Call:
        started_ns = now()
        answer = client.infer(ENSEMBLE, inputs, request_id=request_id)
        for name in ("item_ids", "scores"):
            answer.as_numpy(name)
        return Call(started_ns, noted["sent"], noted["received"], now())

    client._client_stub.ModelInfer = client._channel.unary_unary(METHOD, serialise, parse)
    return ask


def ask(
    repository: Path, users: Payload, batches: Sequence[int], requests: int, scratch: Path
) -> tuple[dict[str, Call], dict[int, list[float]]]:
    """Serve a repository and ask it for batches of users, with and without traces. Traces and the
    stages' steps are left in `scratch` -> the traced requests by id, `<batch>-<number>`, and by
    batch the times of the others in microseconds."""
    options = (f"triton,file={scratch / TRACES}", "mode=triton", "rate=1", "level=OFF")
    arguments = [f"--trace-config={option}" for option in options]
    calls: dict[str, Call] = {}
    plain: dict[int, list[float]] = {batch: [] for batch in batches}
    with (
        patch.dict(os.environ, {spans.VARIABLE: str(scratch / MARKS)}),
        Server(repository, extra_args=arguments) as server,
        server.connect() as channel,
    ):
        call = timed(channel)

        def trace(level: str) -> None:
            settings = {"trace_level": level, "trace_rate": "1"}
            channel.update_trace_settings(settings=settings, headers=server.control_headers)

        for batch in batches:
            inputs = (_inputs(*users.rows(start, batch)) for start in count(0, batch))
            for _ in range(WARM_UP):
                call(next(inputs))
            for start in range(0, requests, BLOCK):
                block = range(start, min(start + BLOCK, requests))
                trace("TIMESTAMPS")
                for name in (f"{batch}-{number}" for number in block):
                    calls[name] = call(next(inputs), name)
                trace("OFF")
                plain[batch] += [call(next(inputs)).us for _ in block]
    return calls, plain


def _inputs(dense: Any, categorical: Any) -> list[Any]:
    tensors = (("dense", "FP32", dense), ("categorical", "BYTES", categorical))
    return [grpc.InferInput(n, x.shape, kind).set_data_from_numpy(x) for n, kind, x in tensors]


@dataclass
class ServerTrace:
    """What tritonserver noted about a request to one model."""

    model: str
    request_id: str
    at_ns: dict[str, int] = field(default_factory=dict)  # by event; `QUEUE_START` and the like
    members: list[ServerTrace] = field(default_factory=list)  # of an ensemble, in order of time

    def at(self, event: str) -> int:
        """When it happened. Raises TraceError."""
        if event not in self.at_ns:
            raise TraceError(
                f"request {self.request_id}: the trace of {self.model} has no {event}, only "
                f"{sorted(self.at_ns)}"
            )
        return self.at_ns[event]


def read_traces(paths: Iterable[Path]) -> dict[str, ServerTrace]:
    """tritonserver's trace files: by request id what clients asked, with an ensemble's members."""
    events: list[dict[str, Any]] = [e for path in paths for e in json.loads(path.read_text())]
    heads = [event for event in events if "model_name" in event]
    found = {e["id"]: ServerTrace(e["model_name"], e.get("request_id", "")) for e in heads}
    for event in events:
        for stamp in event.get("timestamps", ()):
            found[event["id"]].at_ns[stamp["name"]] = stamp["ns"]
    parents = {event["id"]: event["parent_id"] for event in heads if "parent_id" in event}
    for child, parent in parents.items():
        found[parent].members.append(found[child])
    for trace in found.values():
        trace.members.sort(key=lambda member: member.at("REQUEST_START"))
    return {t.request_id: t for i, t in found.items() if i not in parents and t.request_id}


def intervals_of(calls: Mapping[str, Call], scratch: Path) -> dict[str, Intervals]:
    """The intervals of every request, by its id, from what `ask` left. Raises TraceError."""
    traces, batches = read_traces(sorted(scratch.glob(f"{TRACES}*"))), spans.read(scratch / MARKS)
    if missing := calls.keys() - traces.keys():
        raise TraceError(f"tritonserver wrote no trace of {len(missing)} requests: {min(missing)}")
    return {name: intervals(call, traces[name], batches) for name, call in calls.items()}


def intervals(call: Call, trace: ServerTrace, batches: Sequence[Batch]) -> Intervals:
    """Split one request in the order of time. Raises TraceError: moments do not fit."""
    found: Intervals = {}
    moments = [(START, call.started_ns), *_moments(call, trace, batches)]
    for (before, from_ns), (name, ns) in pairwise(moments):
        if ns < from_ns:
            raise TraceError(
                f"request {trace.request_id}: {name} ended {from_ns - ns} ns before {before}; do "
                "client and server run on one machine?"
            )
        found[name] = found.get(name, 0.0) + (ns - from_ns) / 1000
    return found


def _moments(call: Call, trace: ServerTrace, batches: Sequence[Batch]) -> Iterator[tuple[str, int]]:
    """The end of every interval, in the order of time."""
    yield "client.request", call.sent_ns
    yield "grpc.request", trace.at("GRPC_WAITREAD_END")
    before = "core.accept"
    for model in trace.members or [trace]:
        name, output_ns = model.model, model.at("COMPUTE_OUTPUT_START")
        yield before, model.at("QUEUE_START")
        yield f"{name}.queue", model.at("COMPUTE_START")
        yield f"{name}.input", model.at("COMPUTE_INPUT_END")
        for step, ns in _steps(batches, model.at("COMPUTE_INPUT_END"), output_ns):
            yield (f"{name}.{ADAPTER[step]}" if step in ADAPTER else step), ns
        yield f"{name}.back", output_ns
        before = f"{name}.output"
    yield before, trace.at("INFER_RESPONSE_COMPLETE")
    yield "core.send", trace.at("GRPC_SEND_START")
    yield "grpc.answer", call.received_ns
    yield "client.answer", call.ended_ns


def _steps(batches: Sequence[Batch], from_ns: int, until_ns: int) -> Batch:
    """What a process noted between these moments of the server."""
    place = bisect_left(batches, from_ns, key=lambda steps: steps[0][1])
    if place == len(batches) or batches[place][-1][1] > until_ns:
        raise TraceError(
            "no batch was marked while the server waited for its stage: was the server started "
            f"with {spans.VARIABLE}, and stopped in order?"
        )
    return batches[place]
