"""One request as a row of intervals, from what three programs noted about it.

The client, tritonserver (its trace API) and the stages' processes (`cascade.runtime.spans`) read
the same clock, CLOCK_MONOTONIC. So the moments of a request lie on one line, each interval between
two neighbours has a name, and none is made by subtracting the others from the whole. Those that
begin in one process and end in another are transport, and are told apart: what happens within them
nobody can say.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cascade.errors import CascadeError
from cascade.runtime.spans import START, Batch
from perf.waterfall_client import Call

Intervals = dict[str, float]  # microseconds, in the order of time


class TraceError(CascadeError, ValueError):
    """Notes that do not fit together."""


@dataclass
class Trace:
    """What tritonserver noted about a request to one model.

    Args:
        at_ns: by event; `QUEUE_START` and the like.
        members: the requests that an ensemble made of it, in the order of time.
    """

    model: str
    request_id: str
    at_ns: dict[str, int] = field(default_factory=dict)
    members: list[Trace] = field(default_factory=list)


# What happens in an interval of a model, by the last part of its name; the first is the model's.
MEANING = {
    "client.request": "client: message made and turned into bytes",
    "grpc.request": "gRPC and network, to the server",
    "core.accept": "Triton: request read, handed to the first model",
    "queue": "Triton: waits for the batcher's thread",
    "input": "Triton: tensors into shared memory",
    "there": "wakes the stub, tensors out of shared memory",
    "read": "adapter: tensors as arrays, joined",
    "encode": "values to numbers",
    "tower": "user tower",
    "search": "index search",
    "answer": "adapter: tensors and responses made",
    "back": "answer into shared memory, wakes Triton",
    "output": "Triton: tensors out of shared memory, handed on",
    "core.send": "Triton: message handed to gRPC",
    "grpc.answer": "gRPC and network, to the client",
    "client.answer": "client: bytes to message and arrays",
}
BETWEEN_PROCESSES = ("grpc.request", "grpc.answer", "there", "back")
HOP = ("input", "there", "back", "output")


def last(name: str) -> str:
    """The part of an interval's name that says what happens."""
    return name if name in MEANING else name.rsplit(".", 1)[-1]


def between_processes(name: str) -> bool:
    """Whether an interval begins in one process and ends in another."""
    return last(name) in BETWEEN_PROCESSES


def read_traces(paths: Iterable[Path]) -> dict[str, Trace]:
    """tritonserver's trace files: by request id what clients asked, with an ensemble's members."""
    found: dict[int, Trace] = {}
    parents: dict[int, int] = {}
    times: list[dict[str, Any]] = []
    for path in paths:
        for event in json.loads(path.read_text()):
            if "model_name" in event:
                found[event["id"]] = Trace(event["model_name"], event.get("request_id", ""))
                if "parent_id" in event:
                    parents[event["id"]] = event["parent_id"]
            times.append(event)
    for event in times:
        for stamp in event.get("timestamps", ()):
            found[event["id"]].at_ns[stamp["name"]] = stamp["ns"]
    for child, parent in parents.items():
        found[parent].members.append(found[child])
    for trace in found.values():
        trace.members.sort(key=lambda member: member.at_ns["REQUEST_START"])
    return {t.request_id: t for i, t in found.items() if i not in parents and t.request_id}


class Batches:
    """The marked batches of all processes, to be found by when they ran."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches
        self._starts = [batch[0][1] for batch in batches]

    def within(self, start_ns: int, end_ns: int) -> Batch:
        """The batch that ran between two moments.

        Raises:
            TraceError: there is none.
        """
        place = bisect_left(self._starts, start_ns)
        if place == len(self._starts) or self._batches[place][-1][1] > end_ns:
            raise TraceError(
                "no batch was marked while the server waited for its stage: was the server started "
                "with CASCADE_MARKS, and stopped in order?"
            )
        return self._batches[place]


def intervals(call: Call, trace: Trace, batches: Batches) -> Intervals:
    """Split one request.

    Raises:
        TraceError: moments are missing, or out of order.
    """
    found: Intervals = {}
    name_before, before_ns = START, call.started_ns
    for name, ns in _moments(call, trace, batches):
        if ns < before_ns:
            raise TraceError(
                f"request {trace.request_id}: {name} ended {before_ns - ns} ns before "
                f"{name_before}; do client and server run on one machine?"
            )
        found[name] = found.get(name, 0.0) + (ns - before_ns) / 1000
        name_before, before_ns = name, ns
    return found


def _moments(call: Call, trace: Trace, batches: Batches) -> Iterator[tuple[str, int]]:
    """The end of every interval, in the order of time."""
    models = trace.members or [trace]
    yield "client.request", call.sent_ns
    yield "grpc.request", _at(trace, "GRPC_WAITREAD_END")
    for place, model in enumerate(models):
        began_ns = _at(model, "QUEUE_START")
        yield ("core.accept" if place == 0 else f"{models[place - 1].model}.output"), began_ns
        yield from _hop(model, batches)
    yield f"{models[-1].model}.output", _at(trace, "INFER_RESPONSE_COMPLETE")
    yield "core.send", _at(trace, "GRPC_SEND_START")
    yield "grpc.answer", call.received_ns
    yield "client.answer", call.ended_ns


def _hop(model: Trace, batches: Batches) -> Iterator[tuple[str, int]]:
    """One model: its queue, the way to its process, what happened there, the way back."""
    input_end_ns, output_ns = _at(model, "COMPUTE_INPUT_END"), _at(model, "COMPUTE_OUTPUT_START")
    yield f"{model.model}.queue", _at(model, "COMPUTE_START")
    yield f"{model.model}.input", input_end_ns
    for name, ns in batches.within(input_end_ns, output_ns):
        if name == START:
            yield f"{model.model}.there", ns
        else:
            own = name in ("read", "answer")  # of the adapter, in every process
            yield (f"{model.model}.{name}" if own else name), ns
    yield f"{model.model}.back", output_ns


def _at(trace: Trace, event: str) -> int:
    if event not in trace.at_ns:
        raise TraceError(
            f"request {trace.request_id}: the trace of {trace.model} has no {event}, only "
            f"{sorted(trace.at_ns)}"
        )
    return trace.at_ns[event]
