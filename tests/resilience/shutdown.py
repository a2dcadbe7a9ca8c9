"""SIGTERM while requests are under way."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from cascade.client.errors import NO_VERSIONS
from cascade.server import cleanup
from perf.payload import Payload
from tests.resilience.traffic import OK, Traffic
from tests.served import EXIT_S, serve

LOAD_S = 2.0
LOST = "in ensemble"  # what Triton says of a request that it had let in


@dataclass(frozen=True)
class Shutdown:
    """What came of it.

    Args:
        under_way: requests that had been sent and not answered at the signal.
        lost: what became of those of them that were not answered, and of others that were still
            let in. Who is refused at the door has lost nothing: he asks elsewhere.
        late: requests sent after the signal that got an answer.
        seconds: until the process had ended. code: with which it did.
        left: processes and shared-memory segments that remained.
    """

    under_way: int
    lost: tuple[str, ...]
    late: int
    seconds: float
    code: int
    left: int


def measure(repository: Path, users: Payload, work: Path) -> Shutdown:
    """Stop a server under load."""
    with (
        serve(repository, work / "shutdown.log") as served,
        Traffic(served.url, users, at_once=16, timeout_s=10.0) as traffic,
    ):
        time.sleep(LOAD_S)
        name = served.name
        signal_s = time.monotonic()
        served.launcher.terminate()
        code = served.launcher.wait(EXIT_S)
        seconds = time.monotonic() - signal_s
    caught = [o for o in traffic.outcomes if o.sent_s < signal_s < o.done_s]
    return Shutdown(
        under_way=len(caught),
        lost=tuple(
            o.error
            for o in traffic.outcomes
            if LOST in o.error or (o in caught and o.error != OK and NO_VERSIONS not in o.error)
        ),
        late=sum(o.sent_s > signal_s and o.error == OK for o in traffic.outcomes),
        seconds=seconds,
        code=code,
        left=len(cleanup.processes(name)) + len(cleanup.segments(name)),
    )
