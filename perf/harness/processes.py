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
    """One process, or the sum of several. In MB of 10^6 bytes.

    Args:
        rss_mb: resident.
        pss_mb: resident, every page divided by the number of processes that hold it.
        shared_mb: the part of rss that another process holds as well.
        anonymous_mb: the part of rss that is in no file, so that it cannot be shared.
    """

    rss_mb: float
    pss_mb: float
    shared_mb: float
    anonymous_mb: float


def memory(pids: Iterable[int]) -> Memory:
    """The sum over these processes.

    Raises:
        psutil.NoSuchProcess: one of them has ended.
    """
    maps = [held for pid in pids for held in psutil.Process(pid).memory_maps(grouped=True)]
    return Memory(
        rss_mb=sum(held.rss for held in maps) / 1e6,
        pss_mb=sum(held.pss for held in maps) / 1e6,
        shared_mb=sum(held.shared_clean + held.shared_dirty for held in maps) / 1e6,
        anonymous_mb=sum(held.anonymous for held in maps) / 1e6,
    )


def stubs(server: str) -> list[int]:
    """The Python processes of the server of that name, by process id."""
    return sorted(worker.pid for worker in workers.alive(server))
