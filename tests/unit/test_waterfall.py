"""Moments whose intervals are known become these intervals, in any topology."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cascade.runtime import spans
from cascade.runtime.spans import START, Recorder
from perf.waterfall import OWNERS, between_processes, draw, meaning
from perf.waterfall_trace import Call, TraceError, intervals, read_traces

CALL = Call(0, 1_000, 90_000, 95_000)
EVENTS = ("QUEUE_START", "COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START")
RETRIEVE = [(START, 13_000), ("read", 14_000), ("encode", 16_000), ("encode", 17_000)]
RANK = [(START, 60_000), ("read", 61_000), ("rank.sort", 62_000), ("rank", 70_000)]


def batch(steps: list[tuple[str, int]], answered_ns: int) -> list[tuple[str, int]]:
    return [*steps, ("answer", answered_ns)]


BATCHES = [batch(RETRIEVE, 18_000), batch(RANK, 72_000)]


def entries(number: int, model: str, at_ns: dict[str, int], **head: Any) -> list[dict[str, Any]]:
    """What tritonserver writes: the head of a trace, then its events one by one."""
    stamps = [{"id": number, "timestamps": [{"name": n, "ns": ns}]} for n, ns in at_ns.items()]
    return [{"id": number, "model_name": model, "model_version": 1, **head}, *stamps]


def member(number: int, model: str, *at_ns: int) -> list[dict[str, Any]]:
    times = {"REQUEST_START": at_ns[0], **dict(zip(EVENTS, at_ns, strict=True))}
    return entries(number, model, times, parent_id=1, request_id="r")


FRAME = {
    "GRPC_WAITREAD_END": 5_000,
    "REQUEST_START": 6_000,
    "INFER_RESPONSE_COMPLETE": 80_000,
    "GRPC_SEND_START": 81_000,
}


@pytest.fixture
def ensemble(tmp_path: Path) -> Path:
    """Written as the server does it: members before their ensemble, and the last one first."""
    path = tmp_path / "trace.json"
    content = [
        *member(3, "rank", 50_000, 52_000, 55_000, 75_000),
        *member(2, "retrieve", 8_000, 10_000, 12_000, 20_000),
        *entries(1, "recommend", FRAME, request_id="r"),
        *entries(4, "recommend", FRAME),  # of nobody that counts
    ]
    path.write_text(json.dumps(content))
    return path


def test_an_ensemble_is_split_in_the_order_of_time(ensemble: Path) -> None:
    found = intervals(CALL, read_traces([ensemble])["r"], BATCHES)
    assert list(found.items()) == [
        ("client.request", 1),
        ("grpc.request", 4),
        ("core.accept", 3),
        ("retrieve.queue", 2),
        ("retrieve.input", 2),
        ("retrieve.there", 1),
        ("retrieve.read", 1),
        ("encode", 3),  # twice, as where a batch is cut
        ("retrieve.answer", 1),
        ("retrieve.back", 2),
        ("retrieve.output", 30),
        ("rank.queue", 2),
        ("rank.input", 3),
        ("rank.there", 5),
        ("rank.read", 1),
        ("rank.sort", 1),
        ("rank", 8),
        ("rank.answer", 2),
        ("rank.back", 3),
        ("rank.output", 5),
        ("core.send", 1),
        ("grpc.answer", 9),
        ("client.answer", 5),
    ]
    assert sum(found.values()) == CALL.us


def test_a_single_model_is_its_own_member(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    times = {**FRAME, **dict(zip(EVENTS, (8_000, 10_000, 12_000, 20_000), strict=True))}
    path.write_text(json.dumps(entries(1, "recommend", times, request_id="r")))
    found = intervals(CALL, read_traces([path])["r"], BATCHES)
    assert found["core.accept"] == 3
    assert found["recommend.output"] == 60
    assert sum(found.values()) == CALL.us


def test_requests_that_nobody_named_are_left_out(ensemble: Path) -> None:
    assert list(read_traces([ensemble])) == ["r"]


def test_what_does_not_fit_is_refused(ensemble: Path) -> None:
    trace = read_traces([ensemble])["r"]
    with pytest.raises(TraceError, match="CASCADE_MARKS"):
        intervals(CALL, trace, [])
    with pytest.raises(TraceError, match="CASCADE_MARKS"):
        intervals(CALL, trace, [batch(RETRIEVE, 21_000)])  # ran on after the answer
    with pytest.raises(TraceError, match="one machine"):
        intervals(Call(0, 7_000, 90_000, 95_000), trace, BATCHES)
    del trace.members[0].at_ns["COMPUTE_START"]
    with pytest.raises(TraceError, match="retrieve has no COMPUTE_START"):
        intervals(CALL, trace, BATCHES)


def test_what_lies_between_two_processes_is_told_apart() -> None:
    for name in ("grpc.request", "grpc.answer", "retrieve.there", "rank.back"):
        assert between_processes(name)
    for name in ("client.answer", "core.accept", "rank.answer", "rank", "search"):
        assert not between_processes(name)


def test_a_recorder_writes_the_batches_that_began(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "marks")
    for name in ("load", START, "read", START, "read", "answer"):
        recorder.end(name)
    recorder.write()
    recorder.write()  # nothing is left
    found = spans.read(tmp_path / "marks")
    assert [[name for name, _ in b] for b in found] == [[START, "read"], [START, "read", "answer"]]
    times = [ns for b in found for _, ns in b]
    assert times == sorted(times)


def test_marks_are_off_unless_asked_for(tmp_path: Path) -> None:
    code = (
        "from cascade.runtime import spans\n"
        "step = spans.traced('tower', str.upper)\n"
        "spans.end(spans.START); print(step('a'), step is str.upper); spans.write()"
    )
    for folder, unwrapped in (("", "True"), (str(tmp_path / "on"), "False")):
        environment = {**os.environ, spans.VARIABLE: folder}
        ran = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert ran.stdout.split() == ["A", unwrapped], ran.stderr
    (found,) = spans.read(tmp_path / "on")
    assert [name for name, _ in found] == [START, "tower"]


def test_the_picture_knows_whose_every_piece_is(tmp_path: Path, ensemble: Path) -> None:
    parts = intervals(CALL, read_traces([ensemble])["r"], BATCHES)
    assert {meaning(name)[0] for name in parts} <= OWNERS.keys()
    assert meaning("rank.queue")[0] == "Triton"
    assert meaning("rank.there")[0].startswith("hop")
    assert meaning("rank.sort")[0] == "rank"
    draw({"1 user": parts}, "time", tmp_path / "made" / "waterfall.png")
    assert (tmp_path / "made" / "waterfall.png").read_bytes().startswith(b"\x89PNG")
