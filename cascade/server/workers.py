"""The Python processes of a server: which model each runs, and which of them have died.

Each instance of a Python model is a process; Triton calls its program the stub. tritonserver does
not wait for a stub that was killed, so the stub stays a zombie until its model is unloaded. A stub
that an unload ends in order exits with 0, and tritonserver soon waits for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import psutil

from cascade.server import cleanup
from cascade.server.binaries import STUB
from cascade.server.process import stat_fields

_MODEL_FILE = re.compile(r"(?:.*/)?([^/]+)/(\d+)/model\.py")
_EXIT_CODE = 49


@dataclass(frozen=True)
class Worker:
    """One process of a model; psutil tells it from a later process with the same id."""

    process: psutil.Process
    model: str
    version: int

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    @property
    def dead(self) -> bool:
        """The process ended by a signal or an error, and its parent has not waited for it."""
        try:
            zombie = not self.gone and self.process.status() == psutil.STATUS_ZOMBIE
            return zombie and stat_fields(self.pid)[_EXIT_CODE] != "0"
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            return False

    @property
    def gone(self) -> bool:
        """Nothing is left of the process, not even a zombie."""
        return not self.process.is_running()


def alive(server: str) -> set[Worker]:
    """The worker processes of the server of that name."""
    return {worker for pid in cleanup.processes(server) if (worker := _worker(pid))}


def _worker(pid: int) -> Worker | None:
    """A stub's second argument is the model.py that it runs: .../MODEL/VERSION/model.py. Before a
    load, Triton starts a stub without arguments, to see whether it runs at all."""
    try:
        process = psutil.Process(pid)
        command = process.cmdline()
    except psutil.NoSuchProcess:
        return None
    if len(command) < 2 or Path(command[0]).name != STUB:
        return None
    model_file = _MODEL_FILE.fullmatch(command[1])
    return model_file and Worker(process, model_file[1], int(model_file[2]))
