"""A server that reads users from a store, asked while something happens to it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cascade.client import Recommender, RecommendError
from cascade.config import Product
from cascade.store import UserStore
from export.releases.rewire import rewire, serving_of
from export.users import layout_of
from tests.cascades import Cascade
from tests.resilience import faults
from tests.resilience.faults import Finding, setpriv, wait_until
from tests.resilience.faulty.forked import Forks
from tests.served import Served, serve

USERS, STORED = 24, 2400  # that are asked for, and that are stored
DEADLINE_S = 5.0
RIGHT, COLD, WRONG, FAILED, LOST = "right", "cold", "wrong", "failed", "lost"


@dataclass
class Site:
    """A running server, a client of it, and what it is to answer.

    Args:
        right: the items of each user; cold: those of a user without features.
        log: what the launcher writes to stderr; server_log: what its server writes.
        seen: the outcomes of all requests of `ask`, and the time of the slowest answer.
    """

    served: Served
    client: Recommender
    people: Cascade
    url: str
    log: Path
    server_log: Path
    forked: Forks
    right: list[list[int]]
    cold: list[int]
    seen: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0

    def ask(self) -> Counter[str]:
        """Every user once -> how many were answered how."""
        found = Counter(self._ask(user) for user in range(USERS))
        self.seen += found
        return found

    def _ask(self, user: int) -> str:
        start = time.monotonic()
        try:
            answer = self.client.recommend_user(user)
        except RecommendError as error:
            late = isinstance(error, TimeoutError)
            return LOST if late else FAILED
        self.slowest_s = max(self.slowest_s, time.monotonic() - start)
        items = answer.item_ids.tolist()
        if answer.cold_start:
            return COLD if items == self.cold else WRONG
        return RIGHT if items == self.right[user] else WRONG

    def health(self) -> str:
        where = ("--url", self.served.url, "--metrics-url", self.served.metrics_url)
        return self.forked("cascade.server.health", *where).output.strip()

    def degraded(self, words: str = "degraded") -> str:
        """Ask until the health check says so -> what it says of that."""

        def said() -> str:
            self.ask()
            line = self.health()
            return line[line.index("degraded") :] if words in line else ""

        return str(wait_until(said, f"the health check does not say {words!r}"))

    def recovered(self) -> float:
        """Ask until every user gets what is right, and the server is healthy -> seconds."""
        start = time.monotonic()
        wait_until(lambda: self.ask() == {RIGHT: USERS}, "not every answer is right")
        seconds = time.monotonic() - start
        wait_until(lambda: "degraded" not in self.health(), "it stays degraded")
        return seconds

    @contextmanager
    def trouble(self, found: Finding) -> Iterator[None]:
        """Counts what is asked meanwhile as lost where it is wrong, or got no answer and no
        error."""
        self.seen.clear()
        yield
        found.lost = self.seen[WRONG] + self.seen[LOST]

    def events(self, since: int = 0) -> list[dict[str, Any]]:
        return faults.events(self.log, since)

    def write(self) -> None:
        """All users, anew."""
        layout = layout_of(self.people.repository)
        with UserStore.create(self.url, layout, replace=True) as users:
            for row in range(0, STORED, USERS):
                named = range(row, row + USERS)
                users.put(named, self.people.dense[:USERS], self.people.categorical[:USERS])


@contextmanager
def site(
    people: Cascade, folder: Path, url: str, forked: Forks, environment: Any = None
) -> Iterator[Site]:
    """Its server obeys permissions, as root, too."""
    wiring = replace(serving_of(people.repository), topology="fused", instances=1)
    rewire(people.repository, folder / "repository", wiring, Product(store=url))
    log, server_log = folder / "launcher.log", folder / "server.log"
    arguments = ("--log", str(server_log), "--exit-timeout-s=2")
    with (
        serve(
            folder / "repository", log, *arguments, prefix=setpriv(), environment=environment
        ) as served,
        Recommender(served.url, deadline_s=DEADLINE_S) as client,
    ):
        right = [one.item_ids.tolist() for one in client.recommend_many(people.users[:USERS])]
        cold = client.recommend({}).item_ids.tolist()
        made = Site(served, client, people, url, log, server_log, forked, right, cold)
        made.write()
        made.recovered()
        yield made
