"""The sync client: it performs the steps that `conversation` decides."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from cascade.client import wire
from cascade.client.conversation import (
    AskConfig,
    AskItems,
    Conversation,
    Dialogue,
    Result,
    Retry,
    Step,
)
from cascade.client.filters import Allow, Exclude
from cascade.client.layout import Layout, Recommendation, User, UserId
from cascade.client.split import Key
from cascade.client.tls import Tls, connection
from cascade.spec import ENSEMBLE

DEADLINE_S = 1.0
URL = "127.0.0.1:8001"


class Recommender:
    """Asks the server and waits for the answer. Safe to share among threads.

    Args:
        url: host:port of the gRPC endpoint; it is first reached by the first call.
        deadline_s: longest time for a call, its retries included; a call may set its own.
        retry: how to ask again when the server is unavailable.
        tls: None sends in clear, which is for loopback and private networks.
        model: name of the ensemble.
        send_deadline: let the server drop what has not been computed by then. Its clock and that of
            this machine must agree, within far less than a deadline.

    A call may bring a `request_id`; otherwise it gets one. The stages repeat it in their log.

    Every call raises `InvalidInput`, `DeadlineExceeded` or `Unavailable`, or their base
    `RecommendError` for what else the server may say.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        deadline_s: float = DEADLINE_S,
        retry: Retry | None = None,
        tls: Tls | None = None,
        model: str = ENSEMBLE,
        send_deadline: bool = False,
    ) -> None:
        self._conversation = Conversation(deadline_s, retry or Retry())
        self._model, self._send_deadline = model, send_deadline
        self._client = grpc.InferenceServerClient(url, **connection(tls))

    def recommend(
        self,
        user: User,
        *,
        exclude: Exclude = None,
        allow: Allow = None,
        key: Key | None = None,
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> Recommendation:
        """The best items for one user, given as raw feature values by name.

        Args:
            exclude: ids of items that are not wanted, because he has seen them.
            allow: values by item feature; other items are not wanted.
            key: what stays the same of a user, for a split of the users between two releases; who
                has none gets the live one.
        """
        found = self.recommend_many(
            [user],
            exclude=[exclude],
            allow=[allow],
            keys=None if key is None else [key],
            deadline_s=deadline_s,
            request_id=request_id,
        )
        return found[0]

    def recommend_many(
        self,
        users: Sequence[User],
        *,
        exclude: Sequence[Exclude] | None = None,
        allow: Sequence[Allow] | None = None,
        keys: Sequence[Key] | None = None,
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> list[Recommendation]:
        """One recommendation per user, in their order. The users may be more than the server
        takes in one request.

        Args:
            exclude, allow, keys: as of `recommend`, one entry for each user.
        """
        return self._perform(
            self._conversation.recommend_many(users, deadline_s, request_id, exclude, allow, keys)
        )

    def recommend_user(
        self,
        user_id: UserId,
        context: User | None = None,
        *,
        exclude: Exclude = None,
        allow: Allow = None,
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> Recommendation:
        """The best items for a user whose features the server looks up in its store. The id is
        his key as well (`recommend`).

        Args:
            context: raw feature values by name that override the stored ones for this request.
            exclude, allow: as of `recommend`.
        """
        found = self.recommend_users(
            [user_id],
            [context],
            exclude=[exclude],
            allow=[allow],
            deadline_s=deadline_s,
            request_id=request_id,
        )
        return found[0]

    def recommend_users(
        self,
        user_ids: Sequence[UserId],
        contexts: Sequence[User | None] | None = None,
        *,
        exclude: Sequence[Exclude] | None = None,
        allow: Sequence[Allow] | None = None,
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> list[Recommendation]:
        """One recommendation per user id, in their order; a context for each, or None."""
        return self._perform(
            self._conversation.recommend_users(
                user_ids, contexts, deadline_s, request_id, exclude, allow
            )
        )

    def layout(self, *, deadline_s: float | None = None) -> Layout:
        """The features of a user, as the server names them."""
        return self._perform(self._conversation.layout(deadline_s))

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Recommender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _perform(self, dialogue: Dialogue[Result]) -> Result:
        try:
            step = next(dialogue)
            while True:
                try:
                    outcome = self._step(step)
                except InferenceServerException as error:
                    step = dialogue.throw(error)
                else:
                    step = dialogue.send(outcome)
        except StopIteration as end:
            result: Result = end.value
            return result

    def _step(self, step: Step) -> Any:
        if isinstance(step, AskItems):
            request = wire.request(self._model, step, self._send_deadline)
            return wire.answer(self._client.infer(**request))
        if isinstance(step, AskConfig):
            return self._client.get_model_config(self._model, client_timeout=step.timeout_s).config
        return time.sleep(step.seconds)
