"""Whether a server that starts still works on it, by what its processes compute and read."""

from __future__ import annotations

import time
from contextlib import suppress

import psutil

STALL_S = 20.0  # without work, after which a start is given up
# What waiting alone takes: a share of a core, seconds of it, and bytes.
IDLE_SHARE, IDLE_S, IDLE_BYTES = 0.02, 0.05, 1 << 20


class Stalled:
    """Watches a process and those that it started.

    The Python backend of server 2.51 hangs in about one start of thousands: it waits for a stub
    that waits for it. Both then compute next to nothing and read no file, for as long as one looks.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._since, self._computed, self._read = time.monotonic(), 0.0, 0

    def __bool__(self) -> bool:
        """Whether no work was seen for `STALL_S`. It looks each time that it is asked."""
        now, (computed, read) = time.monotonic(), self._work()
        waiting = IDLE_S + IDLE_SHARE * (now - self._since)
        if abs(computed - self._computed) > waiting or abs(read - self._read) > IDLE_BYTES:
            self._since, self._computed, self._read = now, computed, read
        return now - self._since >= STALL_S

    def _work(self) -> tuple[float, int]:
        """-> the processes' seconds of the processor, and the bytes that they read."""
        computed, read = 0.0, 0
        with suppress(psutil.Error):
            first = psutil.Process(self._pid)
            for process in (first, *first.children(recursive=True)):
                with suppress(psutil.Error):
                    computed += sum(process.cpu_times()[:2])
                    read += process.io_counters().read_chars
        return computed, read
