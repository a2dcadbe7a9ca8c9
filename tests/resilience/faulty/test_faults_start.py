"""Faults at the start of the launcher."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import make_certificates
from tests.resilience.conftest import Pair
from tests.resilience.faults import (
    FaultTable,
    Finding,
    Ran,
    fill,
    health,
    own_mounts,
    program,
    read_only,
    small_disk,
    wait_until,
)
from tests.resilience.faulty.site import KEY, Site
from tests.served import FREE_PORTS, Served, serve

MB = 1 << 20


@pytest.fixture(scope="module")
def site(pair: Pair, workplace: Path) -> Iterator[Site]:
    """What a start without a fault looks like; its log is in a folder that was not there."""
    log = workplace / "start" / "made" / "server.log"
    with Site(workplace / "start", pair, ("--log", str(log))) as running:
        yield running


@pytest.fixture
def temporary(work: Path) -> Path:
    """A TMPDIR of the test's own."""
    folder = work / "tmp"
    folder.mkdir()
    return folder


@pytest.fixture
def damaged(pair: Pair, work: Path) -> Path:
    """A repository that may be damaged."""
    return Path(shutil.copytree(pair.source(1), work / "damaged"))


def start(root: Path, temporary: Path, *arguments: str | Path, **how: Any) -> Ran:
    """Run a launcher that is not expected to serve."""
    words = ("cascade.server", "--repository", root, *FREE_PORTS, *arguments)
    return program(*words, environment={"TMPDIR": str(temporary)}, **how)


def judge(found: Finding, ran: Ran, site: Site, temporary: Path) -> None:
    """A launcher that has ended leaves nothing; the next one takes as long as one without fault."""
    found.shows = ran.error
    found.lost = len([*temporary.glob("cascade-*/cascade_*")])
    found.right_s = site.start_s


def judge_served(found: Finding, served: Served) -> None:
    """The fault keeps nothing from being right."""
    said = health(served.url, served.metrics_url)
    found.lost, found.right_s = int(not said.startswith("healthy: ")), 0.0


def cut(path: Path) -> None:
    """Leave half of a file."""
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size // 2)


def test_shared_memory_full(site: Site, temporary: Path, faults: FaultTable) -> None:
    small = own_mounts("mount -t tmpfs -o size=64k tmpfs /dev/shm")
    with faults("start: /dev/shm full") as found:
        judge(found, start(site.repository, temporary, prefix=small), site, temporary)
        assert "shared memory" in found.shows


@pytest.mark.parametrize(("limit", "most"), [("RLIMIT_NOFILE", 64), ("RLIMIT_AS", 400 * MB)])
def test_a_limit(site: Site, temporary: Path, faults: FaultTable, limit: str, most: int) -> None:
    with faults(f"start: {limit} of {most:,}") as found:
        ran = start(site.repository, temporary, limits={getattr(resource, limit): most})
        judge(found, ran, site, temporary)


def test_a_full_folder_of_temporary_files(site: Site, work: Path, faults: FaultTable) -> None:
    with faults("start: TMPDIR on a full disk") as found, small_disk(work / "tmp", MB) as disk:
        fill(disk)
        log, added = work / "launcher.log", {"TMPDIR": str(disk)}
        with serve(site.repository, log, environment=added) as served:
            found.shows = log.read_text()
            judge_served(found, served)
        assert f"TMPDIR={disk} cannot be written to" in found.shows


def test_a_nearly_full_folder_of_temporary_files(
    site: Site, work: Path, faults: FaultTable
) -> None:
    """There is room for the server's links, and none for its log."""
    with (
        faults("start: TMPDIR on a disk with 8 kB left") as found,
        small_disk(work / "tmp", MB) as disk,
    ):
        fill(disk, 8192)
        log, added = work / "launcher.log", {"TMPDIR": str(disk)}
        with serve(site.repository, log, environment=added) as served:
            found.shows = wait_until(lambda: log.read_text())
            judge_served(found, served)
        assert "disk full" in found.shows


def test_a_read_only_folder_of_temporary_files(
    site: Site, work: Path, temporary: Path, faults: FaultTable
) -> None:
    with faults("start: TMPDIR is read-only") as found, read_only(temporary):
        log, added = work / "launcher.log", {"TMPDIR": str(temporary)}
        with serve(site.repository, log, environment=added) as served:
            found.shows = log.read_text()
            judge_served(found, served)
        assert f"TMPDIR={temporary} cannot be written to" in found.shows


def test_a_read_only_file_system(site: Site, temporary: Path, faults: FaultTable) -> None:
    """As in a container without a place for temporary files."""
    mounts = "mount -o remount,bind,ro / && mount -t tmpfs -o ro tmpfs /dev/shm"
    with faults("start: all file systems are read-only") as found:
        ran = start(site.repository, temporary, prefix=own_mounts(mounts))
        judge(found, ran, site, temporary)
        assert "set TMPDIR" in found.shows


def test_a_repository_that_may_not_be_read(
    damaged: Path, site: Site, temporary: Path, faults: FaultTable
) -> None:
    with faults("start: the repository may not be read") as found:
        damaged.chmod(0)
        judge(found, start(damaged, temporary, able=False), site, temporary)
        damaged.chmod(0o755)
        assert "this user may not read it" in found.shows


def test_a_repository_on_a_read_only_disk(damaged: Path, work: Path, faults: FaultTable) -> None:
    with (
        faults("start: the repository is mounted read-only") as found,
        read_only(damaged),
        serve(damaged, work / "launcher.log") as served,
    ):
        found.shows = served.ready
        judge_served(found, served)


def test_a_control_key_that_may_not_be_read(
    site: Site, work: Path, temporary: Path, faults: FaultTable
) -> None:
    key = work / "key"
    key.write_text(KEY)
    key.chmod(0)
    with faults("start: the control key may not be read") as found:
        ran = start(site.repository, temporary, "--control-key-file", key, able=False)
        judge(found, ran, site, temporary)
        assert str(key) in found.shows


def test_a_tls_key_that_may_not_be_read(
    site: Site, work: Path, temporary: Path, faults: FaultTable
) -> None:
    make_certificates(work)
    key = work / "server.key"
    key.chmod(0)
    with faults("start: the TLS key may not be read") as found:
        tls = ("--tls-cert", work / "server.pem", "--tls-key", key)
        judge(found, start(site.repository, temporary, *tls, able=False), site, temporary)
        assert str(key) in found.shows
        assert "Permission denied" in found.shows


def test_a_port_in_use(site: Site, temporary: Path, faults: FaultTable) -> None:
    port = site.served.url.rpartition(":")[2]
    with faults("start: a port is in use") as found:
        ran = start(site.repository, temporary, f"--grpc-port={port}")
        judge(found, ran, site, temporary)
        assert port in found.shows


def test_a_log_in_a_folder_that_is_not_there(site: Site, faults: FaultTable) -> None:
    with faults("start: the folder of --log is not there") as found:
        log = site.work / "made" / "server.log"
        found.shows = site.served.ready
        judge_served(found, site.served)
        assert str(log) in found.shows
        assert log.stat().st_size > 0


def test_a_log_that_may_not_be_written(
    site: Site, work: Path, temporary: Path, faults: FaultTable
) -> None:
    folder = work / "logs"
    folder.mkdir(mode=0o555)
    with faults("start: the folder of --log may not be written") as found:
        ran = start(site.repository, temporary, "--log", folder / "log", able=False)
        judge(found, ran, site, temporary)
        assert str(folder / "log") in found.shows


@pytest.mark.parametrize(
    "name", ["recommend/1/release.json", "retrieve/1/index.faiss", "rank/1/item_state.bin"]
)
def test_a_truncated_file(
    damaged: Path, site: Site, temporary: Path, faults: FaultTable, name: str
) -> None:
    with faults(f"start: {Path(name).name} is truncated") as found:
        cut(damaged / name)
        ran = start(damaged, temporary)
        judge(found, ran, site, temporary)
        assert name in ran.errors
