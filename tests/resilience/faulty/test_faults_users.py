"""Faults of the LMDB store under a running server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cascade.layout import RequestLayout
from cascade.store import UserStore
from tests.cascades import Cascade
from tests.resilience.faults import FaultTable, wait_until
from tests.resilience.faulty.forked import Forks
from tests.resilience.faulty.served_users import COLD, USERS, Site, site

PAGE = 4096


@pytest.fixture(scope="module")
def store(workplace: Path) -> Path:
    return workplace / "lmdb-site" / "users"


@pytest.fixture(scope="module")
def users(people: Cascade, store: Path, forked: Forks) -> Iterator[Site]:
    """A copy of the whole store lies beside it."""
    store.parent.mkdir()
    with site(people, store.parent, f"lmdb:{store}", forked) as running:
        shutil.copytree(store, store.with_name("copy"))
        yield running


def replaced(store: Path) -> None:
    """A copy takes the place of the store."""
    shutil.copytree(store.with_name("copy"), store.with_name("next"))
    store.chmod(0o755) if store.exists() else None
    shutil.rmtree(store, ignore_errors=True)
    store.with_name("next").rename(store)


def deleted(store: Path) -> None:
    shutil.rmtree(store)


def emptied(store: Path) -> None:
    """Another store, without users, in its place."""
    shutil.rmtree(store)
    import lmdb

    lmdb.open(str(store)).close()


def of_others(store: Path) -> None:
    """A store of users of other features in its place."""
    shutil.rmtree(store)
    other = RequestLayout(("height",), (), "0123456789abcdef")
    with UserStore.create(f"lmdb:{store}", other) as users:
        users.put(range(USERS), *other.empty(USERS))


def cut_in_half(store: Path) -> None:
    os.truncate(store / "data.mdb", (store / "data.mdb").stat().st_size // 2)


def cut_to_its_head(store: Path) -> None:
    os.truncate(store / "data.mdb", 2 * PAGE)


def cut_to_nothing(store: Path) -> None:
    os.truncate(store / "data.mdb", 0)


def garbage(store: Path) -> None:
    path = store / "data.mdb"
    with path.open("r+b") as file:
        file.write(os.urandom(path.stat().st_size))


def garbage_behind_its_head(store: Path) -> None:
    path = store / "data.mdb"
    with path.open("r+b") as file:
        file.seek(2 * PAGE)
        file.write(os.urandom(path.stat().st_size - 2 * PAGE))


def unreadable(store: Path) -> None:
    store.chmod(0)


FAULTS = {
    "the store is deleted": deleted,
    "an empty store is in its place": emptied,
    "a store of other features is in its place": of_others,
    "its file is cut in half while mapped": cut_in_half,
    "its file is cut to two pages while mapped": cut_to_its_head,
    "its file is cut to nothing while mapped": cut_to_nothing,
    "its file is overwritten with garbage": garbage,
    "its file is overwritten behind its first two pages": garbage_behind_its_head,
    "its folder may not be entered": unreadable,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_store(users: Site, store: Path, faults: FaultTable, fault: str) -> None:
    """Requests are answered as cold starts; the stage comes back where it died."""
    break_it: Callable[[Path], None] = FAULTS[fault]
    since = len(users.events())
    with faults(f"users, LMDB: {fault}") as found, users.trouble(found):
        break_it(store)
        found.shows = users.degraded("the store of users")
        wait_until(lambda: users.ask() == {COLD: USERS}, "a stage does not come back")
        replaced(store)
        found.right_s = users.recovered()
        if any(event["event"] == "process died" for event in users.events(since)):
            found.shows = f"event 'process died'; {found.shows}"
