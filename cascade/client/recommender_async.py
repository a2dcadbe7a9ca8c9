"""The asyncio client."""

from __future__ import annotations

from collections.abc import Sequence

from cascade.client.layout import Layout
from cascade.client.plan import Recommendation, Request, UserId
from cascade.client.recommender import DEADLINE_S, URL
from cascade.client.session import Retry, Session
from cascade.client.split import Key
from cascade.client.transport import AsyncTransport, Tls
from cascade.filters_wire import Allow, Exclude
from cascade.layout import User
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
        self._transport = AsyncTransport(url, tls, send_deadline)
        self._session = Session(self._transport, deadline_s, retry, model)

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
        keys = None if key is None else [key]
        request = Request([user], exclude=[exclude], allow=[allow], keys=keys)
        return (await self._session.ask(request, deadline_s, request_id))[0]

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
        request = Request(users, exclude=exclude, allow=allow, keys=keys)
        return await self._session.ask(request, deadline_s, request_id)

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
        request = Request((), [user_id], [context], [exclude], [allow])
        return (await self._session.ask(request, deadline_s, request_id))[0]

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
        request = Request((), user_ids, contexts, exclude, allow)
        return await self._session.ask(request, deadline_s, request_id)

    async def layout(self, *, deadline_s: float | None = None) -> Layout:
        """The features of a user, as the server names them."""
        return await self._session.layout(deadline_s)

    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> AsyncRecommender:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
