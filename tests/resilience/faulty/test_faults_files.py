"""Disks that are full, and files that are gone or damaged, under load."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.resilience.conftest import Pair
from tests.resilience.faults import FaultTable, Finding, fill, own_mounts, small_disk, wait_until
from tests.resilience.faulty.site import Site, errors, judge, lost, replaced
from tests.resilience.traffic import OK, Outcome

MB = 1 << 20


@pytest.fixture(scope="module")
def running(pair: Pair, workplace: Path) -> Iterator[Site]:
    with Site(workplace / "files", pair) as site:
        yield site


@pytest.fixture
def site(running: Site) -> Site:
    """The site, served by a launcher that may still start its server again."""
    if not running.served.running or len(running.crashes()) > 1:
        running.start()
    return running


# --- files that are gone or damaged


def test_a_run_folder_that_is_removed(site: Site, faults: FaultTable) -> None:
    with (
        faults("run folder: removed, and a stage killed") as found,
        site.asked() as outcomes,
    ):
        worker, seen = site.worker("rank"), site.seen()
        (folder,) = (site.work / "tmp").glob("cascade-*")
        shutil.rmtree(folder.rename(folder.with_name("removed")))
        worker.kill()
        killed_s = time.monotonic()
        found.shows = site.told(seen, "files restored")
        site.told(seen, "reloaded", "restarted")
        judge(found, outcomes, killed_s)


def ends(found: Finding, site: Site, outcomes: list[Outcome], stage: str) -> None:
    """A killed stage cannot come back, and the launcher ends; requests before went well."""
    worker = site.worker(stage)
    failed = sum(outcome.error != OK for outcome in outcomes)
    worker.kill()
    found.shows = site.error()
    found.lost = failed + lost(outcomes)


def test_a_repository_that_is_deleted(site: Site, work: Path, faults: FaultTable) -> None:
    kept = Path(shutil.copytree(site.repository, work / "kept", copy_function=os.link))
    with faults("repository: deleted, and a stage killed") as found:
        with site.asked() as outcomes:
            shutil.rmtree(site.repository)
            ends(found, site, outcomes, "rank")
        kept.rename(site.repository)
        found.right_s = site.start()


@pytest.mark.parametrize("name", ["rank/1/model.onnx", "rank/1/item_state.bin"])
def test_a_file_that_turns_into_garbage(site: Site, faults: FaultTable, name: str) -> None:
    path = site.repository / name
    with faults(f"repository: {path.name} becomes garbage, and a stage is killed") as found:
        garbage = os.urandom(path.stat().st_size)
        with replaced(path, garbage), site.asked() as outcomes:
            ends(found, site, outcomes, "rank")
        assert path.name in found.shows
        found.right_s = site.start()


# --- disks that are full


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """A full disk while the block runs."""
    filler = fill(folder)
    try:
        yield
    finally:
        filler.unlink()


def test_shared_memory_that_fills_up(pair: Pair, work: Path, faults: FaultTable) -> None:
    small = own_mounts("mount -t tmpfs -o size=32m tmpfs /dev/shm")
    with (
        faults("/dev/shm: full") as found,
        Site(work / "site", pair, prefix=small) as site,
        site.asked() as outcomes,
    ):
        with full(Path(f"/proc/{site.served.launcher.pid}/root/dev/shm")):
            found.shows = site.told(0, "disk full")
            with site.crowd() as large:
                wait_until(lambda: errors(large))
            found.shows += f"; {errors(large)}"
        judge(found, outcomes, time.monotonic())


def test_a_log_whose_disk_fills_up(pair: Pair, work: Path, faults: FaultTable) -> None:
    with (
        faults("log: its disk is full, and a stage killed") as found,
        small_disk(work / "disk", 8 * MB) as disk,
        Site(work / "site", pair, ("--log", str(disk / "log"))) as site,
        site.asked() as outcomes,
    ):
        worker, seen = site.worker("rank"), site.seen()
        with full(disk):
            found.shows = site.told(seen, "disk full")
            worker.kill()
            killed_s = time.monotonic()
            judge(found, outcomes, killed_s)
        site.told(seen, "disk has room")


# --- stderr


def test_stderr_on_a_full_disk(pair: Pair, work: Path, faults: FaultTable) -> None:
    with (
        faults("stderr: on a full disk, and a stage killed") as found,
        silent(pair, work, Path("/dev/full")) as (site, log),
    ):
        kill_a_stage(found, site, log)


def test_stderr_without_a_reader(pair: Pair, work: Path, faults: FaultTable) -> None:
    reader, writer = os.pipe()
    with (
        faults("stderr: its reader is gone, and a stage killed") as found,
        silent(pair, work, Path(f"/proc/self/fd/{writer}")) as (site, log),
    ):
        os.close(writer)
        os.close(reader)
        kill_a_stage(found, site, log)


@contextmanager
def silent(pair: Pair, work: Path, stderr: Path) -> Iterator[tuple[Site, Path]]:
    """A site whose launcher reports to `stderr`, and the log of its server."""
    log = work / "server.log"
    with Site(work / "site", pair, ("--log", str(log)), stderr=stderr) as site:
        yield site, log


def kill_a_stage(found: Finding, site: Site, log: Path) -> None:
    """The launcher mends it, and its events are in the log of the server."""

    def event() -> str:
        lines = log.read_text(errors="replace").splitlines()
        return next((line for line in lines if '"event": "process died"' in line), "")

    with site.asked() as outcomes:
        site.worker("rank").kill()
        killed_s = time.monotonic()
        found.shows = wait_until(event)
        judge(found, outcomes, killed_s)
