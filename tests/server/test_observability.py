"""What a server tells of its requests: metrics, log lines and traces, all of the same requests."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cascade.client import InvalidInput, Recommender
from cascade.runtime import spans
from cascade.server import arguments
from cascade.server.launcher import Server
from cascade.spec import STAGES
from cascade.triton import request_log

PATIENCE_S = 30.0
GOOD, BAD = "the-good-request", "the-bad-request"


@dataclass
class Collector:
    """What an OpenTelemetry collector is sent."""

    url: str
    received: list[bytes] = field(default_factory=list)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        got = Collector(f"http://127.0.0.1:{server.server_address[1]}/v1/traces")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield got
        server.shutdown()


@pytest.fixture(scope="module")
def server(criteo: Any, collector: Collector) -> Iterator[Server]:
    """Has answered a good and a bad request."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(request_log.VARIABLE, "json")
        patch.setenv("http_proxy", "http://127.0.0.1:9")  # which leads nowhere
        patch.delenv("no_proxy", raising=False)
        running = Server(criteo.repository, extra_args=[*arguments.traces(collector.url, 1)])
        running.start()
    try:
        with Recommender(running.url, deadline_s=30) as recommender:
            unknown = {"C1": "misspelt", "C2": "Misspelt"}
            user = {**criteo.users[0], **unknown, "C3": "C3-1"}
            found = recommender.recommend(user, request_id=GOOD)
            assert found.unknown_values == 2 + sum(
                value.endswith("-20")
                for name, value in user.items()
                if isinstance(value, str) and name not in unknown
            )
            with pytest.raises(InvalidInput) as refused:
                recommender.recommend({"C1": "x" * 9000}, request_id=BAD)
        assert refused.value.request_id == BAD
        yield running
    finally:
        running.stop()


def until(find: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := find()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.1)
    return found


def lines(log: Path, request_id: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [line for line in found if line["request_id"] == request_id]


def test_every_stage_repeats_the_request_id(server: Server) -> None:
    told = until(lambda: len(lines(server.log_path, GOOD)) == 3 and lines(server.log_path, GOOD))
    assert [line["model"] for line in told] == [*STAGES]
    for line in told:
        assert (line["level"], line["release"], line["users"]) == ("info", 1, 1)
        assert line["stage_ms"] > 0


def test_a_problem_is_one_line(server: Server) -> None:
    problem = until(lambda: lines(server.log_path, BAD))[0]
    assert (problem["level"], problem["model"], problem["release"]) == ("warning", "retrieve", 1)
    assert "feature C1: a value of 9000 bytes came" in problem["error"]


Key = tuple[str, frozenset[tuple[str, str]]]


def key(name: str, model: str, **more: str) -> Key:
    labels = {"model": model, "release": "1", **more}
    return f"cascade_{name}", frozenset(labels.items())


def metrics(server: Server) -> dict[Key, float]:
    with urllib.request.urlopen(server.metrics_url, timeout=30) as page:
        text = page.read().decode()
    found = re.findall(r"^(cascade_\w+)\{([^}]*)\} (\S+)$", text, re.MULTILINE)
    return {
        (name, frozenset(re.findall(r'(\w+)="([^"]*)"', labels))): float(value)
        for name, labels, value in found
    }


def test_the_metrics_count(server: Server) -> None:
    users = [key("batch_users_total", stage) for stage in STAGES]
    found = until(lambda: (m := metrics(server)) and all(m.get(u, 0) >= 2 for u in users) and m)
    for stage in STAGES:
        assert found[key("release", stage)] == 1
        assert found[key("items", stage, stage=stage)] == 1500
        assert found[key("errors_total", stage, kind="stage")] == 0
        batches = found[key("batch_seconds_count", stage)]
        assert batches == found[key("batch_seconds_bucket", stage, le="+Inf")]
        assert found[key("batch_seconds_sum", stage)] > 0
    assert found[key("errors_total", "retrieve", kind="input")] == 1
    unknown = [
        found[key("unknown_values_total", "retrieve", stage="retrieve", feature=name)]
        for name in ("C1", "C2", "C3")
    ]
    assert unknown == [1, 1, 0]
    # The probe at the start, and the good request.
    for stage, size in zip(STAGES, (1000, 200, 10), strict=True):
        assert found[key("kept_total", stage, stage=stage)] == 2 * size
    for stage in STAGES[1:]:
        assert found[key("not_finite_total", stage, stage=stage)] == 0


def test_the_traces_arrive(server: Server, collector: Collector) -> None:
    """Spans of the ensemble and of every member, as OTLP's protobuf."""
    until(lambda: all(s.encode() in b"".join(collector.received) for s in STAGES))
    assert GOOD.encode() in b"".join(collector.received)


def test_an_unknown_kind_of_log_is_refused() -> None:
    assert request_log.wanted({"log": "json"})
    assert not request_log.wanted({"log": ""})
    with pytest.raises(ValueError, match="'xml'; expected 'json' or nothing"):
        request_log.wanted({"log": "xml"})


def test_requests_are_answered_while_nothing_can_be_told(
    criteo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log's disk is full, the folder of the spans cannot be made, the collector is away, and
    an id is no text."""
    (tmp_path / "file").touch()
    monkeypatch.setenv(request_log.VARIABLE, "json")
    monkeypatch.setenv(spans.VARIABLE, str(tmp_path / "file" / "below"))
    log, away = Path("/dev/full"), arguments.traces("http://127.0.0.1:9/v1/traces", 1)
    with Server(criteo.repository, log=log, extra_args=[*away]) as server:
        with Recommender(server.url, deadline_s=30) as recommender:
            with ThreadPoolExecutor(8) as crowd:
                good = [crowd.submit(recommender.recommend, criteo.users[0]) for _ in range(40)]
                bad = [crowd.submit(recommender.recommend, {"C1": "x" * 9000}) for _ in range(40)]
            assert all(len(answer.result().item_ids) == 10 for answer in good)
            assert all(isinstance(answer.exception(), InvalidInput) for answer in bad)
        for context, status in (("{}", 200), ("[]", 400)):
            assert by_http(server, context, request_id=b"\xff") == status
        assert server.stop() == 0


def by_http(server: Server, context: str, request_id: bytes) -> int:
    """Ask with an id of any bytes -> the status of the answer."""
    tensor = {"name": "context", "shape": [1, 1], "datatype": "BYTES", "data": [context]}
    body = json.dumps({"id": "ID", "inputs": [tensor]}).encode().replace(b"ID", request_id)
    url = f"http://{server.http_url}/v2/models/recommend_filtered/infer"
    try:
        with urllib.request.urlopen(url, body, timeout=PATIENCE_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
