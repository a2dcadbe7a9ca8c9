"""What changes around a server while it answers: the room on its disks, and the clock.

A full disk of the log loses what the server says, full shared memory fails the next large request,
and a clock that steps makes the deadlines of requests wrong: each is told before it is missed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

LEAST_BYTES = 1 << 20  # less is a full disk; twice as much is one with room again
STEP_S = 0.5  # slower changes of the clock are those of a time service

Change = tuple[str, dict[str, object]]
"""An event and its facts, for `Supervisor`."""


class Surroundings:
    """Compares each look with the one before.

    Args:
        wall, steady: the time in seconds since 1970, and that of a clock that nobody sets.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall, self._steady = wall, steady
        self._full: set[Path] = set()
        self._offset_s = wall() - steady()

    def changes(self, places: Iterable[Path]) -> Iterator[Change]:
        """What has changed since the last call; `places` are files or folders, one on each disk
        that the server writes to. One that is not there, or no disk, is left out."""
        for place in places:
            yield from self._disk(place)
        yield from self._clock()

    def _disk(self, place: Path) -> Iterator[Change]:
        try:
            found = os.statvfs(place)
        except OSError:
            return
        free, known = found.f_bavail * found.f_frsize, place in self._full
        if found.f_blocks and not known and free < LEAST_BYTES:
            self._full.add(place)
            yield "disk full", {"path": str(place), "free_bytes": free}
        elif known and free >= 2 * LEAST_BYTES:
            self._full.discard(place)
            yield "disk has room", {"path": str(place), "free_bytes": free}

    def _clock(self) -> Iterator[Change]:
        before, self._offset_s = self._offset_s, self._wall() - self._steady()
        if abs(self._offset_s - before) > STEP_S:
            yield "clock stepped", {"seconds": round(self._offset_s - before, 3)}
