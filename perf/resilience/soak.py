"""`python -m perf.resilience.soak --repository DIR --minutes 30`: half of what a server can answer,
for as long as you like; no request may fail, and no memory may grow.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perf import payload
from perf.artifacts import features_of
from perf.contenders.wire import TRITON
from perf.load import Generator, Plan
from perf.payload import Payload
from perf.resilience.served import serve
from perf.table import number, table
from perf.trace import OK

PIECE_S = 15.0  # between looks at the memory
WARM_UP = 2  # pieces that may grow


@dataclass(frozen=True)
class Soak:
    """What came of it: memory in MB after each piece."""

    requests: int
    failed: int
    p99_ms: float
    memory_mb: tuple[float, ...]

    @property
    def growth_mb_per_hour(self) -> float:
        """Slope of a line through all pieces after the first ones."""
        kept = np.array(self.memory_mb[WARM_UP:])
        if len(kept) < 2:
            return 0.0
        return float(np.polyfit(np.arange(len(kept)) * PIECE_S / 3600, kept, 1)[0])


def measure(repository: Path, users: Payload, work: Path, minutes: float) -> Soak:
    """Load it with half of what it can."""
    requests = TRITON.requests(users)
    count = failed = 0
    took_ms, memory_mb = [], []
    with serve(repository, work / "soak.log") as served:
        host, _, port = served.http_url.rpartition(":")
        full = Generator((host, int(port)), requests, Plan("concurrency", 16, 4.0)).run()
        half = (full.status == OK).sum() / full.seconds / 2
        end = time.monotonic() + 60 * minutes
        for piece in range(sys.maxsize):
            plan = Plan("rate", half, min(PIECE_S, max(1.0, end - time.monotonic())), seed=piece)
            trace = Generator((host, int(port)), requests, plan).run()
            count += len(trace.status)
            failed += int((trace.status != OK).sum())
            took_ms.append((trace.done_ns - trace.due_ns)[trace.status == OK] / 1e6)
            memory_mb.append(served.anonymous_mb())
            if time.monotonic() >= end:
                break
    p99_ms = float(np.percentile(np.concatenate(took_ms), 99))
    return Soak(count, failed, p99_ms, tuple(memory_mb))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 if a request failed."""
    parser = argparse.ArgumentParser(prog="python -m perf.resilience.soak", description=__doc__)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--users", type=Path, required=True, help="users.jsonl")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--work", type=Path, default=Path("build/resilience"))
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    users = payload.load(options.users, features_of(options.repository))
    found = measure(options.repository, users, options.work, options.minutes)
    rows = [
        ("requests", f"{found.requests:,}"),
        ("failed", f"{found.failed:,}"),
        ("p99 ms", number(found.p99_ms)),
        ("memory at first, MB", number(found.memory_mb[0])),
        ("memory in the end, MB", number(found.memory_mb[-1])),
        ("growth, MB per hour", number(found.growth_mb_per_hour)),
    ]
    print(table(["soak", "found"], rows))
    return int(found.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
