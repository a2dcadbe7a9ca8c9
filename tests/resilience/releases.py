"""Releases under load: twenty in a row, back again, and publishers killed in every step."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cascade.release import read_release
from cascade.server.launcher import Server
from cascade.server.security import KEY_VARIABLE
from export.releases.canary import Canary
from export.releases.control import Control
from export.releases.manifest import verify
from export.releases.publishing import STEPS, Publisher
from export.releases.repository import Repository
from export.releases.transfer import from_export
from perf.commands import heading
from perf.table import table
from tests.resilience.audience import Audience
from tests.resilience.stock import Pair, Stock

RELEASES, ROLLBACKS = 20, 4
QUIET_S = 5.0  # of load before anything is published
KEY = secrets.token_urlsafe(32)
DRIVER = """
import os, sys
from pathlib import Path
from cascade.server.security import KEY_VARIABLE, headers
from export.command import say
from export.canary import Canary
from export.control import Control
from export.live import Repository
from export.publishing import Publisher
from export.transfer import from_export
root, url, source = sys.argv[1:]
control = Control(url, headers(os.environ[KEY_VARIABLE]))
Publisher(Repository(Path(root)), control, say=say).publish(from_export(Path(source)))
"""


@dataclass(frozen=True)
class Site:
    """A repository and the server on it."""

    repository: Repository
    server: Server
    exports: Pair

    def publisher(self) -> Publisher:
        return Publisher(
            self.repository,
            Control(self.server.url, self.server.control_headers),
            say=lambda line: None,
        )

    @property
    def live(self) -> int:
        assert self.repository.live is not None
        return self.repository.live


@contextmanager
def site(work: Path, exports: Pair) -> Iterator[Site]:
    """The first release, served."""
    repository = Repository(work / "live")
    Publisher(repository, say=lambda line: None).publish(from_export(exports.source(1)))
    with Server(repository.root, control_key=KEY) as server:
        yield Site(repository, server, exports)


def run(work: Path, stock: Stock) -> dict[str, float]:
    """All of it -> the keys of the summary."""
    with site(work, stock.pair) as place:
        return {**_in_a_row(place, work), **_killed(place)}


def _in_a_row(place: Site, work: Path) -> dict[str, float]:
    """Publish and go back under load, and look at every answer."""
    heading(f"{RELEASES} releases in a row, {ROLLBACKS} steps back and forth, 8 in flight")
    switches_ms, backs_ms = [], []
    with Audience(
        place.server.url, place.exports.users, place.exports.expected, work / "trace.npz"
    ) as audience:
        time.sleep(1)  # the first requests of every client
        began = time.monotonic_ns()
        time.sleep(QUIET_S)
        quiet = time.monotonic_ns()
        for _ in tqdm(range(RELEASES), desc="releases"):
            made = place.publisher().publish(from_export(place.exports.source(place.live + 1)))
            switches_ms.append(made.switch_ms or 0.0)
        published = time.monotonic_ns()
        for _ in range(ROLLBACKS):
            one, other = place.repository.loaded()
            back = place.publisher().roll_back(one if place.live == other else other)
            backs_ms.append(back.switch_ms or 0.0)
    trace = audience.trace
    before, during = trace.p99_ms(began, quiet), trace.p99_ms(quiet, published)
    seen = [int(number) for number in np.unique(trace.release[trace.release > 0])]
    rows = [
        ["answers", f"{len(trace.release):,}"],
        ["releases that answered", f"{len(seen)} (1 to {max(seen)})"],
        ["failed", str(trace.failed)],
        ["of no release", str(trace.mixed)],
        ["seconds per release", f"{(published - quiet) / 1e9 / RELEASES:.1f}"],
        ["switch ms, median and longest", f"{np.median(switches_ms):.1f} / {max(switches_ms):.1f}"],
        ["the same, rolling back", f"{np.median(backs_ms):.1f} / {max(backs_ms):.1f}"],
        ["p99 ms before and while publishing", f"{before:.1f} / {during:.1f}"],
    ]
    print(table(["under load", "found"], rows))
    return {
        "releases": RELEASES,
        "release_failed": trace.failed,
        "release_mixed": trace.mixed,
        "switch_ms_max": max(switches_ms + backs_ms),
        "release_p99_ratio": during / before,
    }


def _killed(place: Site) -> dict[str, float]:
    """kill -9 in every step; the next publisher has to cope, the server must not notice."""
    heading("publishers killed with SIGKILL in every step")
    rows, survived = [], 0
    for step in tqdm(STEPS, desc="kills"):
        before = place.live
        _kill_in(step, place)
        after = place.live
        try:
            verify(place.repository.root, after)
            answered = _answers_as(place, {before, after})
            made = place.publisher().publish(from_export(place.exports.source(after + 1)))
            right = answered and _answers_as(place, {made.number})
            left = [*place.repository.leftovers()]
            outcome = "whole" if right and not left else f"left {left}, right {right}"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        survived += outcome == "whole"
        rows.append([step, str(before), str(after), str(place.live), outcome])
    print(table(["killed in", "live before", "after", "next publisher", "outcome"], rows))
    return {"publisher_kills": len(STEPS), "publisher_kills_survived": survived / len(STEPS)}


def _kill_in(step: str, place: Site) -> None:
    source = str(place.exports.source(place.live + 1))
    arguments = [str(place.repository.root), place.server.url, source]
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, KEY_VARIABLE: KEY},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.split()[1] == step:
            time.sleep(0.05)  # into the step
            os.kill(process.pid, signal.SIGKILL)
    process.wait()


def _answers_as(place: Site, numbers: set[int]) -> bool:
    """Whether the server answers the canary requests of one of these releases, and says which."""
    control = Control(place.server.url)  # who only asks needs no key
    known = Canary.from_dict(read_release(place.repository.root, place.live)["canary"])
    users = {"dense": known.dense, "categorical": known.categorical}
    answer = control.ask("recommend", None, users)
    release = int(answer["release"][0, 0])
    if release not in numbers:
        return False
    expected = Canary.from_dict(read_release(place.repository.root, release)["canary"])
    return not [*expected.differences(answer["item_ids"], answer["scores"])]
