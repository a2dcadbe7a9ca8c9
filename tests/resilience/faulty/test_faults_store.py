"""Faults while users by id are written."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from export.users import CHUNK
from tests.cascades import Cascade
from tests.redis_server import RedisServer
from tests.resilience.faults import FaultTable, Finding, Ran, fill, program, small_disk
from tests.resilience.faulty.crowds import Crowd, Events, crowd
from tests.resilience.faulty.forked import Forks

PAGE = 4096
BEFORE, NEW, CROWD = 1_000, 20_000, 12_000
READERS, LINES, FEW_LINES = 500, 20_000, 10_000
KILLS, KILLED = 20, -9
DISK = 32 << 20

HOLDER = """
import lmdb, sys
with lmdb.open(sys.argv[1], map_size=1 << 40, max_readers=1024) as users, users.begin(write=True):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def before(people: Cascade, workplace: Path) -> Crowd:
    return crowd(people, workplace / "before.parquet", BEFORE)


@pytest.fixture(scope="module")
def new(people: Cascade, workplace: Path) -> Crowd:
    return crowd(people, workplace / "new.parquet", NEW, first=BEFORE, seed=1)


@pytest.fixture(scope="module")
def redis(workplace: Path) -> Iterator[RedisServer]:
    (workplace / "writers-redis").mkdir()
    with RedisServer(workplace / "writers-redis") as server:
        yield server


def words(people: Cascade, url: str, users: Crowd) -> tuple[object, ...]:
    where = ("--repository", people.repository, "--store", url)
    return ("export", "users", *where, "--table", users.table)


def check_written(found: Finding, ran: Ran, url: str, *crowds: Crowd) -> None:
    """The command that failed has succeeded."""
    assert ran.code == 0, ran.errors
    found.right_s = ran.seconds
    found.lost += sum(each.lost(url) for each in crowds)


@pytest.mark.parametrize("pages", [0, 1, 16, 300])
def test_a_full_disk_while_users_are_written(
    people: Cascade, before: Crowd, new: Crowd, forked: Forks, work: Path, faults: FaultTable,
    pages: int,
) -> None:  # fmt: skip
    with (
        faults(f"users: disk full, room for {pages} pages") as found,
        small_disk(work / "disk", DISK) as disk,
    ):
        url = f"lmdb:{disk / 'users'}"
        assert forked(*words(people, url, before)).code == 0
        filler = fill(disk, pages * PAGE)
        found.shows = forked(*words(people, url, new)).error
        assert "No space left" in found.shows
        found.lost = before.lost(url) + new.wrong(url)
        filler.unlink()
        check_written(found, forked(*words(people, url, new)), url, before, new)


@pytest.mark.parametrize("pages", [0, 1, 2, 17, 18, 40])
def test_a_full_disk_where_there_is_no_store_yet(
    people: Cascade, new: Crowd, forked: Forks, work: Path, faults: FaultTable, pages: int
) -> None:
    with (
        faults(f"users: disk full, no store yet, room for {pages} pages") as found,
        small_disk(work / "disk", DISK) as disk,
    ):
        url = f"lmdb:{disk / 'users'}"
        filler = fill(disk, pages * PAGE)
        found.shows = forked(*words(people, url, new)).error
        assert "No space left" in found.shows
        filler.unlink()
        found.lost = 0
        check_written(found, forked(*words(people, url, new)), url, new)


@pytest.mark.parametrize("pages", [0, 200])
def test_a_full_disk_while_events_are_written(
    people: Cascade, before: Crowd, forked: Forks, work: Path, faults: FaultTable, pages: int
) -> None:
    """The file goes on where the error says."""
    with (
        faults(f"events: disk full, room for {pages} pages") as found,
        small_disk(work / "disk", DISK) as disk,
    ):
        url, file, log = f"lmdb:{disk / 'users'}", work / "events.jsonl", Events(LINES // 2)
        assert forked(*words(people, url, before)).code == 0
        log.write(file, LINES, turn=1)
        filler = fill(disk, pages * PAGE)
        found.shows = forked("clients.events", "--store", url, file).error
        assert "No space left" in found.shows
        written, found.lost = log.follow(url, before.layout, turn=1)
        found.lost += before.lost(url) + log.uneven(written, turn=1)
        assert f"all lines before {written + 1} are written" in found.shows or not written
        filler.unlink()
        log.write(file, LINES, turn=1, first=written)
        ran = forked("clients.events", "--store", url, file)
        log.histories = [[] for _ in range(log.users)]
        total, lost = log.follow(url, before.layout, turn=1)
        found.lost += lost + LINES - total
        check_written(found, ran, url, before)


def test_a_store_that_may_not_be_written(
    people: Cascade, before: Crowd, forked: Forks, work: Path, faults: FaultTable
) -> None:
    """Its folder, and the file, and the folder that it would be made in."""
    with faults("users: the store may not be written") as found:
        url = f"lmdb:{work / 'users'}"
        assert forked(*words(people, url, before)).code == 0
        for path, mode in ((work / "users", 0o555), (work / "users" / "data.mdb", 0o444)):
            usual = path.stat().st_mode
            path.chmod(mode)
            if mode == 0o555:
                (path / "lock.mdb").chmod(0o444)
            found.shows = forked(*words(people, url, before)).error
            assert "Permission denied" in found.shows
            path.chmod(usual)
            (work / "users" / "lock.mdb").chmod(0o644)
        found.lost = before.lost(url)
        check_written(found, forked(*words(people, url, before)), url, before)


@pytest.mark.parametrize("kind", ["lmdb", "redis"])
def test_a_writer_of_users_killed_at_any_moment(
    people: Cascade, forked: Forks, redis: RedisServer, work: Path, faults: FaultTable, kind: str
) -> None:
    """Two tables of the same users take turns; of each chunk LMDB has one whole table."""
    url = f"lmdb:{work / 'users'}" if kind == "lmdb" else f"{redis.url()}?timeout_ms=5000"
    one, other = (crowd(people, work / f"{n}.parquet", CROWD, seed=2 + n) for n in range(2))
    kills = KILLS if kind == "lmdb" else KILLS // 2
    with faults(f"users: SIGKILL at {kills} moments, {kind}") as found:
        whole = forked(*words(people, url, one))
        assert whole.code == 0, whole.errors
        found.lost, killed, longest_s = 0, 0, whole.seconds
        for turn in range(kills):
            table, moment = (other, one)[turn % 2], random.uniform(0, longest_s)
            ran = forked(*words(people, url, table), kill_after_s=moment)
            killed += ran.code == KILLED
            longest_s = min(longest_s, ran.seconds) if ran.code != KILLED else longest_s
            mine, its = (each.found(url)[1] for each in (one, other))
            found.lost += int((~mine & ~its).sum())
            if kind == "lmdb":
                chunks = (mine[start : start + CHUNK] for start in range(0, CROWD, CHUNK))
                found.lost += sum(len({*chunk.tolist()}) > 1 for chunk in chunks)
        assert killed
        found.shows = f"the writer's exit code: -9, {killed} times"
        check_written(found, forked(*words(people, url, one)), url, one)


@pytest.mark.parametrize("kind", ["lmdb", "redis"])
def test_a_writer_of_events_killed_at_any_moment(
    people: Cascade, before: Crowd, forked: Forks, redis: RedisServer, work: Path,
    faults: FaultTable, kind: str,
) -> None:  # fmt: skip
    """What is there are the first events of the file; with Redis, of each user."""
    url = f"lmdb:{work / 'users'}" if kind == "lmdb" else f"{redis.url(1)}?timeout_ms=5000"
    file, log = work / "events.jsonl", Events(READERS)
    kills = KILLS if kind == "lmdb" else KILLS // 2
    with faults(f"events: SIGKILL at {kills} moments, {kind}") as found:
        assert forked(*words(people, url, before)).code == 0
        log.write(file, FEW_LINES, turn=0)
        whole = forked("clients.events", "--store", url, file)
        assert whole.code == 0, whole.errors
        assert log.follow(url, before.layout, 0) == (FEW_LINES, 0)
        found.lost, killed, longest_s = 0, 0, whole.seconds
        for turn in range(1, kills + 1):
            log.write(file, FEW_LINES, turn)
            moment = random.uniform(0, longest_s)
            ran = forked("clients.events", "--store", url, file, kill_after_s=moment)
            killed += ran.code == KILLED
            longest_s = min(longest_s, ran.seconds) if ran.code != KILLED else longest_s
            written, lost = log.follow(url, before.layout, turn)
            found.lost += lost + (log.uneven(written, turn) if kind == "lmdb" else 0)
        assert killed
        found.shows = f"the writer's exit code: -9, {killed} times"
        log.write(file, FEW_LINES, turn=kills + 1)
        check_written(found, forked("clients.events", "--store", url, file), url, before)
        assert log.follow(url, before.layout, kills + 1) == (FEW_LINES, 0)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Another process holds LMDB's lock for writing."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield
        finally:
            holder.stdin.close()


def test_the_lock_of_writers_is_held(
    people: Cascade, before: Crowd, new: Crowd, forked: Forks, work: Path, faults: FaultTable
) -> None:
    """The command says that it waits, and then writes; readers go on."""
    with faults("users: another process holds the lock of writers") as found:
        url, ended = f"lmdb:{work / 'users'}", list[Ran]()
        assert forked(*words(people, url, before)).code == 0
        writer = threading.Thread(target=lambda: ended.append(forked(*words(people, url, new))))
        with held(work / "users"):
            writer.start()
            writer.join(4)
            assert not ended
            found.lost = before.lost(url)
        writer.join()
        [found.shows] = [line for line in ended[0].errors.splitlines() if "waiting" in line]
        check_written(found, ended[0], url, before, new)


def test_two_writers_at_once(
    people: Cascade, before: Crowd, new: Crowd, forked: Forks, work: Path, faults: FaultTable
) -> None:
    with faults("users, events: two writers at once") as found:
        url, file, log = f"lmdb:{work / 'users'}", work / "events.jsonl", Events(READERS)
        assert forked(*words(people, url, before)).code == 0
        log.write(file, LINES, turn=0)
        ended = list[Ran]()
        first = threading.Thread(
            target=lambda: ended.append(program("clients.events", "--store", url, file))
        )
        first.start()
        ran = forked(*words(people, url, new))
        while first.is_alive():
            ran = forked(*words(people, url, new))
        assert ended[0].code == 0, ended[0].errors
        written, found.lost = log.follow(url, before.layout, turn=0)
        found.lost += LINES - written
        found.shows = ended[0].errors.strip().splitlines()[-1]
        check_written(found, ran, url, before, new)
