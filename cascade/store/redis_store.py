"""Users in a Redis that several machines share: an MGET for a batch, changes by compare-and-set."""

from __future__ import annotations

import concurrent.futures
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

from cascade.errors import CascadeError
from cascade.store.backend import Change, StoreError, need

USER, LAYOUT = b"cascade:user:", b"cascade:layout"
AT_ONCE = 1000  # users of one command: Redis runs one command at a time

# Writes the new record only where the old one is unchanged; empty means that there is none.
COMPARE_AND_SET = """
if (redis.call('GET', KEYS[1]) or '') == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2])
  return 1
end
return 0
"""


class RedisStore:
    """See `Backend`. The timeout is that of the name's resolution, of a connection, and of an
    answer."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = without_password(url)
        self._redis: Any = need("redis")
        # One more try, and only where Redis closed the connection: a request is waiting.
        backoff = need("redis.backoff")
        retry = need("redis.retry").Retry(
            backoff.NoBackoff(), 1, supported_errors=(self._redis.ConnectionError,)
        )
        self._open = partial(
            self._redis.Redis.from_url,
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=retry,
            single_connection_client=True,  # a pool would check the connection at every call
            connection_class=_resolving(self._redis, url, timeout_s),
        )

    @cached_property
    def _client(self) -> Any:
        """Connects at the first call."""
        return self._open()

    def get(self, ids: Sequence[bytes]) -> list[bytes | None]:
        with self._errors():
            return self._mget(ids)

    def put(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        with self._errors():
            for start in range(0, len(records), AT_ONCE):
                part = records[start : start + AT_ONCE]
                self._client.mset({USER + user: record for user, record in part})

    def update(self, changes: Mapping[bytes, Change]) -> None:
        waiting = list(changes)
        with self._errors():
            while waiting:
                olds = self._mget(waiting)
                pipeline = self._client.pipeline(transaction=False)
                for user, old in zip(waiting, olds, strict=True):
                    new = changes[user](old)
                    pipeline.eval(COMPARE_AND_SET, 1, USER + user, old or b"", new)
                kept = pipeline.execute()
                waiting = [user for user, done in zip(waiting, kept, strict=True) if not done]

    def ids(self) -> Iterable[bytes]:
        with self._errors():
            for key in self._client.scan_iter(match=USER + b"*", count=AT_ONCE):
                yield key[len(USER) :]

    def remove(self, ids: Sequence[bytes]) -> None:
        with self._errors():
            for start in range(0, len(ids), AT_ONCE):
                self._client.unlink(*(USER + user for user in ids[start : start + AT_ONCE]))

    def layout(self) -> bytes | None:
        with self._errors():
            found = self._client.get(LAYOUT)
            if found is not None and not isinstance(found, bytes):
                raise self._no_redis(found)
            return found

    def set_layout(self, layout: bytes) -> None:
        with self._errors():
            self._client.set(LAYOUT, layout)

    def close(self) -> None:
        if client := vars(self).pop("_client", None):
            client.close()

    def _mget(self, ids: Sequence[bytes]) -> list[bytes | None]:
        """Raises StoreError: what listens there answers other words than Redis."""
        found = self._client.mget([USER + user for user in ids])
        if not isinstance(found, list) or len(found) != len(ids):
            raise self._no_redis(found)
        return found

    def _no_redis(self, came: object) -> StoreError:
        return StoreError(f"{self.url}: {came!r:.60} came, which is no answer of a Redis")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except CascadeError:
            raise
        except Exception as error:
            if not isinstance(error, self._redis.RedisError | OSError):
                # The library stumbles over answers of something else, in the middle of a greeting.
                self.close()
            raise StoreError(f"{self.url}: {type(error).__name__}: {error}") from error


def without_password(url: str) -> str:
    """The URL as it may stand in a log."""
    before, at, after = url.partition("?")[0].rpartition("@")
    return f"{before.partition('://')[0]}://...@{after}" if at else after


def _resolving(redis: Any, url: str, timeout_s: float) -> Any:
    """The class of a URL's connections. It looks up the host's name within the timeout before it
    connects: the C library waits for 10 s and more for DNS that does not answer."""
    kind = need("redis.connection").parse_url(url).get("connection_class", redis.Connection)
    if kind is redis.UnixDomainSocketConnection:
        return kind
    name = _Name(timeout_s)

    class Resolving(kind):  # type: ignore[misc, valid-type]
        def _connect(self) -> Any:
            try:
                name.resolve(self.host, self.port)
            except concurrent.futures.TimeoutError:
                late = f"no address of {self.host} within {1000 * timeout_s:g} ms: ask DNS for it"
                raise redis.TimeoutError(late) from None
            return super()._connect()

    return Resolving


class _Name:
    """Waits for the address of a host for a limited time; the next call waits for the same look-up
    where that goes on."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._found: Future[Any] | None = None

    def resolve(self, host: str, port: int) -> None:
        """Raises concurrent.futures.TimeoutError; OSError: the name has no address."""
        if self._found is None:
            self._found = Future()
            ask = threading.Thread(target=self._ask, args=(self._found, host, port), daemon=True)
            ask.start()
        found = self._found
        try:
            found.result(self._timeout_s)
        finally:
            if found.done():
                self._found = None

    @staticmethod
    def _ask(found: Future[Any], host: str, port: int) -> None:
        try:
            found.set_result(socket.getaddrinfo(host, port))
        except OSError as error:
            found.set_exception(error)
