"""Names of servers that do not resolve."""

from __future__ import annotations

import shlex
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cascade.client import Recommender
from cascade.server import security
from cascade.store import UserStore
from export.releases.control import Control
from export.releases.publishing import Publisher
from export.releases.repository import Repository
from export.releases.rewire import from_export, rewire, settings_of
from export.users import layout_of
from tests.network import Names
from tests.redis_server import RedisServer
from tests.resilience.conftest import Pair
from tests.resilience.faults import (
    FaultTable,
    events,
    health,
    metric,
    own_mounts,
    program,
    wait_until,
)
from tests.resilience.faulty.site import KEY, Site
from tests.served import serve

HOST = "users.invalid"
SILENT, SOON = "127.0.0.99", "options timeout:1 attempts:1"  # the C library gives up after 1 s


@pytest.fixture(scope="module")
def site(pair: Pair, workplace: Path) -> Iterator[Site]:
    with Site(workplace / "names", pair) as running:
        yield running


@pytest.fixture
def names() -> Names:
    """A DNS server that knows no name."""
    return Names()


@pytest.mark.parametrize("dns", ["is not there", "does not answer"])
def test_a_redis_whose_name_does_not_resolve(
    pair: Pair, work: Path, faults: FaultTable, dns: str
) -> None:
    serving, product = settings_of(pair.source(1))
    hosts, resolver = work / "hosts", work / "resolv.conf"
    shutil.copy("/etc/hosts", hosts)
    resolver.write_text(f"nameserver {SILENT}\n{SOON}\n" if dns == "does not answer" else "")
    mounts = "; ".join(
        shlex.join(("mount", "--bind", str(mine), f"/etc/{mine.name}"))
        for mine in (hosts, resolver)
    )
    with (
        faults(f"Redis: its name does not resolve, DNS {dns}") as found,
        silence((SILENT, 53)),
        RedisServer(work) as redis,
    ):
        url = redis.url().replace("127.0.0.1", HOST)
        rewire(pair.source(1), work / "live", serving, replace(product, store=url))
        odd = pair.cascades[1]
        with UserStore.create(redis.url(), layout_of(work / "live"), replace=True) as store:
            store.put(["17"], odd.dense[:1], odd.categorical[:1])
        log = work / "launcher.log"
        with (
            serve(work / "live", log, prefix=own_mounts(mounts)) as served,
            Recommender(served.url, deadline_s=5) as client,
        ):
            assert all(client.recommend_user("17").cold_start for _ in range(5))
            wait_until(lambda: metric(served.metrics_url, "cascade_store_up") == 0)
            found.shows = health(served.url, served.metrics_url)
            assert "degraded: the store of users does not answer" in found.shows
            begin = time.monotonic()
            with hosts.open("a") as file:  # in place: it is mounted
                file.write(f"127.0.0.1 {HOST}\n")
            wait_until(lambda: not client.recommend_user("17").cold_start)
            found.lost, found.right_s = len(events(log)), time.monotonic() - begin


@contextmanager
def silence(address: tuple[str, int]) -> Iterator[str]:
    """A DNS server that does not answer -> its HOST:PORT."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        try:
            silent.bind(address)
        except OSError as error:
            pytest.skip(f"this user cannot listen on {address}: {error}")
        yield "{}:{}".format(*silent.getsockname())


def test_a_client_whose_server_has_no_address(site: Site, names: Names, faults: FaultTable) -> None:
    url = names.url("cascade", site.served.url.rpartition(":")[2])
    ask = ("clients.recommend", "--random", "--deadline-ms", "3000", "--url", url)
    with faults("clients.recommend: the server's name does not resolve") as found:
        found.shows = program(*ask).error
        names.address = "127.0.0.1"
        ran = program(*ask)
        found.lost, found.right_s = ran.code, ran.seconds
        assert "not found" in found.shows


def test_a_client_whose_dns_is_silent(site: Site, faults: FaultTable) -> None:
    with (
        faults("clients.recommend: DNS does not answer") as found,
        silence(("127.0.0.1", 0)) as dns,
    ):
        url = f"dns://{dns}/cascade:8001"
        ask = ("clients.recommend", "--random", "--deadline-ms", "1500", "--url")
        found.shows = program(*ask, url).error
        ran = program(*ask, site.served.url)
        found.lost, found.right_s = ran.code, ran.seconds


def test_a_publisher_whose_server_has_no_address(
    site: Site, names: Names, faults: FaultTable
) -> None:
    url = names.url("cascade", site.served.url.rpartition(":")[2])
    publish = ("export", "publish", "--repository", site.repository, "--url", url)
    release = ("--release", site.pair.source(2))
    key = {"CASCADE_CONTROL_KEY": KEY}
    with faults("export publish --url: the server's name does not resolve") as found:
        found.shows = program(*publish, *release, environment=key).error
        kept = Repository(site.repository).live == 1
        names.address = "127.0.0.1"
        begin, control = time.monotonic(), Control(url, security.headers(KEY))
        publisher = Publisher(Repository(site.repository), control, say=lambda line: None)
        done = publisher.publish(from_export(site.pair.source(2))).number == 2
        found.lost, found.right_s = int(not kept) + int(not done), time.monotonic() - begin


def test_a_health_check_whose_server_has_no_address(
    site: Site, names: Names, faults: FaultTable
) -> None:
    url = names.url("cascade", site.served.url.rpartition(":")[2])
    ask = ("cascade.server.health", "--url", url, "--timeout-s", "2")
    with faults("health: the server's name does not resolve") as found:
        failed = program(*ask)
        found.shows = failed.output
        names.address = "127.0.0.1"
        ran = program(*ask)
        found.lost, found.right_s = ran.code, ran.seconds
        assert failed.code == 1
        assert found.shows.startswith("unhealthy: ")
