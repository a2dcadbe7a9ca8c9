"""`python -m perf.resilience.soak --releases DIR DIR --minutes 30`: half of what a server can do,
for as long as you like, and a release every minute, of the two exports in turn; no request may
fail, and no memory may grow.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np

from cascade.serving import security
from export.control import Control
from export.live import Repository
from export.publishing import Publisher
from export.transfer import from_export
from perf import payload
from perf.artifacts import features_of
from perf.contenders.wire import TRITON
from perf.load import Generator, Plan
from perf.payload import Payload
from perf.resilience.served import serve
from perf.table import number, table
from perf.trace import OK

PIECE_S = 15.0  # between looks at the memory
WARM_UP = 8  # pieces that may grow: two releases stay loaded, so the first ones add processes
RELEASE_S = 60.0  # between releases


@dataclass(frozen=True)
class Soak:
    """What came of it: the release that was live in the end, memory in MB after each piece."""

    requests: int
    failed: int
    release: int
    p99_ms: float
    memory_mb: tuple[float, ...]

    @property
    def growth_mb_per_hour(self) -> float:
        """Slope of a line through all pieces after the first ones."""
        kept = np.array(self.memory_mb[WARM_UP:])
        if len(kept) < 2:
            return 0.0
        return float(np.polyfit(np.arange(len(kept)) * PIECE_S / 3600, kept, 1)[0])


class Publishing(threading.Thread):
    """A release every minute, in a `with` block.

    Args:
        repository: has the first of `exports` as its first release.
    """

    def __init__(self, repository: Repository, url: str, key: str, exports: Sequence[Path]) -> None:
        super().__init__()
        control = Control(url, security.headers(key))
        self.publisher = Publisher(repository, control, say=lambda line: None)
        self._turns, self._over = cycle([*exports[1:], exports[0]]), threading.Event()

    def run(self) -> None:
        """Until it is over."""
        while not self._over.wait(RELEASE_S):
            self.publisher.publish(from_export(next(self._turns)))

    def __enter__(self) -> Publishing:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def measure(exports: Sequence[Path], users: Payload, work: Path, minutes: float) -> Soak:
    """Load it with half of what it can."""
    requests = TRITON.requests(users)
    count = failed = 0
    took_ms, memory_mb = [], []
    live, key = Repository(work / "live"), security.control_key()
    (work / "key").write_text(key)
    shutil.rmtree(live.root, ignore_errors=True)
    Publisher(live, say=lambda line: None).publish(from_export(exports[0]))
    key_file = ("--control-key-file", str(work / "key"))
    with (
        serve(live.root, work / "soak.log", *key_file) as served,
        Publishing(live, served.url, key, exports),
    ):
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
    return Soak(count, failed, live.live or 0, p99_ms, tuple(memory_mb))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 if a request failed."""
    parser = argparse.ArgumentParser(prog="python -m perf.resilience.soak", description=__doc__)
    parser.add_argument(
        "--releases", type=Path, nargs=2, required=True, help="exports for the same requests"
    )
    parser.add_argument("--users", type=Path, required=True, help="users.jsonl")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--work", type=Path, default=Path("build/resilience"))
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    users = payload.load(options.users, features_of(options.releases[0]))
    found = measure(options.releases, users, options.work, options.minutes)
    rows = [
        ("requests", f"{found.requests:,}"),
        ("failed", f"{found.failed:,}"),
        ("live in the end: release", str(found.release)),
        ("p99 ms", number(found.p99_ms)),
        ("memory at first, MB", number(found.memory_mb[0])),
        ("memory in the end, MB", number(found.memory_mb[-1])),
        ("growth, MB per hour", number(found.growth_mb_per_hour)),
    ]
    print(table(["soak", "found"], rows))
    return int(found.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
