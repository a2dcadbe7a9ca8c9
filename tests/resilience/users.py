"""What users by id cost over users who come with their features, and what they notice of a store
that dies: nothing but a cold start.

Short blocks of both kinds of request take turns on one server, with the same users in the same
order; a ratio is the median of those of two neighbouring blocks, so that what else the machine does
meanwhile meets both.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cascade.client import Recommender
from cascade.server.launcher import Server
from cascade.spec import RECOMMEND_USER
from cascade.store import UserStore
from export.releases.rewire import rewire, settings_of
from export.users import CHUNK, layout_of
from perf import load
from perf.artifacts import Artifacts
from perf.contenders.wire import TRITON, triton_request
from perf.measurement import Load
from perf.payload import Payload
from perf.table import number, table
from perf.trace import OK, Trace
from tests.redis_server import RedisServer
from tests.resilience.stock import Stock

IN_FLIGHT = (1, 4)
REQUESTS = 2000  # different ones
CHECKED = 32
WARM_UP_S = 1.0
KILLED_AFTER_S = 1.0


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Args:
        users: in the store.
        rounds: blocks of each kind of request at each load. seconds: of a block.
    """

    users: int
    rounds: int
    seconds: float


SMALL = Plan(users=50_000, rounds=6, seconds=0.25)
THOROUGH = Plan(users=1_000_000, rounds=30, seconds=0.6)


@dataclass(frozen=True)
class Requests:
    """The same users in the same order: with their features, and by id."""

    by_features: list[bytes]
    by_id: list[bytes]


@dataclass(frozen=True)
class Line:
    """Median latencies at one load, and by how much one is above the other."""

    in_flight: int
    by_features_ms: float
    by_id_ms: float
    ratio: float


def run(work: Path, stock: Stock) -> dict[str, float]:
    """Measure both stores and kill one; prints a table.

    Returns:
        store_p50_ratio, redis_p50_ratio: median latency by id over that by features, of the worst
        load. redis_down_failed: requests that failed while Redis was killed.
    """
    plan, made = THOROUGH if stock.thorough else SMALL, stock.fused
    people = made.users()
    requests = _requests(people, plan.users)
    rows: list[tuple[str, ...]] = []
    found: dict[str, float] = {}
    with _redis(work) as redis:
        for name, url in (("store", f"lmdb:{(work / 'users').resolve()}"), ("redis", redis.url())):
            repository = _fill(made, work / f"by-id-{name}", url, people, plan.users)
            with Server(repository) as server:
                lines = _compare(server.http_url, requests, plan)
                _check(server.url, plan.users)
                found[f"{name}_p50_ratio"] = max(line.ratio for line in lines)
                rows += [_row(name, line) for line in lines]
                if name == "redis":
                    found["redis_down_failed"] = float(_kill(server.http_url, requests, redis))
    print(f"{plan.users:,} users, {made.items:,} items, fused; p50 in ms")
    print(table(("store", "in flight", "by features", "by id", "ratio"), rows))
    print(f"Redis killed under load: {found['redis_down_failed']:.0f} requests failed")
    return found


def _row(store: str, line: Line) -> tuple[str, ...]:
    times = number(line.by_features_ms), number(line.by_id_ms), number(line.ratio)
    return (store, str(line.in_flight), *times)


def _check(url: str, users: int) -> None:
    """Whether the users are found at all: a cold start would be quick.

    Raises:
        SystemExit: one of the last ones is not.
    """
    with Recommender(url, deadline_s=30) as client:
        found = client.recommend_users(range(users - CHECKED, users))
    if cold := sum(answer.cold_start for answer in found):
        raise SystemExit(f"{cold} of {CHECKED} users were cold starts, so their times say nothing")


def _requests(people: Payload, users: int) -> Requests:
    """Users anywhere in the store; user i has the features of row i modulo the rows."""
    ids = np.random.default_rng(0).choice(users, REQUESTS, replace=False)
    rows = ids % len(people)
    some = Payload(people.dense[rows], people.categorical[rows], people.source)
    names = [np.array([[str(user).encode()]], object) for user in ids]
    return Requests(
        TRITON.requests(some),
        [triton_request(RECOMMEND_USER, user_id=(name, "BYTES")) for name in names],
    )


def _fill(made: Artifacts, target: Path, url: str, people: Payload, users: int) -> Path:
    """A repository that reads users from that store, and the users in it."""
    serving, product = settings_of(made.repository)
    rewire(made.repository, target, serving, replace(product, store=url))
    with UserStore.create(url, layout_of(target), replace=True) as store:
        for start in range(0, users, CHUNK):
            ids = np.arange(start, min(start + CHUNK, users))
            rows = ids % len(people)
            store.put(ids.tolist(), people.dense[rows], people.categorical[rows])
    return target


def _compare(address: str, requests: Requests, plan: Plan) -> list[Line]:
    """One line for every load."""
    kinds = (requests.by_features, requests.by_id)
    for kind in kinds:
        _ask(address, kind, max(IN_FLIGHT), WARM_UP_S)
    lines = []
    for in_flight in IN_FLIGHT:
        p50_ms = np.zeros((plan.rounds, len(kinds)))
        for turn in range(plan.rounds):
            for which in (0, 1) if turn % 2 else (1, 0):
                first = turn * REQUESTS // plan.rounds
                trace = _ask(address, kinds[which], in_flight, plan.seconds, first)
                p50_ms[turn, which] = np.median(trace.latency_ms(Load("concurrency", in_flight)))
        ratio = float(np.median(p50_ms[:, 1] / p50_ms[:, 0]))
        by_features_ms, by_id_ms = np.median(p50_ms, axis=0).tolist()
        lines.append(Line(in_flight, by_features_ms, by_id_ms, ratio))
    return lines


def _ask(
    address: str, requests: list[bytes], in_flight: int, seconds: float, first: int = 0
) -> Trace:
    host, _, port = address.rpartition(":")
    plan = load.Plan("concurrency", in_flight, seconds, warm_up_s=0.05, first=first)
    return load.Generator((host, int(port)), requests, plan).run()


def _kill(address: str, requests: Requests, redis: RedisServer) -> int:
    """Requests that failed while Redis was killed under them and stayed away."""
    timer = threading.Timer(KILLED_AFTER_S, redis.kill)
    timer.start()
    trace = _ask(address, requests.by_id, max(IN_FLIGHT), 3 * KILLED_AFTER_S)
    timer.join()
    return int((trace.status != OK).sum())


@contextmanager
def _redis(work: Path) -> Iterator[RedisServer]:
    folder = work / "redis"
    shutil.rmtree(folder, ignore_errors=True)  # an earlier run's
    folder.mkdir(parents=True)
    with RedisServer(folder) as server:
        yield server
