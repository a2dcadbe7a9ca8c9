"""A repository that is served by one launcher after another, and asked while something happens."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from cascade.server import security, workers
from export.releases.publishing import Publisher
from export.releases.repository import Repository
from export.releases.rewire import from_export
from perf.harness.payload import Payload
from tests.resilience.conftest import Pair
from tests.resilience.faults import Finding, events, health, metric, wait_until
from tests.resilience.traffic import OK, WRONG, Outcome, traffic
from tests.served import EXIT_S, Served, serve

USERS = 24
KNOWN_S = 2.2  # until the supervisor knows new processes, for certain
CALM_S = 1.0  # without a failure: then all is right
TIMEOUT_S, LATE_S = 1.0, 10.0  # of a request; an outcome that comes later than that is none
KEY = secrets.token_hex(16)
LONG = b"x" * 20_000  # behind every text of a large request


@dataclass(eq=False)
class Site:
    """Release 1 of `pair` in a repository of its own, with its own folder of temporary files.

    Args:
        work: folder for all that.
        arguments, prefix, environment, stderr: of every launcher, see `serve`.
    """

    work: Path
    pair: Pair
    arguments: Sequence[str] = ()
    prefix: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    stderr: Path | None = None
    served: Served = field(init=False)
    _stack: ExitStack = field(default_factory=ExitStack, init=False)
    _starts: int = field(default=0, init=False)
    start_s: float = field(default=0.0, init=False)  # how long the last start took

    def __enter__(self) -> Site:
        (self.work / "tmp").mkdir(parents=True)
        publisher = Publisher(Repository(self.repository), say=lambda line: None)
        publisher.publish(from_export(self.pair.source(1)))
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def start(self) -> float:
        """Start a launcher in place of the last one -> seconds."""
        self._stack.close()
        self._starts += 1
        start = time.monotonic()
        added = {"TMPDIR": str(self.work / "tmp"), security.KEY_VARIABLE: KEY, **self.environment}
        running = serve(
            self.repository,
            self.stderr or self.log,
            "--exit-timeout-s=2",
            *self.arguments,
            prefix=self.prefix,
            environment=added,
        )
        self.served = self._stack.enter_context(running)
        self.start_s = time.monotonic() - start
        return self.start_s

    @property
    def repository(self) -> Path:
        return self.work / "live"

    @property
    def log(self) -> Path:
        """What the present launcher reports."""
        return self.work / f"launcher-{self._starts}.log"

    @property
    def users(self) -> Payload:
        odd = self.pair.cascades[1]
        return Payload(odd.dense[:USERS], odd.categorical[:USERS], "drawn")

    @property
    def server(self) -> psutil.Process:
        return psutil.Process(self.served.pid)

    def worker(self, stage: str, known: bool = True) -> psutil.Process:
        """The process of a stage; `known`: once the supervisor knows it, to notice that it dies."""
        time.sleep(KNOWN_S if known else 0)
        found = [w.process for w in workers.alive(self.served.name) if w.model == stage]
        return max(found, key=lambda process: process.create_time())

    def asked(self, **how: Any) -> AbstractContextManager[list[Outcome]]:
        """Requests while the block runs, with wrong answers found."""
        url, usual = self.served.url, {"at_once": 4, "pause_s": 0.02, "check": True}
        return traffic(url, self.users, timeout_s=TIMEOUT_S, **{**usual, **how})

    def seen(self) -> int:
        """How many events there were so far."""
        return len(events(self.log))

    def crashes(self) -> list[dict[str, Any]]:
        """The times that the present launcher started its server again."""
        return [event for event in events(self.log) if event["event"] == "server died"]

    def told(self, since: int, *wanted: str) -> str:
        """The first event of one of these kinds, as the launcher writes it."""

        def first() -> str:
            found = (event for event in events(self.log, since) if event["event"] in wanted)
            return next((json.dumps({**event, "time": 0}) for event in found), "")

        return str(wait_until(first, f"no event {wanted} in {self.log}"))

    def told_now(self, since: int) -> str:
        """All events so far from one on."""
        return "; ".join(json.dumps({**event, "time": 0}) for event in events(self.log, since))

    @contextmanager
    def crowd(self) -> Iterator[list[Outcome]]:
        """Many large requests while the block runs."""
        large = replace(self.users, categorical=self.users.categorical + LONG)
        with traffic(self.served.url, large, at_once=16, timeout_s=TIMEOUT_S) as outcomes:
            yield outcomes

    def error(self) -> str:
        """The line `error: ...` with which the launcher ends. Fails the test where it does not."""
        assert self.served.launcher.wait(EXIT_S) == 1
        (line,) = [x for x in self.log.read_text().splitlines() if x.startswith("error: ")]
        assert "Traceback" not in line
        return line

    def health(self) -> str:
        return health(self.served.url, self.served.metrics_url)

    def metric(self, name: str, **labels: str) -> float:
        return metric(self.served.metrics_url, name, **labels) or 0.0


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """SIGSTOP while the block runs. The process may be gone in the end."""
    process.suspend()
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            process.resume()


def judge(found: Finding, outcomes: list[Outcome], since_s: float) -> None:
    """Wait until all is right, and fill in what was lost, and for how long all was not right.

    Args:
        since_s: when the fault ended, in seconds of the monotonic clock.
    """
    found.right_s = wait_until(lambda: _right(outcomes, since_s), "requests still fail")[0]
    found.lost = lost(outcomes)


def lost(outcomes: list[Outcome]) -> int:
    """Wrong answers, and requests that had neither an answer nor an error in time."""
    late = (outcome.done_s - outcome.sent_s > LATE_S for outcome in outcomes)
    return sum(outcome.error == WRONG for outcome in outcomes) + sum(late)


def _right(outcomes: list[Outcome], since_s: float) -> tuple[float] | None:
    """Seconds from the end of the fault to the last failure, once there has been none for long."""
    done = [outcome for outcome in outcomes if outcome.done_s > since_s]
    last_s = max((o.done_s for o in done if o.error != OK), default=since_s)
    calm = any(o.error == OK and o.done_s > last_s + CALM_S for o in done)
    return (last_s - since_s,) if calm else None


def errors(outcomes: list[Outcome]) -> str:
    """What the clients were told, the commonest first."""
    told = [outcome.error for outcome in outcomes if outcome.error not in (OK, WRONG)]
    return "; ".join(sorted({*told}, key=told.count, reverse=True))


@contextmanager
def replaced(path: Path, content: bytes) -> Iterator[None]:
    """Another file in a file's place while the block runs."""
    kept, new = path.with_suffix(".kept"), path.with_suffix(".new")
    os.link(path, kept)
    new.write_bytes(content)
    os.replace(new, path)
    try:
        yield
    finally:
        os.replace(kept, path)
