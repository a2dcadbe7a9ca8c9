"""Releases under load: many in a row, back again, and publishers killed in every step."""

from __future__ import annotations

import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import pytest

from cascade.release import read_release
from cascade.server.launcher import Server
from export.releases.canary import Canary
from export.releases.control import Control
from export.releases.manifest import verify
from export.releases.publishing import STEPS, Publisher
from export.releases.repository import Repository
from export.releases.rewire import from_export
from tests.resilience.audience import audience
from tests.resilience.claims import Record
from tests.resilience.conftest import Pair
from tests.resilience.publisher import publish

RELEASES, THOROUGH_RELEASES, ROLLBACKS = 8, 20, 4
QUIET_S = 5.0  # of load before anything is published
KEY = secrets.token_urlsafe(32)


@dataclass(frozen=True)
class Site:
    """A live repository and the server on it."""

    repository: Repository
    server: Server
    pair: Pair

    def publisher(self) -> Publisher:
        control = Control(self.server.url, self.server.control_headers)
        return Publisher(self.repository, control, say=lambda line: None)

    def publish_next(self) -> tuple[int, float]:
        """-> the new release, and how long the switch to it took, in ms."""
        source = from_export(self.pair.source(self.live + 1))
        made = self.publisher().publish(source)
        return made.number, made.switch_ms or 0.0

    @property
    def live(self) -> int:
        assert self.repository.live is not None
        return self.repository.live

    def answers_as(self, *releases: int) -> bool:
        """Whether the server answers as one of these releases, and says which: each is asked the
        canary requests of its own export, older ones first."""
        control = Control(self.server.url)  # asking takes no key
        for release in releases:
            known = Canary.from_dict(read_release(self.repository.root, release)["canary"])
            users = {"dense": known.dense, "categorical": known.categorical}
            answer = control.ask("recommend", None, users)
            if int(answer["release"][0, 0]) == release:
                return not [*known.differences(answer["item_ids"], answer["scores"])]
        return False


@pytest.fixture(scope="module")
def site(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The first release, served."""
    repository = Repository(tmp_path_factory.mktemp("releases") / "live")
    Publisher(repository, say=lambda line: None).publish(from_export(pair.source(1)))
    with Server(repository.root, control_key=KEY) as server:
        yield Site(repository, server, pair)


@pytest.fixture(scope="module")
def survived(record: Record) -> Iterator[dict[str, bool]]:
    """Whether the site was whole after a publisher had been killed, by the step of the kill."""
    steps: dict[str, bool] = {}
    yield steps
    record(
        publisher_kills=len(steps),
        publisher_kills_survived=sum(steps.values()) / len(steps),
    )


def test_releases_in_a_row_cost_no_answer(site: Site, thorough: bool, record: Record) -> None:
    releases = THOROUGH_RELEASES if thorough else RELEASES
    users = site.pair.cascades[0].users
    with audience(site.server.url, users, site.pair.scores) as asked:
        time.sleep(1)  # the first requests of every client
        began = time.monotonic_ns()
        time.sleep(QUIET_S)
        quiet = time.monotonic_ns()
        switches_ms = [site.publish_next()[1] for _ in range(releases)]
        published = time.monotonic_ns()
        backs_ms = [_roll_back(site) for _ in range(ROLLBACKS)]
    trace = asked.result()
    before, during = trace.p99_ms(began, quiet), trace.p99_ms(quiet, published)
    seen = np.unique(trace.release[trace.release > 0])
    rows = [
        ["answers", f"{len(trace.release):,}"],
        ["releases that answered", f"{len(seen)} (1 to {max(seen)})"],
        ["seconds per release", f"{(published - quiet) / 1e9 / releases:.1f}"],
        ["switch ms, median and longest", f"{np.median(switches_ms):.1f} / {max(switches_ms):.1f}"],
        ["the same, rolling back", f"{np.median(backs_ms):.1f} / {max(backs_ms):.1f}"],
        ["p99 ms before and while publishing", f"{before:.1f} / {during:.1f}"],
    ]
    record.table(["releases in a row, 8 in flight", "found"], rows)
    record(
        releases=releases,
        release_failed=trace.failed,
        release_mixed=trace.mixed,
        switch_ms_max=max(switches_ms + backs_ms),
        release_p99_ratio=during / before,
    )


def _roll_back(site: Site) -> float:
    one, other = site.repository.loaded()
    return site.publisher().roll_back(one if site.live == other else other).switch_ms or 0.0


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_publisher_costs_nothing(site: Site, survived: dict[str, bool], step: str) -> None:
    """The next publisher has to cope, and the server must not notice."""
    survived[step] = False
    before = site.live
    _kill_in(step, site)
    after = site.live
    verify(site.repository.root, after)
    assert site.answers_as(before, after)
    number, _ = site.publish_next()
    assert site.answers_as(number)
    assert not [*site.repository.leftovers()]
    survived[step] = True


def _kill_in(step: str, site: Site) -> None:
    """Publish from a process that gets SIGKILL in that step."""
    spawn = get_context("spawn")  # a fork would copy the locks of this process's threads
    lines, said = spawn.Pipe(duplex=False)
    source = site.pair.source(site.live + 1)
    arguments = (said, site.repository.root, site.server.url, KEY, source)
    publisher = spawn.Process(target=publish, args=arguments)
    publisher.start()
    said.close()
    with suppress(EOFError):  # the publisher has ended
        while line := lines.recv():  # such as "[3/9] check"
            if line.split()[1] == step:
                time.sleep(0.05)  # into the step
                publisher.kill()
    publisher.join()
    assert publisher.exitcode == -signal.SIGKILL
