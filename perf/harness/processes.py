"""What processes hold in memory, from the kernel's own figures (man 5 proc, smaps).

Resident memory counts a page in every process that has touched it. The proportional share (PSS)
divides a page among the processes that hold it, so only its sum over processes says what they cost
together. Other processes that map the same files take a part of the division: no other server
should serve the same release then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from cascade.server import workers


@dataclass(frozen=True)
class Memory:
    """Of one process or several, in MB of 10^6 bytes: resident, its proportional share, the part
    that another process holds as well, and the part that is in no file."""

    rss_mb: float
    pss_mb: float
    shared_mb: float
    anonymous_mb: float


def memory(pids: Iterable[int]) -> Memory:
    """The sum over these processes. Raises psutil.NoSuchProcess."""
    maps = [held for pid in pids for held in psutil.Process(pid).memory_maps(grouped=True)]
    held_bytes = [(m.rss, m.pss, m.shared_clean + m.shared_dirty, m.anonymous) for m in maps]
    return Memory(*(sum(column) / 1e6 for column in zip(*held_bytes, strict=True)))


def stubs(server: str) -> list[int]:
    """The Python processes of the server of that name, by process id."""
    return sorted(worker.pid for worker in workers.alive(server))
