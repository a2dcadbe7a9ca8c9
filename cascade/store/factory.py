"""Opens the store that a URL names."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

from cascade.store.backend import LMDB, Backend, StoreError
from cascade.store.lmdb_store import LmdbStore
from cascade.store.redis_store import RedisStore, without_password

READ_TIMEOUT_MS = 10.0
WRITE_TIMEOUT_MS = 30_000.0
REDIS = ("redis", "rediss", "unix")


class StoreUrlError(StoreError, ValueError):
    """A URL that names no store."""


def open_backend(url: str, *, writable: bool = False) -> Backend:
    """The store of that URL, first reached by the first call.

    Args:
        url: `lmdb:PATH`, or `redis://HOST:PORT/DB` (`rediss://`, `unix://`) with an optional
            `?timeout_ms=`, the longest time that a reader waits for a batch. `$NAME` in it is taken
            from the environment, which is where a password belongs.
        writable: allow writing to LMDB; with Redis, wait longer for an answer.

    Raises StoreUrlError: no such kind of store, or a variable that is not set; StoreError: the
    package that it needs is not installed.
    """
    kind, place = _split(_filled(url, url) if url.startswith("$") else url)
    if kind == LMDB:
        return LmdbStore(_expanded(Path(place), url), writable)
    plain, timeout_ms = _timeout(_filled(url, url))
    return RedisStore(plain, (WRITE_TIMEOUT_MS if writable else timeout_ms) / 1000)


def absolute_url(url: str) -> str:
    """The URL as a repository holds it: checked, and with an absolute path to LMDB, because the
    server runs elsewhere. An empty URL, and one that begins with `$`, stay as they are. Raises
    StoreUrlError for a password that is not `$NAME`: clients can read what a repository holds."""
    if not url or url.startswith("$"):
        return url
    kind, place = _split(url)
    if kind == LMDB and not place.startswith("$"):
        return f"{LMDB}:{Path(place).absolute()}"
    if kind != LMDB and any(not secret.startswith("$") for secret in _passwords(url)):
        raise StoreUrlError(
            f"store {without_password(url)!r}: the URL holds a password, which release.json and "
            "config.pbtxt would show to every client: write $NAME in its place, and set NAME where "
            "the server runs"
        )
    return url


def _passwords(url: str) -> list[str]:
    parts = urlsplit(url)
    queried = [value for name, value in parse_qsl(parts.query) if name == "password"]
    return [*filter(None, [parts.password, *queried])]


def _filled(text: str, url: str) -> str:
    """Text of a URL with `$NAME` taken from the environment. Raises StoreUrlError."""
    for name in re.findall(r"\$(\w+|\{[^}]*\})", text):
        if name.strip("{}") not in os.environ:
            raise StoreUrlError(
                f"store {without_password(url)!r}: the environment has no {name.strip('{}')}; set "
                "it, or write a $ of the URL itself as %24"
            )
    return os.path.expandvars(text)


def _expanded(path: Path, url: str) -> Path:
    """The path with `$NAME` taken from the environment, unless a folder is called so."""
    found = Path()
    for part in path.parts:
        there = os.path.lexists(found / part)
        found /= part if there else _filled(part, url)
    return found


def _split(url: str) -> tuple[str, str]:
    """The kind of store, and where it is. Raises StoreUrlError."""
    kind, _, place = url.partition(":")
    if kind not in (LMDB, *REDIS) or not place:
        raise StoreUrlError(
            f"store {without_password(url)!r}: expected {LMDB}:PATH or one of "
            f"{', '.join(REDIS)}://..."
        )
    return kind, place


def _timeout(url: str) -> tuple[str, float]:
    """The URL without `timeout_ms`, and its value."""
    base, _, text = url.partition("?")
    query = dict(parse_qsl(text))
    try:
        timeout_ms = float(query.pop("timeout_ms", READ_TIMEOUT_MS))
    except ValueError:
        timeout_ms = 0.0
    if not 0 < timeout_ms < float("inf"):
        raise StoreUrlError(f"store {without_password(url)!r}: timeout_ms is a number above 0")
    return f"{base}?{urlencode(query)}" if query else base, timeout_ms
