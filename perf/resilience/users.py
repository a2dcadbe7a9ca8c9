"""What users by id cost over users who come with their features, and what they notice of a store
that dies: nothing but a cold start.

Blocks of both kinds of request take turns on one server, with the same users in the same order.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cascade.serving.launcher import Server
from cascade.spec import RECOMMEND_USER
from cascade.store import UserStore
from export.rewire import rewire, serving_of
from export.users import CHUNK, layout_of
from perf import artifacts, load
from perf.contenders.wire import TRITON, triton_request
from perf.measurement import Load
from perf.payload import Payload
from perf.resilience.redis_server import RedisServer
from perf.table import number, table
from perf.trace import OK, Trace

IN_FLIGHT = (1, 4)
REQUESTS = 2000  # different ones
KILLED_AFTER_S = 1.0
FAST = ("--index", "ivf", "--state", "float32", "--weights", "float32", "--users-per-run", "4")


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Args:
        users: in the store. items: in the catalogue.
        rounds: blocks of each kind of request at each load. seconds: of a block.
        export: arguments of the export; those of the small plan spare it what it would measure.
    """

    users: int
    items: int
    rounds: int
    seconds: float
    export: tuple[str, ...] = ()


SMALL = Plan(users=100_000, items=20_000, rounds=3, seconds=0.6, export=FAST)
THOROUGH = Plan(users=1_000_000, items=200_000, rounds=10, seconds=2.0)


@dataclass(frozen=True)
class Requests:
    """The same users in the same order: with their features, and by id."""

    by_features: list[bytes]
    by_id: list[bytes]


def run(work: Path, thorough: bool) -> dict[str, float]:
    """Measure both stores and kill one; prints a table.

    Returns:
        store_p50_ratio, redis_p50_ratio: median latency by id over that by features, of the worst
        load. redis_down_failed: requests that failed while Redis was killed.
    """
    plan = THOROUGH if thorough else SMALL
    wish = artifacts.Wish(plan.items, "criteo", export=plan.export)
    made = artifacts.make(wish, work / f"cascade-{plan.items}", keep=True)
    people = made.users()
    requests = _requests(people, plan.users)
    lines, found = [], {}
    with _redis(work) as redis:
        for name, url in (("store", f"lmdb:{(work / 'users').resolve()}"), ("redis", redis.url())):
            repository = _fill(made, work / f"by-id-{name}", url, people, plan.users)
            with Server(repository) as server:
                p50_ms = _compare(server.http_url, requests, plan)
                found[f"{name}_p50_ratio"] = max(mine / base for base, mine in p50_ms.values())
                lines += [(name, load, *both) for load, both in p50_ms.items()]
                if name == "redis":
                    found["redis_down_failed"] = float(_kill(server.http_url, requests, redis))
    print(f"{plan.users:,} users, {plan.items:,} items, fused; p50 in ms")
    header = ("store", "in flight", "by features", "by id", "ratio")
    rows = [(s, str(n), number(a), number(b), f"{b / a:.3f}") for s, n, a, b in lines]
    print(table(header, rows))
    print(f"Redis killed under load: {found['redis_down_failed']:.0f} requests failed")
    return found


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


def _fill(made: artifacts.Artifacts, target: Path, url: str, people: Payload, users: int) -> Path:
    """A repository that reads users from that store, and the users in it."""
    rewire(made.repository, target, replace(serving_of(made.repository), store=url))
    with UserStore.create(url, layout_of(target), replace=True) as store:
        for start in range(0, users, CHUNK):
            ids = np.arange(start, min(start + CHUNK, users))
            rows = ids % len(people)
            store.put(ids.tolist(), people.dense[rows], people.categorical[rows])
    return target


def _compare(address: str, requests: Requests, plan: Plan) -> dict[int, tuple[float, float]]:
    """By load: median latency in ms by features and by id, over blocks that took turns."""
    kinds = (requests.by_features, requests.by_id)
    for kind in kinds:
        _ask(address, kind, max(IN_FLIGHT), 1.0)
    found = {}
    for in_flight in IN_FLIGHT:
        times: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for turn in range(plan.rounds):
            pairs = [*zip(kinds, times, strict=True)]
            for kind, mine in pairs if turn % 2 else reversed(pairs):
                trace = _ask(address, kind, in_flight, plan.seconds, first=turn * REQUESTS // 3)
                mine.append(trace.latency_ms(Load("concurrency", in_flight)))
        base, by_id = (float(np.median(np.concatenate(mine))) for mine in times)
        found[in_flight] = base, by_id
    return found


def _ask(
    address: str, requests: list[bytes], in_flight: int, seconds: float, first: int = 0
) -> Trace:
    host, _, port = address.rpartition(":")
    plan = load.Plan("concurrency", in_flight, seconds, warm_up_s=0.1, first=first)
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
