"""Releases on the real server, under load: no request fails, none is answered by two releases."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascade.client import Recommender
from cascade.client.split import place
from cascade.config import Serving
from cascade.files import write_json
from cascade.release import read_release
from cascade.server.launcher import Server
from export.releases import commands
from export.releases.canary import CanaryError
from export.releases.control import Control, ControlError
from export.releases.publishing import STEPS, Publisher
from export.releases.repository import Repository
from export.releases.rewire import from_export, rewire
from tests.cascades import Cascade

USERS = 12
KEY = "a-key-that-only-this-test-knows"
PAUSE_S = 0.02  # of a thread between two requests: the other tests want the processor, too


@dataclass
class Load:
    """Threads that keep asking, and compare each answer with what its release would say."""

    url: str
    users: list[dict[str, Any]]
    expected: dict[int, Any]
    answers: int = 0
    wrong: list[str] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)

    def __enter__(self) -> Load:
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(4)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, turn: int) -> None:
        with Recommender(self.url, deadline_s=20) as client:
            while not self._over.wait(PAUSE_S):
                user = turn % USERS
                turn += 1
                try:
                    answer = client.recommend(self.users[user])
                except Exception as error:
                    self.wrong.append(repr(error))
                    continue
                assert answer.release is not None
                ids, scores = (x[user] for x in self.expected[answer.release])
                if not np.allclose(answer.scores, scores, atol=1e-5):
                    self.wrong.append(f"release {answer.release}: {answer.item_ids}, not {ids}")
                self.answers += 1
                self.seen.add(answer.release)


@dataclass
class Site:
    """A repository with a first release, and the server on it."""

    repository: Repository
    server: Server
    exports: tuple[Cascade, Cascade]

    def publisher(self) -> Publisher:
        return Publisher(
            self.repository,
            Control(self.server.url, self.server.control_headers),
            say=lambda line: None,
        )

    def load(self) -> Load:
        """Odd releases come from the first export, even ones from the second."""
        first = self.exports[0]
        answers = [first.ask(cascade.pipeline(), stop=USERS) for cascade in self.exports]
        expected = {number: answers[(number + 1) % 2] for number in range(1, 30)}
        return Load(self.server.url, self.exports[0].users[:USERS], expected)


@pytest.fixture(scope="module")
def site(
    criteo: Cascade, make_cascade: Callable[..., Cascade], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    other = make_cascade(seed=1)
    repository = Repository(tmp_path_factory.mktemp("site") / "repository")
    Publisher(repository, say=lambda line: None).publish(from_export(criteo.repository))
    with Server(repository.root, control_key=KEY) as server:
        yield Site(repository, server, (criteo, other))


def test_releases_come_and_go_under_load(site: Site) -> None:
    with site.load() as load:
        for turn in (1, 0):
            site.publisher().publish(from_export(site.exports[turn].repository))
        back = site.publisher().roll_back()
    assert load.wrong == []
    assert load.seen == {1, 2, 3}
    assert load.answers > 20
    assert (back.number, site.repository.live) == (2, 2)
    assert site.publisher().roll_back(3).number == 3


def test_a_release_that_answers_otherwise_does_not_go_live(site: Site) -> None:
    """Its files are those of its manifest, but they are not what gave the answers in it."""
    live = site.repository.live
    assert live is not None

    def lying(target: Path, number: int) -> None:
        from_export(site.exports[1].repository)(target, number)
        release = read_release(target, number)
        release["canary"]["scores"][2][0] += 0.25
        write_json(target / "recommend" / str(number) / "release.json", release)

    with (
        site.load() as load,
        pytest.raises(CanaryError, match=r"user 2: a score differs by 0\.25"),
    ):
        site.publisher().publish(lying)
    assert load.wrong == []
    assert load.seen == {live}
    assert site.repository.live == live


# It kills itself a moment into a step: another process may be late, when the step is over.
DRIVER = """
import os, signal, sys, threading, time
from pathlib import Path
from cascade.server.security import headers
from export.releases.commands import say
from export.releases.control import Control
from export.releases.publishing import Publisher
from export.releases.repository import Repository
from export.releases.rewire import from_export
root, url, source, step = sys.argv[1:]
def told(line):
    say(line)
    if line.split()[1] == step:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGKILL)).start()
control = Control(url, headers(os.environ["CASCADE_CONTROL_KEY"]))
Publisher(Repository(Path(root)), control, say=told).publish(from_export(Path(source)))
time.sleep(30)  # the kill may come late
"""


@pytest.mark.parametrize("step", [s for s in STEPS if s in ("load", "switch", "confirm")])
def test_a_killed_publisher_costs_nothing(site: Site, step: str) -> None:
    live = site.repository.live
    assert live is not None
    source = site.exports[live % 2].repository
    arguments = [str(site.repository.root), site.server.url, str(source), step]
    command = [sys.executable, "-c", DRIVER, *arguments]
    with site.load() as load:
        environment = {**os.environ, "CASCADE_CONTROL_KEY": KEY}
        publisher = subprocess.run(command, env=environment, check=False)
        assert publisher.returncode == -signal.SIGKILL
        now = site.repository.live
        assert now in (live, live + 1)
        site.publisher().publish(from_export(site.exports[now % 2].repository))
    assert load.wrong == []
    assert site.repository.live == now + 1
    assert Control(site.server.url).release() == now + 1


def test_without_a_server_the_message_says_what_to_do(site: Site) -> None:
    with pytest.raises(ControlError, match=r"no server answers at 127\.0\.0\.1:1 .*without --url"):
        Publisher(site.repository, Control("127.0.0.1:1"), say=lambda line: None).roll_back()


def ask(site: Site, model: str) -> int:
    """The release that answers under this name; 0 where there is no such model."""
    try:
        users = {"dense": site.exports[0].dense[:1], "categorical": site.exports[0].categorical[:1]}
        return int(Control(site.server.url).ask(model, None, users)["release"][0, 0])
    except ControlError:
        return 0


def share_is_served(site: Site) -> None:
    live, number = site.repository.live, (site.repository.newest or 0) + 1
    assert live is not None
    source = site.exports[(number + 1) % 2].repository
    with site.load() as load:
        site.publisher().publish(from_export(source), share=0.25)
    assert load.wrong == []
    assert (ask(site, "recommend"), ask(site, "recommend_b")) == (live, number)
    assert site.repository.split == 0.25
    states = {int(row[0]): row[1] for row in commands.table(site.repository)}
    assert (states[live], states[number]) == ("live", "25% of users")
    with Recommender(site.server.url, deadline_s=20) as client:
        keys = range(USERS)
        found = client.recommend_many(site.exports[0].users[:USERS], keys=keys)
    expected = [number if place(key) < 0.25 else live for key in keys]
    assert [answer.release for answer in found] == expected
    assert {*expected} == {live, number}
    site.publisher().end_split()
    assert (ask(site, "recommend"), ask(site, "recommend_b")) == (live, 0)
    assert site.repository.split == 0


def test_a_share_of_the_users_may_have_another_release(site: Site) -> None:
    share_is_served(site)
    live = site.repository.live
    assert live is not None
    site.publisher().split(live + 1, 0.5)
    assert site.publisher().roll_back(live + 1).number == live + 1
    assert site.repository.split == 0
    assert (ask(site, "recommend"), ask(site, "recommend_b")) == (live + 1, 0)


def test_one_process_that_is_the_whole_cascade(
    criteo: Cascade, make_cascade: Callable[..., Cascade], tmp_path: Path
) -> None:
    """Loading it is the switch, so it is tried under another name; the rest is the same."""
    serving = Serving(topology="fused", max_batch_size=32)
    exports: Any = [criteo, make_cascade(seed=1)]
    for number, made in enumerate(exports):
        rewire(made.repository, tmp_path / str(number), serving)
        exports[number] = replace(made, repository=tmp_path / str(number))
    repository = Repository(tmp_path / "repository")
    Publisher(repository, say=lambda line: None).publish(from_export(exports[0].repository))
    with Server(repository.root, control_key=KEY) as server:
        site = Site(repository, server, exports)
        with site.load() as load:
            site.publisher().publish(from_export(exports[1].repository))
            site.publisher().roll_back()
        assert load.wrong == []
        assert load.seen == {1, 2}
        share_is_served(site)
    assert [*repository.leftovers()] == []
