"""What a comparison concludes from its lines, and how servers are asked and checked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import deserialize_bytes_tensor

from perf.compare_report import curve_plot, key_figures, loop_table
from perf.contenders.servers import JSON, TRITON, difference
from perf.harness.payload import Payload

USERS = Payload(
    np.array([[1.5, np.nan], [3, 4]], np.float32),
    np.array([[b"a", "ö|b".encode()], [b"", b"c"]], object),
    "test",
)


def line(contender: str, value: float, rate: float, **other: Any) -> dict[str, Any]:
    """A line of a closed loop, unless told otherwise."""
    values = {"mode": "concurrency", "round": 0, "batch": 1, "share": None}
    values |= {"p50_ms": 2.0, "p99_ms": 4.0, "requests": 100, "sent": 100, "failed": 0, "late": 0}
    values |= {"generator_us": 30.0}
    values |= {"topology": ""}
    return {**values, "contender": contender, "value": value, "throughput": rate, **other}


def closed(number: int, faster: float) -> list[dict[str, Any]]:
    """A round: the topology `fused` is so much faster than FastAPI at 16."""
    common = {"round": number}
    return [
        line("bound", 2, 1000, **common),
        line("bound", 2, 1250, batch=4, **common),
        line("bound_plain", 2, 500, **common),
        line("fastapi", 1, 300, p50_ms=3.0, **common),
        line("fastapi", 16, 400, **common),
        line("fused", 1, 310, p50_ms=2.4, topology="fused", **common),
        line("fused", 16, 400 * faster, topology="fused", **common),
        line("ensemble", 16, 440, **common),
        line("flat", 16, 200, topology="fused", **common),
    ]


def half(number: int, p99_ms: float) -> dict[str, Any]:
    found = {"mode": "rate", "share": 0.5, "round": number, "p99_ms": p99_ms, "late": number}
    return line("fused", 400, 399, topology="fused", failed=1, **found)


LINES = [
    *(one for number, faster in enumerate((1.9, 2.0, 2.5)) for one in closed(number, faster)),
    *(half(number, p99_ms) for number, p99_ms in enumerate((5.0, 6.0, 40.0))),
]


def test_figures_are_medians_of_rounds_with_their_spread() -> None:
    found = key_figures(LINES)
    spread = found.pop("spread")
    assert found == {
        "best": "fused",
        "vs_fastapi_1": 1.0333,
        "vs_fastapi_16": 2.0,
        "p50_vs_fastapi_1": 0.8,
        "ensemble_vs_fastapi_16": 1.1,
        "generator_us": 30.0,
        "vs_bound": 0.8,
        "vs_bound_batched": 0.64,
        "bound_batch": 4,
        "tuned_vs_split": 2.0,
        "vs_flat": 4.0,
        "p50_ms_half": 2.0,
        "p99_ms_half": 6.0,
        "p99_over_p50_half": 3.0,
        "late": 3,
        "late_percent": 1.0,
        "failed": 3,
        "failed_beyond_half": 0,
    }
    assert spread["vs_fastapi_16"] == [1.9, 2.5]
    assert spread["tuned_vs_split"] == [2.0, 2.0]


def test_what_was_not_measured_is_absent() -> None:
    without = [one for one in LINES if one["contender"] not in ("flat", "bound_plain", "fastapi")]
    found = key_figures(without)
    assert not {"vs_flat", "tuned_vs_split", "vs_fastapi_16", "p50_vs_fastapi_1"} & set(found)
    assert found["vs_bound"] == 0.8
    assert key_figures([]) == {"failed": 0, "failed_beyond_half": 0, "spread": {}}


def test_failures_of_runs_without_any_answer_count() -> None:
    assert key_figures([*LINES, line("flat", 16, 0, requests=0, failed=7)])["failed"] == 10


def test_failures_beyond_half_are_told_apart() -> None:
    found = key_figures([*LINES, line("fused", 700, 600, mode="rate", share=0.9, failed=5)])
    assert (found["failed"], found["failed_beyond_half"]) == (3, 5)


def test_tables_and_plots_take_what_there_is(tmp_path: Path) -> None:
    closed_loop = loop_table(LINES, "concurrency")
    assert "| fused " in closed_loop
    assert "bound, batch 4" in closed_loop
    assert "760 – 1000" in closed_loop
    assert "| fused       |             0.5 |" in loop_table(LINES, "rate")
    curve_plot(LINES, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert loop_table([], "concurrency").count("\n") == 1


def parts(request: bytes) -> tuple[str, dict[str, str], bytes]:
    head, body = request.split(b"\r\n\r\n", 1)
    first, *lines = head.decode().split("\r\n")
    headers = dict(one.split(": ", 1) for one in lines)
    assert int(headers["Content-Length"]) == len(body)
    return first, headers, body


def test_a_web_framework_is_sent_json() -> None:
    first, _, body = parts(JSON.requests(USERS)[0])
    assert first == "POST /recommend HTTP/1.1"
    assert json.loads(body) == {"dense": [1.5, None], "categorical": ["a", "ö|b"]}
    ids, scores = JSON.answer({}, b'{"item_ids":[7],"scores":[0.5]}')
    assert (ids.tolist(), scores.tolist()) == ([7], [0.5])
    named = JSON.answer({}, b'{"item_ids":["a",""],"scores":[0.5,0]}')
    assert difference(named, (np.array([b"a", b""], object), named[1])) is None
    assert difference(named, (np.array([b"b", b""], object), named[1])) is None  # an equal
    assert difference(named, (np.array([b"b", b"a"], object), named[1])) is not None


def test_triton_is_sent_tensors_as_bytes() -> None:
    first, headers, body = parts(TRITON.requests(USERS)[1])
    assert first == "POST /v2/models/recommend/infer HTTP/1.1"
    length = int(headers["Inference-Header-Content-Length"])
    header, tensors = json.loads(body[:length]), body[length:]
    assert [i["shape"] for i in header["inputs"]] == [[1, 2], [1, 2]]
    assert np.frombuffer(tensors[:8], np.float32).tolist() == [3, 4]
    assert deserialize_bytes_tensor(tensors[8:]).tolist() == [b"", b"c"]


EXPECTED = np.array([5, 3, 9, -1]), np.array([0.9, 0.5, 0.5, 0], np.float32)


@pytest.mark.parametrize(
    ("ids", "scores", "wrong"),
    [
        ([5, 3, 9, -1], [0.9, 0.5, 0.5, 0], None),
        ([5, 9, 3, -1], [0.9, 0.5, 0.5, 0], None),
        ([5, 9, 4, -1], [0.9, 0.5, 0.5, 0], None),  # as good as the last
        ([3, 5, 9, -1], [0.9, 0.5, 0.5, 0], "item 3"),
        ([5, 3, 3, -1], [0.9, 0.5, 0.5, 0], "twice"),
        ([5, 3, 9, -1], [0.8, 0.5, 0.5, 0], "scores"),
        ([5, 3, 9, 8], [0.9, 0.5, 0.5, 0], "items"),
        ([5, 3, 9], [0.9, 0.5, 0.5], "3 items came"),
    ],
)
def test_answers_may_differ_in_ties_alone(ids: Any, scores: Any, wrong: str | None) -> None:
    found = difference((np.array(ids), np.array(scores, np.float32)), EXPECTED)
    assert found is None if wrong is None else wrong in (found or "")
