"""The Python processes of a server: which model each runs, and which of them have died.

tritonserver never waits for a stub that somebody killed, so it stays a zombie until its model is
unloaded. One that a model's unload ended in order is waited for at once, and is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cascade.serving import reaper
from cascade.serving.binaries import STUB

PROC = Path("/proc")


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
        """It has ended and nobody has waited for it."""
        state = _state(self.pid)
        return state is not None and state[1] == self.started and state[0] == "Z"

    @property
    def gone(self) -> bool:
        """Nothing is left of it."""
        state = _state(self.pid)
        return state is None or state[1] != self.started


def alive(server: str) -> set[Stub]:
    """The stubs of the server of that name."""
    found = (_stub(pid) for pid in reaper.processes(server))
    return {stub for stub in found if stub is not None}


def _stub(pid: int) -> Stub | None:
    """A stub's second argument is the model.py that it runs: .../MODEL/VERSION/model.py."""
    state = _state(pid)
    try:
        words = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return None  # it has just ended
    if state is None or Path(words[0].decode()).name != STUB or len(words) < 2:
        return None
    folder = Path(words[1].decode()).parent
    return Stub(pid, state[1], folder.parent.name, int(folder.name))


def _state(pid: int) -> tuple[str, int] | None:
    """State and start time of a process, as man 5 proc has them; None where there is none."""
    try:
        line = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = line.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    return fields[0], int(fields[19])
