"""Every gRPC channel of these programs: one set of arguments, and when a channel is given up.

gRPC's own defaults hold a connection that has gone dead without a word for ever, wait up to 20 s
for one that is not accepted, take answers of 4 MiB, send requests to this machine itself through a
proxy. docs/client.md lists what `ARGUMENTS` sets instead, and why; a caller's own arguments win.
"""

from __future__ import annotations

import ipaddress
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio

from cascade.errors import CascadeError

ChannelArgs = Mapping[str, Any] | Iterable[tuple[str, Any]]
"""gRPC's channel arguments by name: integers, strings or bytes."""

UNLIMITED = -1
ARGUMENTS: Mapping[str, int] = {
    "grpc.max_send_message_length": UNLIMITED,
    "grpc.max_receive_message_length": UNLIMITED,
    "grpc.max_metadata_size": 2**20,  # an error's message is metadata; longer than 16 kB it is lost
    # After a failed connection gRPC answers UNAVAILABLE from memory until its own backoff is over.
    # At its default of 1 s to 2 min, retries would mostly hear that echo.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 500,
    "grpc.min_reconnect_backoff_ms": 2000,  # the time limit of an attempt to connect
    # A ping after 2 s in which a call waits, and 3 s for its answer. gRPC's time limit of a ping
    # holds beside that of keepalive, and is a minute. There are no pings without calls: a
    # tritonserver with its own defaults hangs up on a client that sends them.
    "grpc.keepalive_time_ms": 2000,
    "grpc.keepalive_timeout_ms": 3000,
    "grpc.http2.ping_timeout_ms": 3000,
    "grpc.use_local_subchannel_pool": 1,  # else a new channel gets the old one's connection
    "grpc.dns_min_time_between_resolutions_ms": 1000,
}
DIRECT = {"grpc.enable_http_proxy": 0}

# As in dns:///HOST:PORT, dns://SERVER/HOST:PORT, ipv4:ADDRESS:PORT, unix:PATH.
_SCHEME = re.compile(r"(dns|ipv4|ipv6|passthrough|unix|unix-abstract):(?://[^/]*/)?")

MISSES = 3  # calls in a row
SILENCE_S, LONGEST_SILENCE_S = 2.0, 30.0


class Encryption(Protocol):
    """The TLS of a client, as `cascade.client.Tls`."""

    def options(self) -> dict[str, Any]:
        """Arguments of a tritonclient."""


class ChannelError(CascadeError, ValueError):
    """Channel arguments that gRPC cannot take."""


def connect(
    url: str, tls: Encryption | None = None, channel_args: ChannelArgs = ()
) -> grpc.InferenceServerClient:
    """A client of the gRPC service at HOST:PORT; the first call connects. Raises ChannelError."""
    return grpc.InferenceServerClient(url, **_options(url, tls, channel_args))


def connect_aio(
    url: str, tls: Encryption | None = None, channel_args: ChannelArgs = ()
) -> grpc_aio.InferenceServerClient:
    """`connect` for asyncio, within the event loop that the client is for."""
    return grpc_aio.InferenceServerClient(url, **_options(url, tls, channel_args))


def arguments(url: str, channel_args: ChannelArgs = ()) -> list[tuple[str, Any]]:
    """The arguments of the channel to `url`, those of the caller last. Raises ChannelError."""
    pairs = channel_args.items() if isinstance(channel_args, Mapping) else channel_args
    try:
        given = dict(pairs)
        wrong = [n for n, v in given.items() if not isinstance(n, str) or not _is_value(v)]
    except (TypeError, ValueError):
        wrong = [channel_args]
    if wrong:
        raise ChannelError(
            f"channel_args: {wrong[0]!r} came; expected gRPC's channel arguments by name, each an "
            'integer or a string, as [("grpc.keepalive_time_ms", 10000)]'
        )
    return list({**ARGUMENTS, **(DIRECT if is_local(url) else {}), **given}.items())


def is_local(url: str) -> bool:
    """Whether a URL of gRPC names this machine itself: a loopback address, `localhost`, the address
    0.0.0.0 or a Unix socket."""
    scheme = _SCHEME.match(url)
    if scheme and scheme[1].startswith("unix"):
        return True
    target = url[scheme.end() :] if scheme else url
    host = target.rpartition("]")[0].lstrip("[") or target.partition(":")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.rstrip(".").lower()
        return name == "localhost" or name.endswith(".localhost")
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def _is_value(value: object) -> bool:
    return isinstance(value, int | str | bytes)


def _options(url: str, tls: Encryption | None, channel_args: ChannelArgs) -> dict[str, Any]:
    return {"channel_args": arguments(url, channel_args), **(tls.options() if tls else {})}


class Silence:
    """Whether a connection counts as dead: so many calls in a row have missed their deadlines, and
    the server has said nothing for a while. Keepalive finds the same, but only under a call that
    waits longer than its times. The while doubles from one new connection to the next, so that an
    overloaded server is not asked for many; an answer ends that."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self.answered()

    def answered(self) -> None:
        """The server has answered, if only with an error."""
        self._misses, self._since_s, self._longest_s = 0, self._clock(), SILENCE_S

    def missed(self) -> bool:
        """A call got no answer -> whether it is time for another connection."""
        with self._lock:
            self._misses += 1
            now = self._clock()
            if self._misses < MISSES or now < self._since_s + self._longest_s:
                return False
            self._misses, self._since_s = 0, now
            self._longest_s = min(2 * self._longest_s, LONGEST_SILENCE_S)
            return True
