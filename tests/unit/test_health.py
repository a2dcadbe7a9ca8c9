"""What the health check tells from the server's metrics."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from cascade.server import health

GAUGE = '{name}{{model="{model}",release="{release}"}} {value}\n'


@pytest.fixture
def told() -> Iterator[Callable[..., list[str]]]:
    """What is degraded, by metrics whose page is given, and the releases that are live."""
    page = b""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(page)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/metrics"

        def ask(text: bytes, *live: int) -> list[str]:
            nonlocal page
            page = text
            options = argparse.Namespace(url="127.0.0.1:1", metrics_url=url)
            return health._degraded(options, {*live})

        yield ask
        server.shutdown()


def gauges(*rows: tuple[str, str, int, float]) -> bytes:
    text = "".join(
        GAUGE.format(name=f"cascade_{name}", model=model, release=release, value=value)
        for name, model, release, value in rows
    )
    return f"HTTP/1.0 200 OK\r\n\r\n{text}".encode()


def test_every_model_of_the_newest_release_counts(told: Callable[..., list[str]]) -> None:
    releases = [("release", "rank", n, n) for n in (1, 2)]
    fine = [("log_ok", model, 2, 1.0) for model in ("rank", "retrieve")]
    assert told(gauges(*releases, *fine, ("log_ok", "rank", 1, 0.0))) == []
    assert told(gauges(*releases, *fine, ("log_ok", "prerank", 2, 0.0))) == [
        "a line for the server's log was lost (cascade_log_ok is 0)"
    ]
    store = [("store_ours", "retrieve", 2, 0.0), ("store_up", "retrieve", 2, 0.0)]
    assert len(told(gauges(*releases, *store))) == 2


def test_the_release_that_is_live_counts(told: Callable[..., list[str]]) -> None:
    """After a rollback, the newest release is not asked, and does not look at its deny list."""
    page = gauges(
        ("release", "rank", 1, 1),
        ("deny_list_ok", "retrieve", 1, 0.0),
        ("deny_list_ok", "retrieve", 2, 1.0),
    )
    assert len(told(page, 1)) == 1
    assert told(page, 2) == told(page) == told(page, 3) == []


@pytest.mark.parametrize("page", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.0 404 Not Found\r\n\r\n"])
def test_other_words_are_no_metrics(told: Callable[..., list[str]], page: bytes) -> None:
    [said] = told(page)
    assert said.startswith("no metrics at http://127.0.0.1:")


def test_the_metrics_of_something_else_are_none_of_a_cascade(
    told: Callable[..., list[str]],
) -> None:
    [said] = told(b"HTTP/1.0 200 OK\r\n\r\nprocess_cpu_seconds_total 3\n")
    assert said.startswith("no metrics of a cascade at")


def test_metrics_that_no_one_named_are_missed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def urlopen(url: str, timeout: float) -> None:
        if not url:
            raise ValueError("unknown url type")
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    [said] = health._degraded(argparse.Namespace(url="127.0.0.1:8001", metrics_url=None), set())
    assert said.startswith("no metrics at http://127.0.0.1:8002/metrics")
    assert health._degraded(argparse.Namespace(url="127.0.0.1:7001", metrics_url=None), set()) == []
