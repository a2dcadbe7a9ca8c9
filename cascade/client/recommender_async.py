"""The asyncio client: it performs the steps that `conversation` decides."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import tritonclient.grpc.aio as grpc_aio
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
from cascade.client.recommender import DEADLINE_S, URL
from cascade.client.split import Key
from cascade.client.tls import Tls, connection
from cascade.spec import ENSEMBLE


class AsyncRecommender:
    """`Recommender` for asyncio: the same arguments, calls and errors, awaited.

    Belongs to one event loop. Calls may overlap; a cancelled call cancels its request.
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
        self._url = url
        self._connection = connection(tls)
        self._opened: grpc_aio.InferenceServerClient | None = None

    async def recommend(
        self,
        user: User,
        *,
        exclude: Exclude = None,
        allow: Allow = None,
        key: Key | None = None,
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> Recommendation:
        """The best items for one user, given as raw feature values by name."""
        found = await self.recommend_many(
            [user],
            exclude=[exclude],
            allow=[allow],
            keys=None if key is None else [key],
            deadline_s=deadline_s,
            request_id=request_id,
        )
        return found[0]

    async def recommend_many(
        self,
        users: Sequence[User],
        *,
        exclude: Sequence[Exclude] | None = None,
        allow: Sequence[Allow] | None = None,
        keys: Sequence[Key] | None = None,
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> list[Recommendation]:
        """One recommendation per user, in their order."""
        return await self._perform(
            self._conversation.recommend_many(users, deadline_s, request_id, exclude, allow, keys)
        )

    async def recommend_user(
        self,
        user_id: UserId,
        context: User | None = None,
        *,
        exclude: Exclude = None,
        allow: Allow = None,
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> Recommendation:
        """The best items for a user whose features the server looks up in its store."""
        found = await self.recommend_users(
            [user_id],
            [context],
            exclude=[exclude],
            allow=[allow],
            deadline_s=deadline_s,
            request_id=request_id,
        )
        return found[0]

    async def recommend_users(
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
        return await self._perform(
            self._conversation.recommend_users(
                user_ids, contexts, deadline_s, request_id, exclude, allow
            )
        )

    async def layout(self, *, deadline_s: float | None = None) -> Layout:
        """The features of a user, as the server names them."""
        return await self._perform(self._conversation.layout(deadline_s))

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()

    async def __aenter__(self) -> AsyncRecommender:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def _client(self) -> grpc_aio.InferenceServerClient:
        """Opened by the first call, because a channel belongs to the loop that runs then."""
        if self._opened is None:
            self._opened = grpc_aio.InferenceServerClient(self._url, **self._connection)
        return self._opened

    async def _perform(self, dialogue: Dialogue[Result]) -> Result:
        try:
            step = next(dialogue)
            while True:
                try:
                    outcome = await self._step(step)
                except InferenceServerException as error:
                    step = dialogue.throw(error)
                else:
                    step = dialogue.send(outcome)
        except StopIteration as end:
            result: Result = end.value
            return result

    async def _step(self, step: Step) -> Any:
        if isinstance(step, AskItems):
            request = wire.request(self._model, step, self._send_deadline)
            return wire.answer(await self._client.infer(**request))
        if isinstance(step, AskConfig):
            answer = await self._client.get_model_config(self._model, client_timeout=step.timeout_s)
            return answer.config
        return await asyncio.sleep(step.seconds)
