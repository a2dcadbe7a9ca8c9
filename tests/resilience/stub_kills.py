"""How long users notice that a process of a stage was killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from cascade.server import workers
from perf.payload import Payload
from tests.resilience.traffic import OK, Traffic
from tests.served import serve

CALM_S = 2.0  # without a failure: then it is over
PATIENCE_S = 20.0


def measure(repository: Path, users: Payload, work: Path, rounds: int) -> dict[str, float]:
    """Kill a stub of each model under load, `rounds` times -> the longest time from a kill to the
    last request that it failed, in seconds, by model. `PATIENCE_S` means that it did not end."""
    longest: dict[str, float] = {}
    with (
        serve(repository, work / "stub_kills.log") as served,
        Traffic(served.url, users) as traffic,
    ):
        time.sleep(CALM_S)  # the supervisor has to have seen the stubs that it will miss
        models = sorted({stub.model for stub in workers.alive(served.name)})
        for model in models * rounds:
            victim = next(s for s in workers.alive(served.name) if s.model == model)
            killed_s = time.monotonic()
            os.kill(victim.pid, signal.SIGKILL)
            found = _wait_until_calm(traffic, killed_s)
            longest[model] = max(found, longest.get(model, 0.0))
    return longest


def _wait_until_calm(traffic: Traffic, killed_s: float) -> float:
    while time.monotonic() < killed_s + PATIENCE_S:
        time.sleep(0.1)
        done = [o for o in traffic.outcomes if o.done_s > killed_s]
        last_s = max((o.done_s for o in done if o.error != OK), default=killed_s)
        after = [o.done_s for o in done if o.error == OK and o.done_s > last_s]
        if after and max(after) > last_s + CALM_S:
            return last_s - killed_s
    return PATIENCE_S
