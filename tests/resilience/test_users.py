"""What users by id cost over users with their features, and what a killed store costs: nothing but
cold starts.

Short blocks of both kinds of request take turns on one server, with the same users in the same
order. A ratio is the median over the pairs of adjacent blocks, so that other work on the machine
meets both kinds.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from cascade.client import Recommender
from cascade.server.launcher import Server
from cascade.spec import RECOMMEND_USER
from cascade.store import UserStore
from export.releases.rewire import rewire, settings_of
from export.users import CHUNK, layout_of
from perf.contenders.servers import TRITON, triton_request
from perf.harness import load
from perf.harness.artifacts import Artifacts
from perf.harness.measurement import OK, Load, Trace
from perf.harness.payload import Payload
from perf.harness.table import number
from tests.redis_server import RedisServer
from tests.resilience.claims import Record

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
class Site:
    """A server that reads users from a store. The same users in the same order: with their
    features, and by id.

    Args:
        redis: the server of the store, None where the store is embedded.
    """

    server: Server
    plan: Plan
    by_features: list[bytes]
    by_id: list[bytes]
    redis: RedisServer | None

    def ask(self, requests: list[bytes], in_flight: int, seconds: float, first: int = 0) -> Trace:
        host, _, port = self.server.http_url.rpartition(":")
        plan = load.Plan("concurrency", in_flight, seconds, warm_up_s=0.05, first=first)
        return load.Generator((host, int(port)), requests, plan).run()


@pytest.fixture(scope="module", params=["store", "redis"])
def site(
    request: pytest.FixtureRequest, fused: Artifacts, workplace: Path, thorough: bool
) -> Iterator[Site]:
    """Its store is full: user i has the features of row i modulo the rows of `fused.users()`."""
    plan, folder = THOROUGH if thorough else SMALL, workplace / f"users-{request.param}"
    folder.mkdir()
    with ExitStack() as stack:
        redis = None
        if request.param == "redis":
            redis = stack.enter_context(RedisServer(folder))
        url = redis.url() if redis else f"lmdb:{(folder / 'users').resolve()}"
        people = fused.users()
        serving, product = settings_of(fused.repository)
        rewire(fused.repository, folder / "repository", serving, replace(product, store=url))
        _fill(url, folder / "repository", people, plan.users)
        ids = np.random.default_rng(0).choice(plan.users, REQUESTS, replace=False)
        rows = ids % len(people)
        some = Payload(people.dense[rows], people.categorical[rows], people.source)
        names = [np.array([[str(user).encode()]], object) for user in ids]
        by_id = [triton_request(RECOMMEND_USER, user_id=name) for name in names]
        server = stack.enter_context(Server(folder / "repository"))
        yield Site(server, plan, TRITON.requests(some), by_id, redis)


def _fill(url: str, repository: Path, people: Payload, users: int) -> None:
    with UserStore.create(url, layout_of(repository), replace=True) as store:
        for start in range(0, users, CHUNK):
            ids = np.arange(start, min(start + CHUNK, users))
            rows = ids % len(people)
            store.put(ids.tolist(), people.dense[rows], people.categorical[rows])


def test_users_by_id_cost_little(
    site: Site, record: Record, request: pytest.FixtureRequest
) -> None:
    for requests in (site.by_features, site.by_id):
        site.ask(requests, max(IN_FLIGHT), WARM_UP_S)
    found = {in_flight: _p50_ms(site, in_flight) for in_flight in IN_FLIGHT}
    with Recommender(site.server.url, deadline_s=30) as client:
        last = client.recommend_users(range(site.plan.users - CHECKED, site.plan.users))
    assert not any(answer.cold_start for answer in last), "the times are those of cold starts"
    ratios = {n: float(np.median(p50_ms[:, 1] / p50_ms[:, 0])) for n, p50_ms in found.items()}
    rows = [
        [f"{n} in flight", *map(number, np.median(p50_ms, axis=0)), number(ratios[n])]
        for n, p50_ms in found.items()
    ]
    store = request.node.callspec.params["site"]
    title = f"{store}: {site.plan.users:,} users, p50 ms"
    record.table([title, "by features", "by id", "ratio"], rows)
    record(**{f"{store}_p50_ratio": max(ratios.values())})


def _p50_ms(site: Site, in_flight: int) -> np.ndarray:
    """Median latencies by round, with features and by id: [rounds, 2]."""
    kinds, plan = (site.by_features, site.by_id), site.plan
    p50_ms = np.zeros((plan.rounds, 2))
    for turn in range(plan.rounds):
        for which in (0, 1) if turn % 2 else (1, 0):
            first = turn * REQUESTS // plan.rounds
            trace = site.ask(kinds[which], in_flight, plan.seconds, first)
            p50_ms[turn, which] = np.median(trace.counted(Load("concurrency", in_flight))[0])
    return p50_ms


@pytest.mark.parametrize("site", ["redis"], indirect=True)
def test_no_request_fails_while_redis_is_gone(site: Site, record: Record) -> None:
    """Redis is killed under load and stays away."""
    assert site.redis is not None
    timer = threading.Timer(KILLED_AFTER_S, site.redis.kill)
    timer.start()
    trace = site.ask(site.by_id, max(IN_FLIGHT), 3 * KILLED_AFTER_S)
    timer.join()
    record(redis_down_failed=float((trace.status != OK).sum()))
