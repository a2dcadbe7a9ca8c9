"""A clock that steps under load."""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cascade.client import DeadlineExceeded, Recommender
from tests.resilience.conftest import Pair
from tests.resilience.faults import FaultTable
from tests.resilience.faulty.site import Site, judge

HOUR_S = 3600
SOURCE = Path(__file__).with_name("clock.c")


@contextmanager
def clock(pair: Pair, work: Path) -> Iterator[tuple[Site, Callable[[int], None]]]:
    """A site whose processes see another time of day, and what sets it, in seconds from now; the
    monotonic clock is as it is."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler (apt-get install gcc libc6-dev)")
    library, offset = work / "clock.so", work / "offset"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    offset.write_bytes(struct.pack("l", 0))

    def step(seconds: int) -> None:
        with offset.open("r+b") as file:  # in place: the processes have it mapped
            file.write(struct.pack("l", seconds))

    added = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(offset)}
    with Site(work / "site", pair, environment=added) as site:
        try:
            yield site, step
        finally:
            step(0)


def test_a_clock_that_steps(pair: Pair, work: Path, faults: FaultTable) -> None:
    """A request whose deadline has passed by the server's clock gets an error."""
    with ExitStack() as stack:
        site, step = stack.enter_context(clock(pair, work))
        outcomes = stack.enter_context(site.asked())
        client = stack.enter_context(Recommender(site.served.url, send_deadline=True))
        for seconds, name in ((HOUR_S, "forward"), (0, "back"), (-HOUR_S, "back again")):
            with faults(f"clock: one hour {name}") as found:
                seen = site.seen()
                step(seconds)
                begin = time.monotonic()
                found.shows = site.told(seen, "clock stepped")
                if seconds > 0:
                    with pytest.raises(DeadlineExceeded, match="deadline passed"):
                        client.recommend({})
                else:
                    client.recommend({})
                judge(found, outcomes, begin)
