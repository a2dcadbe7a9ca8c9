"""Faults of the Redis store, while it is read and while it is written."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from redis import Redis

from tests.cascades import Cascade
from tests.redis_server import RedisServer
from tests.resilience.faults import FaultTable, wait_until
from tests.resilience.faulty.crowds import Crowd, crowd
from tests.resilience.faulty.forked import Forks
from tests.resilience.faulty.served_users import COLD, USERS, Site, site

OTHER_WORDS = {
    "speaks HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "answers OK to all": b"+OK\r\n",
    "answers 1 to all": b":1\r\n",
}


@pytest.fixture(scope="module")
def redis(workplace: Path) -> Iterator[RedisServer]:
    (workplace / "redis-site").mkdir()
    with RedisServer(workplace / "redis-site") as server:
        yield server


@pytest.fixture(scope="module")
def users(people: Cascade, redis: RedisServer, workplace: Path, forked: Forks) -> Iterator[Site]:
    with site(people, workplace / "redis-site", redis.url(), forked) as running:
        yield running


@pytest.fixture
def commands(redis: RedisServer) -> Iterator[Redis]:
    """An operator's connection."""
    with Redis.from_url(redis.url()) as client:
        client.ping()
        yield client


def cold(users: Site) -> str:
    """Every request is answered without features -> what the health check says."""
    line = users.degraded("the store of users")
    wait_until(lambda: users.ask() == {COLD: USERS}, "not every answer is a cold start")
    return line


def test_redis_is_killed(users: Site, redis: RedisServer, faults: FaultTable) -> None:
    with faults("users, Redis: killed") as found, users.trouble(found):
        redis.kill()
        found.shows = cold(users)
        redis.start()
        found.right_s = users.recovered()


def test_redis_is_stopped(
    users: Site, redis: RedisServer, faults: FaultTable, seconds: float
) -> None:
    with faults("users, Redis: stopped by SIGSTOP") as found, users.trouble(found):
        os.kill(redis.pid, signal.SIGSTOP)
        try:
            ends = time.monotonic() + (6 if seconds < 10 else 30)
            found.shows = cold(users)
            users.slowest_s = 0.0
            while time.monotonic() < ends:
                users.ask()
            found.shows = f"slowest answer {users.slowest_s:.3f} s; {found.shows}"
        finally:
            os.kill(redis.pid, signal.SIGCONT)
        found.right_s = users.recovered()


def test_redis_is_emptied(users: Site, commands: Redis, faults: FaultTable) -> None:
    with faults("users, Redis: FLUSHALL") as found, users.trouble(found):
        commands.flushall()
        found.shows = cold(users)
        users.write()
        found.right_s = users.recovered()


def test_its_password_is_changed(users: Site, commands: Redis, faults: FaultTable) -> None:
    with faults("users, Redis: its password is changed") as found, users.trouble(found):
        commands.config_set("requirepass", "another")
        commands.client_kill_filter(_type="normal", skipme=True)
        found.shows = cold(users)
        commands.config_set("requirepass", "")
        found.right_s = users.recovered()


def test_its_connections_are_used_up(users: Site, commands: Redis, faults: FaultTable) -> None:
    with faults("users, Redis: connections at maxclients") as found, users.trouble(found):
        usual = commands.config_get("maxclients")["maxclients"]
        commands.config_set("maxclients", 1)
        commands.client_kill_filter(_type="normal", skipme=True)
        found.shows = cold(users)
        commands.config_set("maxclients", usual)
        found.right_s = users.recovered()


@contextmanager
def answering(port: int, words: bytes) -> Iterator[None]:
    """Something else listens there, and says the same to whatever comes."""

    def talk(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while connection.recv(1 << 16):
                connection.sendall(words)

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", port)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("other", OTHER_WORDS)
def test_its_port_is_taken(users: Site, redis: RedisServer, faults: FaultTable, other: str) -> None:
    with faults(f"users, Redis: what has its port {other}") as found, users.trouble(found):
        redis.kill()
        with answering(redis.port, OTHER_WORDS[other]):
            found.shows = cold(users)
        redis.start()
        found.right_s = users.recovered()


# --- written


@pytest.mark.parametrize("fault", ["out of memory", "read-only"])
def test_it_takes_no_users(
    people: Cascade, redis: RedisServer, commands: Redis, forked: Forks, work: Path,
    faults: FaultTable, fault: str,
) -> None:  # fmt: skip
    url = redis.url(1)
    before = crowd(people, work / "before.parquet", 1_000)
    new = crowd(people, work / "new.parquet", 20_000, first=1_000, seed=1)

    def write(users: Crowd) -> object:
        where = ("--repository", people.repository, "--store", url, "--table", users.table)
        return forked("export", "users", *where)

    with faults(f"users, Redis: {fault} while users are written") as found:
        assert write(before).code == 0
        if fault == "out of memory":
            used = commands.info("memory")["used_memory"]
            commands.config_set("maxmemory", used + (1 << 20))
        else:
            commands.execute_command("REPLICAOF", "127.0.0.1", "1")
        found.shows = write(new).error
        reading = f"{url}?timeout_ms=5000"
        found.lost = before.lost(reading) + new.wrong(reading)
        commands.config_set("maxmemory", 0)
        commands.execute_command("REPLICAOF", "NO", "ONE")
        ran = write(new)
        assert ran.code == 0, ran.errors
        found.right_s = ran.seconds
        found.lost += before.lost(reading) + new.lost(reading)
