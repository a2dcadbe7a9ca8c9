"""Users who keep asking while something is done to the server, and what became of each request."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from cascade.spec import ENSEMBLE
from perf.payload import Payload
from perf.waterfall_client import request_of

OK = ""
WRONG = "wrong answer"
SCORES_DIFFER = 1e-4  # what the order of additions in another batch may do
REFUSED_S = 0.02  # the wait after a refusal: who asks again at once only heats the processor


@dataclass(frozen=True)
class Outcome:
    """One request; times in seconds of the monotonic clock. `error` is empty where it went well."""

    sent_s: float
    done_s: float
    error: str


class Traffic:
    """So many users at once, each asking again as soon as there is an answer, while the block runs.

    Args:
        users: what they send, by turns.
        pause_s: what each waits between an answer and the next request.
        check: compare every answer with the one that the server gave before the block.
    """

    def __init__(
        self,
        url: str,
        users: Payload,
        at_once: int = 8,
        timeout_s: float = 1.0,
        pause_s: float = 0.0,
        check: bool = False,
    ) -> None:
        self._client = grpc.InferenceServerClient(url)
        self._timeout_s, self._pause_s = timeout_s, pause_s
        rows = (slice(row, row + 1) for row in range(len(users)))
        self._requests = [request_of(users.dense[r], users.categorical[r]) for r in rows]
        self._expected = [self._scores(inputs) for inputs in self._requests] if check else []
        self._ended = threading.Event()
        self._outcomes: list[Outcome] = []
        self._threads = [
            threading.Thread(target=self._keep_asking, args=(n, at_once)) for n in range(at_once)
        ]

    @property
    def outcomes(self) -> list[Outcome]:
        """So far, in the order of their ends."""
        return list(self._outcomes)

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._client.close()

    def _keep_asking(self, first: int, step: int) -> None:
        number = first
        while not self._ended.is_set():
            sent_s = time.monotonic()
            error = self._ask(number % len(self._requests))
            self._outcomes.append(Outcome(sent_s, time.monotonic(), error))
            self._ended.wait(self._pause_s if error == OK else max(REFUSED_S, self._pause_s))
            number += step

    def _ask(self, user: int) -> str:
        try:
            scores = self._scores(self._requests[user])
        except InferenceServerException as error:
            return f"{error.status()}: {error.message()}"
        if not self._expected:
            return OK
        expected = self._expected[user]
        return OK if np.allclose(scores, expected, rtol=0, atol=SCORES_DIFFER) else WRONG

    def _scores(self, inputs: Any) -> Any:
        answer = self._client.infer(ENSEMBLE, inputs, client_timeout=self._timeout_s)
        return answer.as_numpy("scores")
