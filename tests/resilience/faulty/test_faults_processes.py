"""Processes that hang, die, or meet a limit, under load."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import psutil
import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from cascade.client import channel
from cascade.errors import CascadeError
from cascade.server import cleanup, security
from cascade.spec import ENSEMBLE, STAGES
from export.releases.control import Control
from export.releases.publishing import Publisher
from export.releases.repository import Repository
from export.releases.rewire import from_export
from tests.resilience.audience import audience
from tests.resilience.conftest import Pair
from tests.resilience.faults import FaultTable, wait_until
from tests.resilience.faulty.site import KEY, Site, errors, judge, lost, stopped
from tests.resilience.traffic import OK

HUGE = 64 << 20  # bytes of a value

LONG_S, SHORT_S = 30.0, 6.0  # of a process that hangs, in a run of usual length and in a short one
USUAL_SECONDS = 10  # --seconds of a run that is not short


@pytest.fixture(scope="module")
def running(pair: Pair, workplace: Path) -> Iterator[Site]:
    with Site(workplace / "processes", pair) as site:
        yield site


@pytest.fixture
def site(running: Site) -> Site:
    """The site, served by a launcher that may still start its server again."""
    if not running.served.running or len(running.crashes()) > 1:
        running.start()
    return running


@pytest.fixture
def hanging_s(seconds: float) -> float:
    return LONG_S if seconds >= USUAL_SECONDS else SHORT_S


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_hangs(site: Site, faults: FaultTable, hanging_s: float, stage: str) -> None:
    with faults(f"{stage}: SIGSTOP for {hanging_s:g} s") as found, site.asked() as outcomes:
        worker, seen = site.worker(stage, known=False), site.seen()
        with stopped(worker):
            time.sleep(hanging_s)
        found.shows = site.told(seen, "canary failed")
        judge(found, outcomes, time.monotonic())


def test_a_server_that_hangs(site: Site, faults: FaultTable, hanging_s: float) -> None:
    with faults(f"tritonserver: SIGSTOP for {hanging_s:g} s") as found, site.asked() as outcomes:
        seen = site.seen()
        with stopped(site.server):
            time.sleep(hanging_s)
        found.shows = site.told(seen, "canary failed")
        judge(found, outcomes, time.monotonic())


def test_a_launcher_that_hangs_while_a_stage_dies(
    site: Site, faults: FaultTable, hanging_s: float
) -> None:
    with (
        faults(f"launcher: SIGSTOP for {hanging_s:g} s, and a stage killed") as found,
        site.asked() as outcomes,
    ):
        worker, ending = site.worker("rank"), time.monotonic() + hanging_s
        with stopped(psutil.Process(site.served.launcher.pid)):
            worker.kill()
            found.shows = site.health()
            time.sleep(max(0.0, ending - time.monotonic()))
        assert found.shows.startswith("unhealthy: ")
        judge(found, outcomes, time.monotonic())


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage(site: Site, faults: FaultTable, stage: str) -> None:
    with faults(f"{stage}: SIGKILL") as found, site.asked() as outcomes:
        worker, seen = site.worker(stage), site.seen()
        worker.kill()
        killed_s = time.monotonic()
        found.shows = site.told(seen, "process died", "server died")
        judge(found, outcomes, killed_s)


def test_a_killed_server(site: Site, faults: FaultTable) -> None:
    with faults("tritonserver: SIGKILL") as found, site.asked() as outcomes:
        seen, killed_s = site.seen(), time.monotonic()
        site.server.kill()
        found.shows = site.told(seen, "server died")
        judge(found, outcomes, killed_s)


def test_a_killed_launcher(site: Site, faults: FaultTable) -> None:
    """The next launcher removes what is left of the server."""
    name = site.served.name
    with faults("launcher: SIGKILL") as found:
        with site.asked() as outcomes:
            site.served.launcher.kill()
            killed_s = time.monotonic()
            wait_until(lambda: not cleanup.processes(name), "the server survives its launcher")
            wait_until(lambda: outcomes[-1].error != OK)
        found.shows = errors(outcomes)
        site.start()
        found.right_s = time.monotonic() - killed_s
        files = [*(site.work / "tmp").glob(f"cascade-*/{name}*")]
        found.lost = lost(outcomes) + len(cleanup.segments(name)) + len(files)


def test_a_release_that_is_published_while_a_stage_hangs(site: Site, faults: FaultTable) -> None:
    """Every answer is one of the release that it names."""
    repository, pair = Repository(site.repository), site.pair
    before = repository.live or 0
    control = Control(site.served.url, security.headers(KEY))
    publisher = Publisher(repository, control, say=lambda line: None)
    users = pair.cascades[0].users
    with faults("publish: a stage hangs meanwhile") as found:
        with audience(site.served.url, users, pair.scores) as asked:
            seen = site.seen()
            with stopped(site.worker("rank", known=False)):
                found.shows = site.told(seen, "canary failed")
                with suppress(CascadeError):  # then the release before stays
                    publisher.publish(from_export(pair.source(before + 1)))
            ended_s, live = time.monotonic(), repository.live
            with site.asked() as outcomes:
                judge(found, outcomes, ended_s)
        found.lost += asked.result().mixed + int(live not in (before, before + 1))
        found.lost += int(bool([*repository.leftovers()]))


# --- limits


@contextmanager
def limited(process: psutil.Process, kind: int, most: int) -> Iterator[None]:
    """A limit of a process while the block runs. The process may be gone in the end."""
    hard = process.rlimit(kind)[1]
    process.rlimit(kind, (most, hard))
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            process.rlimit(kind, (hard, hard))


def test_a_stage_without_memory(site: Site, faults: FaultTable) -> None:
    """The process that comes in its place has no such limit."""
    with faults("retrieve: no more memory (RLIMIT_AS)") as found, site.asked() as outcomes:
        worker, seen = site.worker("retrieve"), site.seen()

        def felt() -> str:
            press(site)
            return errors(outcomes) or site.told_now(seen)

        with limited(worker, resource.RLIMIT_AS, worker.memory_info().vms), site.crowd():
            found.shows = wait_until(felt)
        judge(found, outcomes, time.monotonic())


def press(site: Site) -> None:
    """Ask with a value for which a process has to get more memory; it is refused in any case."""
    inputs = []
    for name, dtype in (("dense", "FP32"), ("categorical", "BYTES")):
        values = getattr(site.users, name)[:1].copy()
        if dtype == "BYTES":
            values[0, 0] = b"x" * HUGE
        inputs.append(grpc.InferInput(name, values.shape, dtype))
        inputs[-1].set_data_from_numpy(values)
    with channel.connect(site.served.url) as client, suppress(InferenceServerException):
        client.infer(ENSEMBLE, inputs, client_timeout=5)


def test_a_server_without_file_descriptors(site: Site, faults: FaultTable) -> None:
    """Connections that are open go on."""
    with faults("tritonserver: no more file descriptors") as found, site.asked() as outcomes:
        server = site.server
        time.sleep(1)
        with limited(server, resource.RLIMIT_NOFILE, first_free(server)):
            before = len(outcomes)
            found.shows = site.health()
            assert {outcome.error for outcome in outcomes[before:]} == {OK}
        begin = time.monotonic()
        wait_until(lambda: connects(site.served.url))
        found.lost, found.right_s = lost(outcomes), time.monotonic() - begin
        assert found.shows.startswith("unhealthy: ")


def first_free(process: psutil.Process) -> int:
    """The number of the next file that a process opens."""
    used = {int(name) for name in os.listdir(f"/proc/{process.pid}/fd")}
    return next(number for number in count() if number not in used)


def connects(url: str) -> bool:
    """Whether a new client gets an answer."""
    try:
        with channel.connect(url) as client:
            return bool(client.is_model_ready(ENSEMBLE, client_timeout=1.0))
    except InferenceServerException:
        return False
