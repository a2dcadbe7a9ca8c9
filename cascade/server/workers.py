"""The Python processes of a server: which model each runs, and which of them have died.

tritonserver never waits for a stub that somebody killed, so it stays a zombie until its model is
unloaded. One that a model's unload ended in order exits with 0 and is soon waited for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cascade.server import cleanup
from cascade.server.binaries import STUB

PROC = Path("/proc")
_RUNS = re.compile(rf"(?:[^\0]*/)?{STUB}\0(?:[^\0]*/)?([^/\0]+)/(\d+)/model\.py\0")


class _State(NamedTuple):
    """What man 5 proc says of a process: when it started, whether it ended in disorder."""

    started: int
    failed: bool


@dataclass(frozen=True)
class Stub:
    """One process of a model.

    Args:
        started: in clock ticks since boot; with the process id it names one process for ever.
    """

    pid: int
    started: int
    model: str
    version: int

    @property
    def dead(self) -> bool:
        """It has ended by a signal or an error, and nobody has waited for it."""
        state = _state(self.pid)
        return state is not None and state.started == self.started and state.failed

    @property
    def gone(self) -> bool:
        """Nothing is left of it."""
        state = _state(self.pid)
        return state is None or state.started != self.started


def alive(server: str) -> set[Stub]:
    """The stubs of the server of that name."""
    found = (_stub(pid) for pid in cleanup.processes(server))
    return {stub for stub in found if stub is not None}


def _stub(pid: int) -> Stub | None:
    """A stub's second argument is the model.py that it runs: .../MODEL/VERSION/model.py. Before a
    load, Triton starts one that has no arguments, to see whether it runs at all."""
    state = _state(pid)
    try:
        command = (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return None  # it has just ended
    runs = _RUNS.match(command)
    if state is None or runs is None:
        return None
    return Stub(pid, state.started, runs[1], int(runs[2]))


def _state(pid: int) -> _State | None:
    """None where there is none."""
    try:
        line = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = line.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    return _State(int(fields[19]), failed=fields[0] == "Z" and fields[49] != "0")
