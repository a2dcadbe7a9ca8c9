"""Clients that keep asking while something happens to the server, and each request's outcome."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from cascade.client import channel
from cascade.spec import ENSEMBLE
from perf.harness.payload import Payload

OK = ""
WRONG = "wrong answer"
SCORES_DIFFER = 1e-4  # another batch adds numbers in another order
REFUSED_S = 0.02  # the wait after a rejection: asking again at once only heats the processor


@dataclass(frozen=True)
class Outcome:
    """One request; times in seconds of the monotonic clock. `error` is empty where it went well."""

    sent_s: float
    done_s: float
    error: str


@contextmanager
def traffic(
    url: str,
    users: Payload,
    at_once: int = 8,
    timeout_s: float = 1.0,
    pause_s: float = 0.0,
    check: bool = False,
) -> Iterator[list[Outcome]]:
    """Send requests while the block runs -> the list that their outcomes are appended to, in the
    order in which they end.

    Args:
        users: the clients send these by turns.
        at_once: clients; each asks again as soon as it has its answer.
        pause_s: wait of each client between an answer and its next request.
        check: compare every answer with the server's answer before the block.
    """
    client = channel.connect(url)  # as clients do: tritonclient's own waits long for a restart
    requests = [_inputs(users, row) for row in range(len(users))]
    outcomes: list[Outcome] = []
    ended = threading.Event()

    def scores(user: int) -> Any:
        answer = client.infer(ENSEMBLE, requests[user], client_timeout=timeout_s)
        return answer.as_numpy("scores")

    expected = [scores(user) for user in range(len(users))] if check else []

    def ask(user: int) -> str:
        try:
            found = scores(user)
        except InferenceServerException as error:
            return f"{error.status()}: {error.message()}"
        right = not check or np.allclose(found, expected[user], rtol=0, atol=SCORES_DIFFER)
        return OK if right else WRONG

    def keep_asking(number: int) -> None:
        while not ended.is_set():
            sent_s = time.monotonic()
            error = ask(number % len(requests))
            outcomes.append(Outcome(sent_s, time.monotonic(), error))
            ended.wait(pause_s if error == OK else max(REFUSED_S, pause_s))
            number += at_once

    with client, ThreadPoolExecutor(at_once) as pool:
        clients = [pool.submit(keep_asking, first) for first in range(at_once)]
        try:
            yield outcomes
        finally:
            ended.set()
        for each in clients:
            each.result()


def _inputs(users: Payload, row: int) -> list[grpc.InferInput]:
    """The tensors of a request for one user."""
    inputs = []
    for name, dtype in (("dense", "FP32"), ("categorical", "BYTES")):
        values = getattr(users, name)[row : row + 1]
        inputs.append(grpc.InferInput(name, values.shape, dtype))
        inputs[-1].set_data_from_numpy(values)
    return inputs
