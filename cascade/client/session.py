"""A call from its first request to its result: the layout, the retries, the deadline.

The coroutines here are the one copy of this logic for both clients. `AsyncRecommender` awaits them;
`Recommender` gives them a transport that blocks, so that they never suspend (`run`).

gRPC's own retry policy cannot replace `_insist`: it stops after 5 tries whatever it is set to, does
not know NOT_FOUND from a model that is being loaded, and does not tell how often it tried.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from tritonclient.utils import InferenceServerException

from cascade import encoding
from cascade.client import errors
from cascade.client.layout import Layout, tasks_of
from cascade.client.plan import Answer, Call, Recommendation, Request, merge, plan
from cascade.client.split import LIVE
from cascade.client.transport import Transport
from cascade.spec import ALLOW, ENSEMBLE, EXCLUDE

Result = TypeVar("Result")
LAYOUT_AGE_S = 30.0  # after which the server is asked for it again


@dataclass(frozen=True)
class Retry:
    """How to ask again when the server is unavailable: exponential backoff with full jitter.

    Before try n + 1 the client waits for a random time between 0 and `first_s` * 2 ** (n - 1), at
    most `longest_s`, so that rejected clients do not all return at once (M. Brooker, "Exponential
    Backoff And Jitter", AWS Architecture Blog, 2015); and never past the deadline of the call.
    """

    tries: int = 6
    first_s: float = 0.05
    longest_s: float = 1.0

    def __post_init__(self) -> None:
        if self.tries < 1 or self.first_s < 0 or self.longest_s < 0:
            raise ValueError(f"retries need at least one try and times from 0 s on; got {self}")

    def longest_wait_s(self, tries: int) -> float:
        """Upper end of the wait after `tries` failures."""
        return float(min(self.longest_s, self.first_s * 2 ** (tries - 1)))


class Session:
    """All calls of one client; the arguments are a client's. `clock` gives seconds, `jitter` draws
    uniformly between its two arguments."""

    def __init__(
        self,
        transport: Transport,
        deadline_s: float,
        retry: Retry | None = None,
        model: str = ENSEMBLE,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        _check_deadline(deadline_s)
        self._transport, self._model = transport, model
        self._deadline_s, self._retry = deadline_s, retry or Retry()
        self._clock, self._jitter = clock, jitter
        self._layout: Layout | None = None
        self._tasks: dict[int, tuple[str, ...]] = {}  # by release
        self._learnt_s = -math.inf

    async def ask(
        self, request: Request, deadline_s: float | None = None, request_id: str | None = None
    ) -> list[Recommendation]:
        """One recommendation per user. Users beyond the largest batch go out in several calls, one
        after the other, with one id and one deadline."""
        request_id = uuid.uuid4().hex if request_id is None else request_id
        try:
            end = self._end(deadline_s)
            return await self._answers(request, end, request_id)
        except errors.RecommendError as error:
            error.request_id = request_id
            raise
        except encoding.InvalidInput as error:
            invalid = errors.InvalidInput(str(error))
            invalid.request_id = request_id
            raise invalid from error.__cause__

    async def _answers(self, request: Request, end: float, request_id: str) -> list[Recommendation]:
        layout = await self._current_layout(end)
        calls = plan(request, layout)
        try:
            answers = [await self._infer(call, end, request_id) for call in calls]
            pairs = zip(calls, answers, strict=True)
            tasks = [await self._tasks_of(call, answer, end) for call, answer in pairs]
            return merge(calls, answers, tasks)
        except errors.InvalidInput:
            if layout.filtered or not any(call.tensors.keys() & {EXCLUDE, ALLOW} for call in calls):
                raise
            # A newer release may take filters by another model.
            self._learnt_s = -math.inf
            if not (await self._current_layout(end)).filtered:
                raise
        return await self._answers(request, end, request_id)

    async def _tasks_of(self, call: Call, answer: Answer, end: float) -> tuple[str, ...]:
        """The names of the tasks of an answer: those of the release that gave it, of which the
        server is asked once. Empty where they cannot be learnt: the answer is good without."""
        if answer.task_scores is None or answer.release is None:
            return ()
        release = int(answer.release[0, 0])
        for ending in dict.fromkeys((call.ending, LIVE)):
            if release in self._tasks:
                break
            left_s = max(0.001, end - self._clock())
            with contextlib.suppress(InferenceServerException):
                model = f"{call.model or self._model}{ending}"
                pinned, names = tasks_of(await self._transport.config(model, left_s))
                if pinned is not None:
                    self._tasks[pinned] = names
        return self._tasks.get(release, ())

    async def layout(self, deadline_s: float | None = None) -> Layout:
        """The layout of a request; the server is asked for it once in a while."""
        return await self._current_layout(self._end(deadline_s))

    async def close(self) -> None:
        await self._transport.close()

    async def _current_layout(self, end: float) -> Layout:
        if self._layout is None:
            self._layout = await self._insist(self._ask_layout, end)
            self._learnt_s = self._clock()
        elif self._clock() >= self._learnt_s + LAYOUT_AGE_S:
            # The share of the challenger may have changed. When the server cannot say so now, the
            # known layout serves for another while.
            self._learnt_s = self._clock()
            with contextlib.suppress(InferenceServerException, errors.RecommendError):
                self._layout = await self._ask_layout(max(0.001, end - self._clock()))
        return self._layout

    async def _ask_layout(self, timeout_s: float) -> Layout:
        return Layout.from_config(await self._transport.config(self._model, timeout_s))

    async def _infer(self, call: Call, end: float, request_id: str) -> Answer:
        """The answer of the release that the call is for; of the live one where the other is no
        longer served."""

        def ask(timeout_s: float, ending: str = call.ending) -> Awaitable[Answer]:
            model = f"{call.model or self._model}{ending}"
            return self._transport.infer(model, call.tensors, timeout_s, request_id)

        try:
            return await self._insist(ask, end)
        except errors.RecommendError as error:
            if type(error) is not errors.RecommendError or call.ending == LIVE:
                raise
        self._learnt_s = -math.inf
        return await self._insist(lambda timeout_s: ask(timeout_s, LIVE), end)

    async def _insist(self, ask: Callable[[float], Awaitable[Result]], end: float) -> Result:
        """Ask until there is an answer, the tries are used up or the next would be too late."""
        began = self._clock()
        for tries in range(1, self._retry.tries + 1):
            left_s = end - self._clock()
            if left_s <= 0:
                raise errors.DeadlineExceeded("the deadline passed before the server was asked")
            try:
                return await ask(left_s)
            except InferenceServerException as error:
                if not errors.is_transient(error):
                    raise errors.from_server(error) from error
                failure = error
            wait_s = self._jitter(0.0, self._retry.longest_wait_s(tries))
            if tries == self._retry.tries or self._clock() + wait_s >= end:
                break
            await self._transport.sleep(wait_s)
        said, waited_s = errors.server_message(failure), self._clock() - began
        raise errors.Unavailable(said, tries, waited_s) from failure

    def _end(self, deadline_s: float | None) -> float:
        if deadline_s is not None:
            _check_deadline(deadline_s)
        return self._clock() + (self._deadline_s if deadline_s is None else deadline_s)


def run(call: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine over a transport that blocks: it never suspends, so one step completes it."""
    try:
        call.send(None)
    except StopIteration as end:
        result: Result = end.value
        return result
    raise AssertionError("a blocking transport suspended")


def _check_deadline(deadline_s: float) -> None:
    if not 0 < deadline_s < float("inf"):
        raise ValueError(f"a deadline is a positive number of seconds; got {deadline_s}")
