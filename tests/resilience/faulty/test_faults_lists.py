"""Faults of the deny list, the log and the metrics of a running server."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cascade.client import Recommender
from cascade.config import Product
from export.releases.rewire import rewire, serving_of
from tests.cascades import Cascade
from tests.resilience.faults import (
    FaultTable,
    Finding,
    Ran,
    fill,
    metric,
    setpriv,
    small_disk,
    wait_until,
)
from tests.resilience.faulty.forked import Forks
from tests.served import Served, serve

OTHERS = {
    "is closed": None,
    "says nothing": b"",
    "speaks SSH": b"SSH-2.0-x\r\n",
    "has another page": b"HTTP/1.0 200 OK\r\n\r\nhello",
}


@dataclass
class Guarded:
    """A server with a deny list on a disk of its own, and its log on another.

    Args:
        best: the items of the user that is asked for, best first, without a list.
    """

    served: Served
    client: Recommender
    user: dict[str, Any]
    best: list[int]
    deny: Path
    logs: Path
    forked: Forks

    def write(self, count: int) -> None:
        """Deny the best items, as a good writer does."""
        aside = self.deny.with_suffix(".new")
        aside.write_text("".join(f"{item}\n" for item in self.best[:count]))
        aside.rename(self.deny)

    def ask(self) -> list[int]:
        """The items that the user gets."""
        found: list[int] = self.client.recommend(self.user).item_ids.tolist()
        return found

    def denies(self, count: int) -> bool:
        """Whether just the best items are denied, so many of them."""
        return self.ask()[0] == self.best[count]

    def health(self, metrics_url: str = "", timeout_s: float = 5) -> Ran:
        url = metrics_url or self.served.metrics_url
        where = ("--url", self.served.url, "--metrics-url", url, "--timeout-s", timeout_s)
        return self.forked("cascade.server.health", *where)

    def gauge(self, name: str = "cascade_deny_list_ok") -> float | None:
        return metric(self.served.metrics_url, name)

    def mended(self, found: Finding, count: int) -> None:
        """A list of so many items is in force, and the server healthy again."""
        start = time.monotonic()
        wait_until(lambda: self.denies(count), "the list is not in force")
        found.right_s = time.monotonic() - start
        wait_until(lambda: "degraded" not in self.health().output, "it stays degraded")
        assert self.gauge() == 1


def degraded(ran: Ran) -> str:
    """What the health check says behind `degraded: `; empty where it does not."""
    return ran.output.partition("; ")[2].strip()


@pytest.fixture(scope="module")
def guarded(people: Cascade, workplace: Path, forked: Forks) -> Iterator[Guarded]:
    """Denies the two best items of a user."""
    folder = workplace / "lists"
    _, best = people.users[0], people.ask(people.pipeline(), 0, 1)[0][0].tolist()
    wiring = replace(serving_of(people.repository), topology="fused", instances=1)
    with (
        small_disk(folder / "disk", 1 << 20) as disk,
        small_disk(folder / "logs", 16 << 20) as logs,
    ):
        deny = disk / "lists" / "deny.txt"
        deny.parent.mkdir()
        deny.touch()
        product = Product(deny_list=str(deny))
        rewire(people.repository, folder / "repository", wiring, product)
        arguments = ("--log", str(logs / "server.log"), "--exit-timeout-s=2")
        json_log = {"CASCADE_LOG": "json"}
        with (
            serve(
                *(folder / "repository", folder / "launcher.log", *arguments),
                prefix=setpriv(),
                environment=json_log,
            ) as served,
            Recommender(served.url, deadline_s=10) as client,
        ):
            made = Guarded(served, client, people.users[0], best, deny, logs, forked)
            made.write(2)
            wait_until(lambda: made.denies(2))
            yield made


def unreadable(deny: Path) -> None:
    deny.chmod(0)


def closed_folder(deny: Path) -> None:
    deny.parent.chmod(0)


def garbage(deny: Path) -> None:
    deny.write_bytes(os.urandom(5000))


def gone(deny: Path) -> None:
    deny.unlink()


def folder_gone(deny: Path) -> None:
    deny.parent.rename(deny.parent.with_name("away"))


def folder(deny: Path) -> None:
    deny.unlink()
    deny.mkdir()


def fifo(deny: Path) -> None:
    deny.unlink()
    os.mkfifo(deny)


def dangling(deny: Path) -> None:
    deny.unlink()
    deny.symlink_to(deny.with_name("nowhere"))


FAULTS = {
    "may not be read": unreadable,
    "its folder may not be entered": closed_folder,
    "garbage in its place": garbage,
    "gone": gone,
    "its folder is gone": folder_gone,
    "a folder in its place": folder,
    "a FIFO in its place": fifo,
    "a symbolic link to nowhere in its place": dangling,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_deny_list(guarded: Guarded, faults: FaultTable, fault: str) -> None:
    """What was denied stays denied."""
    break_it: Callable[[Path], None] = FAULTS[fault]
    deny = guarded.deny
    with faults(f"deny list: {fault}") as found:
        found.lost = 0

        def shown() -> str:
            found.lost += len({*guarded.ask()} & {*guarded.best[:2]})
            line = degraded(guarded.health())
            return line if "the deny list" in line else ""

        break_it(deny)
        found.shows = wait_until(shown, "the health check says nothing")
        assert guarded.gauge() == 0
        for _ in range(5):
            shown()
        _away(deny)
        guarded.write(3)
        guarded.mended(found, 3)
        guarded.write(2)
        wait_until(lambda: guarded.denies(2))


def _away(deny: Path) -> None:
    """What lies in the place of the list goes away."""
    with suppress(FileNotFoundError):
        deny.parent.with_name("away").rename(deny.parent)
    deny.parent.chmod(0o755)
    if deny.is_dir():
        shutil.rmtree(deny)


def test_a_full_disk_while_the_list_is_written(guarded: Guarded, faults: FaultTable) -> None:
    """By a writer that writes aside and renames: the old list stays in force."""
    with faults("deny list: disk full while it is written aside") as found:
        filler = fill(guarded.deny.parent)
        aside = guarded.deny.with_suffix(".new")
        with pytest.raises(OSError, match="No space left") as failed:
            aside.write_text("1\n" * 5000)
        found.shows, found.lost = str(failed.value), 0
        for _ in range(20):
            found.lost += len({*guarded.ask()} & {*guarded.best[:2]})
            time.sleep(0.1)
        assert guarded.gauge() == 1
        filler.unlink()
        guarded.write(3)
        guarded.mended(found, 3)
        guarded.write(2)
        wait_until(lambda: guarded.denies(2))


# --- the log


def test_the_disk_of_the_log_is_full(guarded: Guarded, faults: FaultTable) -> None:
    with faults("CASCADE_LOG=json: the disk of the log is full") as found:
        filler, found.lost = fill(guarded.logs), 0

        def shown() -> str:
            for _ in range(20):
                found.lost += not guarded.denies(2)
            line = degraded(guarded.health())
            return line if "log" in line else ""

        found.shows = wait_until(shown, "the health check says nothing")
        assert guarded.gauge("cascade_log_ok") == 0
        filler.unlink()
        start = time.monotonic()

        def right() -> bool:
            return guarded.denies(2) and "degraded" not in guarded.health().output

        wait_until(right, "it stays degraded")
        found.right_s = time.monotonic() - start


# --- the metrics


@pytest.mark.parametrize("other", OTHERS)
def test_the_metrics_cannot_be_reached(guarded: Guarded, faults: FaultTable, other: str) -> None:
    words = OTHERS[other]
    with faults(f"health check: the metrics port {other}") as found:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        if words is None:
            listener.close()
        else:
            threading.Thread(target=_answer, args=(listener, words), daemon=True).start()
        ran = guarded.health(f"http://127.0.0.1:{port}/metrics")
        assert ran.code == 0, ran.errors
        assert "degraded: no metrics" in ran.output, ran.output
        found.shows, found.lost = degraded(ran), 0
        listener.close()
        found.right_s = guarded.health().seconds


def _answer(listener: socket.socket, words: bytes) -> None:
    with suppress(OSError):
        connection, _ = listener.accept()
        connection.recv(1 << 16)
        connection.sendall(words)
        if not words:
            time.sleep(10)
        connection.close()
