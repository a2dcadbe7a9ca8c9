"""The two clients. What a call takes stands once, in `Calls`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable
from typing import Any, ClassVar, Generic, TypeVar

from cascade.client.channel import ChannelArgs
from cascade.client.layout import Layout
from cascade.client.plan import Recommendation, Request, UserId
from cascade.client.session import Retry, Session, run
from cascade.client.split import Key
from cascade.client.tls import Tls
from cascade.client.transport import AsyncTransport, BlockingTransport, Transport
from cascade.filters_wire import Allow, Exclude
from cascade.layout import User
from cascade.spec import ENSEMBLE

DEADLINE_S = 1.0
URL = "127.0.0.1:8001"
One = TypeVar("One")
Many = TypeVar("Many")


class Calls(ABC, Generic[One, Many]):
    """The calls of both clients: `Recommender` returns an answer, `AsyncRecommender` an awaitable.

    Args:
        url: host:port of the gRPC endpoint; the first call connects.
        deadline_s: longest time for a call, its retries included; a call may set its own.
        retry: how to ask again when the server is unavailable.
        tls: None sends in clear, which is for loopback and private networks.
        model: name of the ensemble.
        send_deadline: let the server drop what has not been computed by then. Its clock and that of
            this machine must agree, within far less than a deadline.
        channel_args: arguments of the gRPC channel by name, over those of `channel.ARGUMENTS`.

    A call may bring a `request_id`; otherwise it gets one. The stages repeat it in their log.

    Every call raises `InvalidInput`, `DeadlineExceeded` or `Unavailable`, or their base
    `RecommendError` for any other failure of the server.
    """

    _transport_type: ClassVar[type[Transport]]

    def __init__(
        self,
        url: str = URL,
        *,
        deadline_s: float = DEADLINE_S,
        retry: Retry | None = None,
        tls: Tls | None = None,
        model: str = ENSEMBLE,
        send_deadline: bool = False,
        channel_args: ChannelArgs = (),
    ) -> None:
        transport = self._transport_type(url, tls, send_deadline, channel_args)
        self._session = Session(transport, deadline_s, retry, model)

    @abstractmethod
    def _one(self, request: Request, deadline_s: float | None, request_id: str | None) -> One:
        """The answer to a request of one user."""

    @abstractmethod
    def _many(self, request: Request, deadline_s: float | None, request_id: str | None) -> Many:
        """The answers to a request of several."""

    def recommend(
        self,
        user: User,
        *,
        exclude: Exclude = None,
        allow: Allow = None,
        key: Key | None = None,
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> One:
        """The best items for one user, given as raw feature values by name.

        Args:
            exclude: ids of items that are not wanted, for instance because the user has seen them.
            allow: values by item feature; other items are not wanted.
            key: identifies the user for a split of the users between two releases; without a key
                the live release answers.
        """
        keys = None if key is None else [key]
        request = Request([user], exclude=[exclude], allow=[allow], keys=keys)
        return self._one(request, deadline_s, request_id)

    def recommend_many(
        self,
        users: Iterable[User],
        *,
        exclude: Iterable[Exclude] | None = None,
        allow: Iterable[Allow] | None = None,
        keys: Iterable[Key] | None = None,
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> Many:
        """One recommendation per user, in their order. The users may be more than the server
        takes in one request, and come from any iterable, as the other arguments with an entry for
        each user.

        `exclude`, `allow`, `keys`: as of `recommend`, one entry for each user.
        """
        request = Request(users, exclude=exclude, allow=allow, keys=keys)
        return self._many(request, deadline_s, request_id)

    def recommend_user(
        self,
        user_id: UserId,
        context: User | None = None,
        *,
        exclude: Exclude = None,
        allow: Allow = None,
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> One:
        """The best items for a user whose features the server looks up in its store. The id is
        also the key (`recommend`).

        Args:
            context: raw feature values by name that override the stored ones for this request.
            exclude, allow: as of `recommend`.
        """
        request = Request((), [user_id], [context], [exclude], [allow])
        return self._one(request, deadline_s, request_id)

    def recommend_users(
        self,
        user_ids: Iterable[UserId],
        contexts: Iterable[User | None] | None = None,
        *,
        exclude: Iterable[Exclude] | None = None,
        allow: Iterable[Allow] | None = None,
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> Many:
        """One recommendation per user id, in their order; a context for each, or None."""
        request = Request((), user_ids, contexts, exclude, allow)
        return self._many(request, deadline_s, request_id)


class Recommender(Calls[Recommendation, list[Recommendation]]):
    """Asks the server and waits for the answer. Threads may share it. Arguments: see `Calls`."""

    _transport_type = BlockingTransport

    def _one(
        self, request: Request, deadline_s: float | None, request_id: str | None
    ) -> Recommendation:
        return run(self._session.ask(request, deadline_s, request_id))[0]

    def _many(
        self, request: Request, deadline_s: float | None, request_id: str | None
    ) -> list[Recommendation]:
        return run(self._session.ask(request, deadline_s, request_id))

    def layout(self, *, deadline_s: float | None = None) -> Layout:
        """The features of a user, as the server names them."""
        return run(self._session.layout(deadline_s))

    def close(self) -> None:
        run(self._session.close())

    def __enter__(self) -> Recommender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncRecommender(
    Calls[Coroutine[Any, Any, Recommendation], Coroutine[Any, Any, list[Recommendation]]]
):
    """`Recommender` for asyncio: the same arguments, calls and errors, awaited.

    Belongs to one event loop. Calls may overlap; a cancelled call cancels its request.
    """

    _transport_type = AsyncTransport

    async def _one(
        self, request: Request, deadline_s: float | None, request_id: str | None
    ) -> Recommendation:
        return (await self._session.ask(request, deadline_s, request_id))[0]

    def _many(
        self, request: Request, deadline_s: float | None, request_id: str | None
    ) -> Coroutine[Any, Any, list[Recommendation]]:
        return self._session.ask(request, deadline_s, request_id)

    async def layout(self, *, deadline_s: float | None = None) -> Layout:
        """The features of a user, as the server names them."""
        return await self._session.layout(deadline_s)

    async def close(self) -> None:
        await self._session.close()

    async def __aenter__(self) -> AsyncRecommender:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
