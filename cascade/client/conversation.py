"""What a client says to the server and when, without any input or output.

A dialogue is a generator: it yields the next step (ask for the configuration, ask for items,
wait), is sent the outcome or thrown the failure, and returns the result. The sync and the asyncio
client differ only in how they perform a step, and the retries can be tested without a network.
"""

from __future__ import annotations

import math
import random
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy.typing as npt
from tritonclient.utils import InferenceServerException

from cascade.client import errors, filters, split
from cascade.client.errors import InvalidInput
from cascade.client.filters import Allow, Exclude
from cascade.client.layout import Answer, Layout, Recommendation, User, UserId, recommendations
from cascade.client.split import Key
from cascade.spec import RECOMMEND_USER

Result = TypeVar("Result")
LAYOUT_AGE_S = 30.0  # after which the server is asked again


@dataclass(frozen=True)
class Retry:
    """How to ask again when the server is unavailable: exponential backoff with full jitter.

    Before try n + 1 the client waits for a random time between 0 and `first_s` * 2 ** (n - 1), at
    most `longest_s`, so that the clients of a server that refused them do not all return at once
    (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015). It never waits past
    the deadline of the call.
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


@dataclass(frozen=True)
class AskConfig:
    """Ask for the configuration of the model; the outcome is its protobuf message."""

    timeout_s: float


@dataclass(frozen=True, eq=False)
class AskItems:
    """Ask for the items of B users; the outcome is an `Answer`.

    Args:
        tensors: the inputs by name, [B, ...] each: float32, or object for bytes.
        model: which one; None: what the client was made for.
        ending: of the model's name, where a share of the users has another release.
    """

    tensors: Mapping[str, npt.NDArray[Any]]
    timeout_s: float
    request_id: str = ""
    model: str | None = None
    ending: str = split.LIVE


@dataclass(frozen=True)
class Wait:
    """Do nothing for a while."""

    seconds: float


Step = AskConfig | AskItems | Wait
Dialogue = Generator[Step, Any, Result]


class Conversation:
    """Everything that a client knows and decides.

    Args:
        deadline_s: longest time for a call, its retries included.
        retry: how to ask again.
        clock: seconds on a monotonic clock.
        jitter: draws uniformly between its two arguments.
    """

    def __init__(
        self,
        deadline_s: float,
        retry: Retry,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        _check_deadline(deadline_s)
        self._deadline_s = deadline_s
        self._retry = retry
        self._clock = clock
        self._jitter = jitter
        self._layout: Layout | None = None
        self._learnt_s = -math.inf

    def layout(self, deadline_s: float | None = None) -> Dialogue[Layout]:
        """The layout of a request; the server is asked for it once."""
        return (yield from self._learn(self._end(deadline_s)))

    def recommend_many(
        self,
        users: Sequence[User],
        deadline_s: float | None = None,
        request_id: str | None = None,
        exclude: Sequence[Exclude] | None = None,
        allow: Sequence[Allow] | None = None,
        keys: Sequence[Key] | None = None,
    ) -> Dialogue[list[Recommendation]]:
        """One recommendation per user. What does not fit in one request goes out in several, one
        after the other; the deadline and the id are for all of them."""

        def tensors(layout: Layout) -> dict[str, npt.NDArray[Any]]:
            dense, categorical = layout.arrays(users)
            columns = filters.columns(layout, len(users), exclude, allow)
            return {"dense": dense, "categorical": categorical, **columns}

        return (yield from self._ask_about(tensors, deadline_s, request_id, keys))

    def recommend_users(
        self,
        user_ids: Sequence[UserId],
        contexts: Sequence[User | None] | None = None,
        deadline_s: float | None = None,
        request_id: str | None = None,
        exclude: Sequence[Exclude] | None = None,
        allow: Sequence[Allow] | None = None,
    ) -> Dialogue[list[Recommendation]]:
        """The same for users that the server knows by id."""

        def tensors(layout: Layout) -> dict[str, npt.NDArray[Any]]:
            if contexts is not None and len(contexts) != len(user_ids):
                raise InvalidInput(f"{len(contexts)} contexts came for {len(user_ids)} users")
            said = any(contexts or ())
            context = {"context": layout.contexts(contexts)} if contexts and said else {}
            columns = filters.columns(layout, len(user_ids), exclude, allow)
            return {"user_id": layout.user_ids(user_ids), **context, **columns}

        ask = self._ask_about(tensors, deadline_s, request_id, user_ids, RECOMMEND_USER)
        return (yield from ask)

    def _ask_about(
        self,
        tensors: Callable[[Layout], dict[str, npt.NDArray[Any]]],
        deadline_s: float | None,
        request_id: str | None,
        keys: Sequence[Key] | None,
        model: str | None = None,
    ) -> Dialogue[list[Recommendation]]:
        """What the users of these tensors get, in as many requests as it takes."""
        request_id = uuid.uuid4().hex if request_id is None else request_id
        results: dict[int, Recommendation] = {}
        try:
            end = self._end(deadline_s)
            layout = yield from self._learn(end)
            whole = tensors(layout)
            users = min(map(len, whole.values()))
            for ending, places in split.arms(keys, users, layout.share):
                for start in range(0, len(places), layout.max_batch_size):
                    some = places[start : start + layout.max_batch_size]
                    part = {name: values[some] for name, values in whole.items()}
                    ask = partial(AskItems, part, request_id=request_id, model=model)
                    answer = yield from self._insist_on_one(ask, ending, end)
                    found = recommendations(answer, len(some))
                    results.update(zip(some.tolist(), found, strict=True))
        except errors.RecommendError as error:
            error.request_id = request_id
            raise
        return [results[user] for user in range(users)]

    def _insist_on_one(
        self, ask: Callable[..., AskItems], ending: str, end: float
    ) -> Dialogue[Answer]:
        """Ask the model of that ending; the live one where there is no other any more."""
        try:
            answer: Answer = yield from self._insist(partial(ask, ending=ending), end)
            return answer
        except errors.RecommendError as error:
            if type(error) is not errors.RecommendError or ending == split.LIVE:
                raise
            self._learnt_s = -math.inf
            again: Answer = yield from self._insist(ask, end)
            return again

    def _end(self, deadline_s: float | None) -> float:
        if deadline_s is not None:
            _check_deadline(deadline_s)
        return self._clock() + (self._deadline_s if deadline_s is None else deadline_s)

    def _learn(self, end: float) -> Dialogue[Layout]:
        if self._layout is None:
            self._layout = Layout.from_config((yield from self._insist(AskConfig, end)))
            self._learnt_s = self._clock()
        elif self._clock() >= self._learnt_s + LAYOUT_AGE_S:
            # Has the split of the users changed? That it could not be told now does no harm.
            self._learnt_s = self._clock()
            try:
                self._layout = Layout.from_config(
                    (yield AskConfig(max(0.001, end - self._clock())))
                )
            except (InferenceServerException, errors.RecommendError):
                return self._layout
        return self._layout

    def _insist(self, ask: Callable[[float], Step], end: float) -> Dialogue[Any]:
        """Ask until there is an answer, the tries are used up or the next would be too late."""
        began = self._clock()
        for tries in range(1, self._retry.tries + 1):
            left_s = end - self._clock()
            if left_s <= 0:
                raise errors.DeadlineExceeded("the deadline passed before the server was asked")
            try:
                return (yield ask(left_s))
            except InferenceServerException as error:
                if not errors.passes(error):
                    raise errors.from_server(error) from error
                failure = error
            wait_s = self._jitter(0.0, self._retry.longest_wait_s(tries))
            if tries == self._retry.tries or self._clock() + wait_s >= end:
                break
            yield Wait(wait_s)
        raise errors.Unavailable(
            errors.server_message(failure), tries, self._clock() - began
        ) from failure


def _check_deadline(deadline_s: float) -> None:
    if not 0 < deadline_s < float("inf"):
        raise ValueError(f"a deadline is a positive number of seconds; got {deadline_s}")
