"""The log of requests: a line of JSON each, in the server's log.

A client sends an id with its request, Triton passes it to every stage, and each line contains it:
one search finds a request in the client's errors, in every stage and in the traces.

Problems are always logged. With the model's config parameter `log` or the variable CASCADE_LOG set
to `json`, every request is, with the time of its batch in this stage. A line that the log does not
take is lost, which a metric tells; its request is answered all the same.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence

from cascade.spec import ConfigError
from cascade.telling import tell

VARIABLE = "CASCADE_LOG"
EVERY_REQUEST = "json"
LONGEST = 2000  # characters of a text, so that a pipe takes a line at once


def wanted(parameters: Mapping[str, str]) -> bool:
    """Whether every request is to be logged, by a model's config parameters and the environment.

    Raises ConfigError: the value is neither `json` nor empty.
    """
    value = parameters.get("log", os.environ.get(VARIABLE, ""))
    if value not in ("", EVERY_REQUEST):
        raise ConfigError(f"log is {value!r}; expected {EVERY_REQUEST!r} or nothing")
    return value == EVERY_REQUEST


class RequestLog:
    """The lines of one model. Without `every_request`, the result of `wanted`, the caller need not
    collect ids. `ok`: whether the log took the last lines."""

    ok = True

    def __init__(self, model: str, release: int, every_request: bool) -> None:
        self.every_request = every_request
        self._head = {"model": model, "release": release}

    def problem(self, request_id: str, level: str, error: str, traceback: str = "") -> None:
        """One request without an answer. `level` is "warning" if the request is invalid."""
        facts = {"level": level, "request_id": request_id, "error": error[:LONGEST]}
        self._write([facts | ({"traceback": traceback[-LONGEST:]} if traceback else {})])

    def answered(self, requests: Sequence[tuple[str, int]], seconds: float) -> None:
        """The requests of one batch, (id, users) each."""
        batch = sum(users for _, users in requests)
        shared = {"level": "info", "batch_users": batch, "stage_ms": round(1000 * seconds, 3)}
        self._write([{**shared, "request_id": name, "users": users} for name, users in requests])

    def _write(self, lines: Sequence[Mapping[str, object]]) -> None:
        head = {"time": round(time.time(), 6), **self._head}
        text = "".join(json.dumps({**head, **line}) + "\n" for line in lines)
        self.ok = tell(text)
