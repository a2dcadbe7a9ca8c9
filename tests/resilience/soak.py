"""Half of what a server can do, for long, while releases come and go: no request may fail, and no
memory may grow.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cascade.server import security
from export.releases.control import Control
from export.releases.publishing import Publisher
from export.releases.repository import Repository
from export.releases.transfer import from_export
from perf import payload
from perf.artifacts import features_of
from perf.commands import heading
from perf.contenders.wire import TRITON
from perf.load import Generator, Plan
from perf.payload import Payload
from perf.table import number, table
from perf.trace import OK
from tests.resilience.stock import Stock
from tests.served import serve

THOROUGH_S = 30 * 60.0
PIECES = 24  # of that time; the memory is looked at after each
WARM_UP = 8  # pieces that may grow: two releases stay loaded, so the first ones add processes
RELEASES = 6  # at least
RELEASE_S = 60.0  # between releases, at most


@dataclass(frozen=True)
class Soak:
    """What came of it: the release that was live in the end, memory in MB after each piece.

    Args:
        failed: requests by HTTP status, or as of `perf.trace`.
    """

    requests: int
    failed: Counter[int]
    release: int
    p99_ms: float
    memory_mb: tuple[float, ...]

    @property
    def growth_mb(self) -> float:
        """Since the warm-up: the rise of a line through all pieces after it."""
        kept = np.array(self.memory_mb[WARM_UP:])
        return float(np.polyfit(np.arange(len(kept)), kept, 1)[0]) * (len(kept) - 1)


class Publishing(threading.Thread):
    """One release after the other, in a `with` block.

    Args:
        repository: has the first of `exports` as its first release.
        period_s: between them.
    """

    def __init__(
        self, repository: Repository, url: str, key: str, exports: Sequence[Path], period_s: float
    ) -> None:
        super().__init__()
        self._period_s = period_s
        control = Control(url, security.headers(key))
        self.publisher = Publisher(repository, control, say=lambda line: None)
        self._turns, self._over = cycle([*exports[1:], exports[0]]), threading.Event()

    def run(self) -> None:
        """Until it is over."""
        while not self._over.wait(self._period_s):
            self.publisher.publish(from_export(next(self._turns)))

    def __enter__(self) -> Publishing:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def run(work: Path, stock: Stock) -> dict[str, float]:
    """`soak_failed`: requests; `soak_growth_mb`: of the server."""
    seconds = THOROUGH_S if stock.thorough else stock.seconds
    heading(f"{seconds:.0f} s at half load while releases come")
    users = payload.load(stock.pair.users, features_of(stock.pair.sources[0]))
    found = measure(stock.pair.sources, users, work, seconds)
    rows = [
        ("requests", f"{found.requests:,}"),
        ("failed", f"{found.failed.total():,}"),
        *((f"failed with status {status}", f"{n:,}") for status, n in found.failed.items()),
        ("live in the end: release", str(found.release)),
        ("p99 ms", number(found.p99_ms)),
        ("memory at first, MB", number(found.memory_mb[0])),
        ("memory after the warm-up, MB", number(found.memory_mb[WARM_UP])),
        ("memory in the end, MB", number(found.memory_mb[-1])),
        ("growth since the warm-up, MB", number(found.growth_mb)),
    ]
    print(table(["soak", "found"], rows))
    return {"soak_failed": found.failed.total(), "soak_growth_mb": found.growth_mb}


def measure(exports: Sequence[Path], users: Payload, work: Path, seconds: float) -> Soak:
    """Load it with half of what it can."""
    requests = TRITON.requests(users)
    count, failed = 0, Counter[int]()
    took_ms, memory_mb = [], []
    live, key = Repository(work / "live"), security.control_key()
    (work / "key").write_text(key)
    Publisher(live, say=lambda line: None).publish(from_export(exports[0]))
    key_file = ("--control-key-file", str(work / "key"))
    period_s = min(RELEASE_S, seconds / RELEASES)
    with (
        serve(live.root, work / "soak.log", *key_file) as served,
        Publishing(live, served.url, key, exports, period_s),
    ):
        host, _, port = served.http_url.rpartition(":")
        full = Generator((host, int(port)), requests, Plan("concurrency", 16, 4.0)).run()
        half = (full.status == OK).sum() / full.seconds / 2
        for piece in tqdm(range(PIECES), desc="soak"):
            plan = Plan("rate", half, seconds / PIECES, warm_up_s=0, seed=piece)
            trace = Generator((host, int(port)), requests, plan).run()
            count += len(trace.status)
            failed.update(trace.status[trace.status != OK].tolist())
            took_ms.append((trace.done_ns - trace.due_ns)[trace.status == OK] / 1e6)
            memory_mb.append(served.anonymous_mb())
    p99_ms = float(np.percentile(np.concatenate(took_ms), 99))
    return Soak(count, failed, live.live or 0, p99_ms, tuple(memory_mb))
