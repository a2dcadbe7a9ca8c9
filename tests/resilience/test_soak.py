"""Half of what a server can do, for long, while releases come and go: no request may fail, and no
memory may grow.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import numpy as np

from cascade.server import security
from export.releases.control import Control
from export.releases.publishing import Publisher
from export.releases.repository import Repository
from export.releases.rewire import from_export
from perf.contenders.servers import TRITON
from perf.harness.load import Generator, Plan
from perf.harness.measurement import OK, Load, summarise
from perf.harness.payload import Payload
from perf.harness.table import number
from tests.resilience.claims import Record
from tests.resilience.conftest import Pair
from tests.served import serve

THOROUGH_S = 30 * 60.0
PIECES = 12  # of that time; the memory is looked at after each
WARM_UP = 4  # pieces that may grow: two releases stay loaded, so the first ones add processes
RELEASES = 6  # at least
RELEASE_S = 60.0  # between releases, at most


def test_half_load_while_releases_come(
    pair: Pair, work: Path, thorough: bool, seconds: float, record: Record
) -> None:
    seconds = THOROUGH_S if thorough else seconds
    cascade = pair.cascades[0]
    requests = TRITON.requests(Payload(cascade.dense, cascade.categorical, "drawn"))
    repository, key = Repository(work / "live"), security.control_key()
    (work / "key").write_text(key)
    Publisher(repository, say=lambda line: None).publish(from_export(pair.source(1)))
    with serve(repository.root, work / "log", f"--control-key-file={work / 'key'}") as served:
        publisher = Publisher(
            repository, Control(served.url, security.headers(key)), say=lambda line: None
        )
        host, _, port = served.http_url.rpartition(":")
        address = host, int(port)
        with _publishing(publisher, pair, min(RELEASE_S, seconds / RELEASES)):
            full = Generator(address, requests, Plan("concurrency", 16, 4.0)).run()
            half = summarise(full, Load("concurrency", 16), "soak").throughput / 2
            failed, took_ms, memory_mb = Counter[int](), [], []
            for piece in range(PIECES):
                plan = Plan("rate", half, seconds / PIECES, warm_up_s=0, seed=piece)
                trace = Generator(address, requests, plan).run()
                good = trace.status == OK
                failed.update(trace.status[~good].tolist())
                took_ms.append((trace.done_ns - trace.due_ns)[good] / 1e6)
                memory_mb.append(served.anonymous_mb())
    growth_mb = _growth_mb(memory_mb)
    rows = [
        ["requests answered", f"{sum(map(len, took_ms)):,}"],
        ["failed", f"{failed.total():,}"],
        *([f"failed with status {status}", f"{n:,}"] for status, n in failed.items()),
        ["live in the end: release", str(repository.live)],
        ["p99 ms", number(float(np.percentile(np.concatenate(took_ms), 99)))],
        ["memory at first, MB", number(memory_mb[0])],
        ["memory after the warm-up, MB", number(memory_mb[WARM_UP])],
        ["memory in the end, MB", number(memory_mb[-1])],
        ["growth since the warm-up, MB", number(growth_mb)],
    ]
    record.table([f"{seconds:.0f} s of half load", "found"], rows)
    record(soak_failed=failed.total(), soak_growth_mb=growth_mb)


def _growth_mb(memory_mb: Sequence[float]) -> float:
    """Since the warm-up: the rise of a line through all pieces after it."""
    kept = np.array(memory_mb[WARM_UP:])
    return float(np.polyfit(np.arange(len(kept)), kept, 1)[0]) * (len(kept) - 1)


@contextmanager
def _publishing(publisher: Publisher, pair: Pair, period_s: float) -> Iterator[None]:
    """Publish one release after the other while the block runs."""
    over = threading.Event()

    def publish() -> None:
        sources = cycle([pair.source(0), pair.source(1)])  # the first release is the odd one
        while not over.wait(period_s):
            publisher.publish(from_export(next(sources)))

    with ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(publish)
        try:
            yield
        finally:
            over.set()
        publishing.result()
