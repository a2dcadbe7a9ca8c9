"""What waits is counted at the server's metrics; the server itself is in tests/server."""

import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from cascade.triton.admission import Admission

PAGE = """# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="recommend",version="11"} 7
nv_inference_pending_request_count{model="recommend",version="1"} 100
"""


class Metrics(BaseHTTPRequestHandler):
    """A page as tritonserver's."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Metrics) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()


@pytest.fixture(autouse=True)
def _at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascade.triton.admission.LOOK_S", 0.0)


def refused(waiting: Admission, batch: int) -> int:
    """Requests that are refused before the next batch is computed."""
    count = 0
    while waiting.refuses(batch):
        count += batch
    return count


def test_what_is_too_much_is_refused_once(url: str) -> None:
    waiting = Admission("recommend", 1, most=60, processes=2, full=8, url=url)
    assert refused(waiting, 8) == 0
    waiting.look(8, 8)
    assert refused(waiting, 8) == 0  # may be gone in a moment
    waiting.look(8, 8)
    assert refused(waiting, 8) == 24  # half of the 40 is this process's, in whole batches
    assert refused(waiting, 8) == 0


def test_what_a_pause_left_behind_is_worked_off(url: str) -> None:
    waiting = Admission("recommend", 1, most=60, processes=2, full=8, url=url)
    for _ in range(3):
        waiting.look(8, 8)
        waiting.look(7, 7)  # not a full batch: nobody waits
        assert refused(waiting, 8) == 0


def test_the_server_is_not_asked_after_every_batch(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cascade.triton.admission.LOOK_S", 60.0)
    waiting = Admission("recommend", 1, most=60, processes=2, full=8, url=url)
    for _ in range(3):
        waiting.look(8, 8)
    assert refused(waiting, 8) == 0


def test_a_request_may_have_several_users(url: str) -> None:
    waiting = Admission("recommend", 1, most=60, processes=1, full=8, url=url)
    waiting.look(12, 3)
    waiting.look(12, 3)
    assert refused(waiting, 5) == 85  # 15 requests of four users may wait
    assert not waiting.refuses(1)


def test_few_enough_are_answered(url: str) -> None:
    for version, most in ((11, 7), (1, 0), (1, 100), (2, 5)):
        waiting = Admission("recommend", version, most, processes=1, full=1, url=url)
        for _ in range(2):
            waiting.look(64, 64)
        assert not waiting.refuses(1)


def test_a_limit_that_is_off_is_told_once(
    url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cascade.triton.admission.BLIND_S", 0.0)
    waiting = Admission("recommend", 1, most=60, processes=1, full=1, url=url)
    waiting.look(64, 64)
    assert not caplog.records
    there = waiting._server
    waiting._server = http.client.HTTPConnection("127.0.0.1", 9)
    for _ in range(3):
        waiting.look(64, 64)
    waiting._server = there
    for _ in range(3):
        waiting.look(64, 64)
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"no metrics at {url}: the limit of 60 users is off",
        f"metrics at {url} again: the limit of 60 users is on",
    ]


def test_where_nobody_can_tell_nothing_is_refused() -> None:
    for nowhere in ("http://127.0.0.1:9/metrics", ""):
        waiting = Admission("recommend", 1, most=1, processes=1, full=1, url=nowhere)
        waiting.look(64, 64)
        assert not waiting.refuses(1)
