"""SIGTERM while requests are in flight."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from cascade.client.errors import NO_VERSIONS
from cascade.server import cleanup
from perf.harness.payload import Payload
from tests.resilience.traffic import OK, traffic
from tests.served import EXIT_S, serve

LOAD_S = 2.0
LOST = "in ensemble"  # in Triton's message about a request that it had admitted


@dataclass(frozen=True)
class Shutdown:
    """What became of the server and of the requests.

    Args:
        in_flight: requests that had been sent and not answered at the signal.
        lost: errors of the requests that were in flight or admitted and got no answer. A rejected
            request is not lost: the client retries it elsewhere.
        seconds: until the process had ended. code: its exit code.
        left: processes and shared-memory segments that remained.
    """

    in_flight: int
    lost: tuple[str, ...]
    seconds: float
    code: int
    left: int


def shut_down(repository: Path, users: Payload, work: Path) -> Shutdown:
    """Serve a repository and stop the server under load."""
    with (
        serve(repository, work / "shutdown.log") as served,
        traffic(served.url, users, at_once=16, timeout_s=10.0) as outcomes,
    ):
        time.sleep(LOAD_S)
        name = served.name
        signal_s = time.monotonic()
        served.launcher.terminate()
        code = served.launcher.wait(EXIT_S)
        seconds = time.monotonic() - signal_s
    caught = [o for o in outcomes if o.sent_s < signal_s < o.done_s]
    failed = [o for o in caught if o.error != OK and NO_VERSIONS not in o.error]
    return Shutdown(
        in_flight=len(caught),
        lost=tuple(o.error for o in outcomes if LOST in o.error or o in failed),
        seconds=seconds,
        code=code,
        left=len(cleanup.processes(name)) + len(cleanup.segments(name)),
    )
