"""Full disks, and a server that goes away, for the programs that read and write files."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cascade.server.launcher import Server
from export.releases.manifest import verify
from export.releases.publishing import Publisher
from export.releases.repository import Repository
from export.releases.rewire import from_export
from tests.cascades import Cascade, raw_rows, table_of
from tests.network import Relay
from tests.resilience.faults import FaultTable, Ran, fill, small_disk
from tests.resilience.faulty.forked import Forks, forks

PAGE = 4096
ROOM = (0.0, 0.02, 0.3, 0.6, 0.9)  # of what a refresh takes
NEW_ITEMS, ROWS = 5_000, 3_000
SUFFIXES = (".parquet", ".csv", ".jsonl")


def size(folder: Path) -> int:
    room = os.statvfs(folder)
    return (room.f_blocks - room.f_bfree) * room.f_frsize


# --- another catalogue


@pytest.fixture(scope="module")
def added(people: Cascade, workplace: Path) -> Path:
    """A file of new items."""
    random = np.random.default_rng(7)
    table = table_of(people.schema, "item", *raw_rows(people.schema, "item", NEW_ITEMS, random))
    ids = pa.array(np.arange(10_000_000, 10_000_000 + NEW_ITEMS))
    pq.write_table(table.append_column("item_id", ids), workplace / "added.parquet")
    return workplace / "added.parquet"


@pytest.fixture(scope="module")
def refresh(people: Cascade, added: Path, forked: Forks) -> Callable[[Path], Ran]:
    def run(root: Path) -> Ran:
        where = ("--repository", root, "--checkpoints", people.checkpoints, "--add", added)
        return forked("export", "catalogue", *where)

    return run


def published(root: Path, people: Cascade) -> Repository:
    repository = Repository(root)
    Publisher(repository, say=lambda line: None).publish(from_export(people.repository))
    return repository


@pytest.fixture(scope="module")
def taken(people: Cascade, refresh: Callable[[Path], Ran], workplace: Path) -> tuple[int, int]:
    """Bytes of a repository with a release, and of a refresh of it."""
    with small_disk(workplace / "measured", 256 << 20) as disk:
        published(disk / "live", people)
        first = size(disk)
        ran = refresh(disk / "live")
        assert ran.code == 0, ran.errors
        return first, size(disk) - first


@pytest.mark.parametrize("room", ROOM)
def test_a_full_disk_while_a_catalogue_is_changed(
    people: Cascade,
    refresh: Callable[[Path], Ran],
    taken: tuple[int, int],
    work: Path,
    faults: FaultTable,
    room: float,
) -> None:
    with (
        faults(f"catalogue: disk full, room for {room:.0%} of the change") as found,
        small_disk(work / "disk", sum(taken) + (4 << 20)) as disk,
    ):
        repository = published(disk / "live", people)
        filler = fill(disk, int(room * taken[1]))
        found.shows = refresh(repository.root).error
        assert "No space left" in found.shows
        filler.unlink()
        verify(repository.root, 1)
        found.lost = int(repository.live != 1)
        ran = refresh(repository.root)
        assert ran.code == 0, ran.errors
        verify(repository.root, 2)
        found.lost += int(repository.live != 2 or bool([*repository.leftovers()]))
        found.right_s = ran.seconds


# --- answers for a file


@pytest.fixture(scope="module")
def server(people: Cascade) -> Iterator[Server]:
    with Server(people.repository, exit_timeout_s=2) as running:
        yield running


@pytest.fixture(scope="module")
def asked(people: Cascade, workplace: Path) -> Path:
    rows = np.arange(ROWS) % len(people.dense)
    table = table_of(people.schema, "user", people.dense[rows], people.categorical[rows])
    ids = pa.array(range(ROWS))
    pq.write_table(table.append_column("user_id", ids), workplace / "asked.parquet")
    return workplace / "asked.parquet"


def batch(forked: Forks, source: Path, target: Path, url: str) -> Ran:
    how = ("--keep", "user_id", "--no-progress", "--url", url, "--deadline-ms", 3000)
    return forked("clients.batch", source, target, *how)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_while_a_file_is_answered(
    server: Server, asked: Path, forked: Forks, work: Path, faults: FaultTable, suffix: str
) -> None:
    """An earlier output stays as it is, and the next run writes all rows."""
    with small_disk(work / "disk", 8 << 20) as disk:
        target = disk / f"out{suffix}"
        assert batch(forked, asked, target, server.url).code == 0
        earlier = target.read_bytes()
        for pages in (0, 10):
            with faults(f"batch: disk full, room for {pages} pages, {suffix}") as found:
                filler = fill(disk, pages * PAGE)
                found.shows = batch(forked, asked, target, server.url).error
                assert "No space left" in found.shows
                assert str(target) in found.shows
                found.lost = ROWS * (target.read_bytes() != earlier)
                filler.unlink()
                assert [path.name for path in disk.iterdir()] == [target.name]
                ran = batch(forked, asked, target, server.url)
                found.lost += ROWS * (ran.code != 0 or target.read_bytes() != earlier)
                found.right_s = ran.seconds


def test_a_server_that_goes_away_in_a_batch(
    server: Server, asked: Path, forked: Forks, work: Path, faults: FaultTable
) -> None:
    with faults("batch: the server goes away in the middle") as found:
        target, ended = work / "out.jsonl", list[Ran]()
        assert batch(forked, asked, target, server.url).code == 0
        earlier = target.read_bytes()
        with Relay(server.url) as relay:
            running = threading.Thread(
                target=lambda: ended.append(batch(forked, asked, target, relay.url))
            )
            running.start()
            while running.is_alive() and not _begun(work):
                time.sleep(0.002)
        running.join()
        found.shows = ended[0].error
        found.lost = ROWS * (target.read_bytes() != earlier)
        assert [path.name for path in work.iterdir()] == [target.name]
        ran = batch(forked, asked, target, server.url)
        assert ran.code == 0, ran.errors
        found.lost += ROWS * (target.read_bytes() != earlier)
        found.right_s = ran.seconds


def _begun(folder: Path) -> bool:
    return any(path.stat().st_size for path in folder.glob(".*.partial"))


# --- data and checkpoints


@pytest.fixture(scope="module")
def training(workplace: Path) -> Iterator[Forks]:
    folder = workplace / "training"
    folder.mkdir()
    with forks(folder, "cascade.data.prepare", "cascade.training.trainer") as ready:
        yield ready


def prepare(training: Forks, out: Path, seed: int) -> Ran:
    data = f"synthetic:rows=20000,items=2000,seed={seed}"
    return training("cascade.data", "--data", data, "--out", out)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("room", [0.0, 0.3, 0.8])
def test_a_full_disk_while_data_are_prepared(
    training: Forks, work: Path, faults: FaultTable, room: float
) -> None:
    with (
        faults(f"data: disk full, room for {room:.0%} of the data") as found,
        small_disk(work / "disk", 64 << 20) as disk,
    ):
        assert prepare(training, disk / "data", seed=1).code == 0
        taken, earlier = size(disk), content(disk)
        filler = fill(disk, int(room * taken))
        found.shows = prepare(training, disk / "data", seed=2).error
        assert "No space left" in found.shows
        filler.unlink()
        found.lost = int(content(disk) != earlier)
        ran = prepare(training, disk / "data", seed=2)
        assert ran.code == 0, ran.errors
        found.right_s = ran.seconds


def train(training: Forks, out: Path, data: Path, lr: float) -> Ran:
    how = ("--recipe", "retrieve=two_tower:tiny", "rank=dlrm:tiny", "--no-baseline")
    few = ("--epochs", 0.2, "--lr", lr, "--device", "cpu", "--save-every", 2)
    source = ("--data", "synthetic:rows=1400,items=300,seed=1", "--prepared", data)
    return training("cascade.training", *source, "--out", out, *how, *few)


@pytest.fixture(scope="module")
def trained(training: Forks, workplace: Path) -> Path:
    """A folder of checkpoints."""
    out = workplace / "trained"
    ran = train(training, out, workplace / "prepared", lr=0.001)
    assert ran.code == 0, ran.errors
    return out


@pytest.mark.parametrize("pages", [120])
def test_a_full_disk_while_models_are_trained(
    training: Forks, trained: Path, work: Path, faults: FaultTable, pages: int
) -> None:
    """The earlier checkpoints stay; with room, the same command writes the new ones."""
    with (
        faults(f"training: disk full, room for {pages} pages") as found,
        small_disk(work / "disk", 64 << 20) as disk,
    ):
        out = Path(shutil.copytree(trained, disk / "checkpoints"))
        data = trained.with_name("prepared")
        earlier = {path.parent: _pair(path.parent) for path in out.rglob("checkpoint.json")}
        filler = fill(disk, pages * PAGE)
        found.shows = train(training, out, data, lr=0.002).error
        assert "No space left" in found.shows
        found.lost = 0
        for folder, pair in earlier.items():
            same = [one == other for one, other in zip(_pair(folder), pair, strict=True)]
            found.lost += len({*same}) > 1
        assert not [*out.rglob("*.tmp")]
        filler.unlink()
        ran = train(training, out, data, lr=0.002)
        assert ran.code == 0, ran.errors
        found.right_s = ran.seconds


def _pair(folder: Path) -> tuple[bytes, bytes]:
    """The two files of a model."""
    weights, description = folder / "weights.safetensors", folder / "checkpoint.json"
    return weights.read_bytes(), description.read_bytes()
