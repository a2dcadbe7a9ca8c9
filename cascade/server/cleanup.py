"""Finds and removes the processes and the shared memory of servers, also after a `kill -9`.

Each server has a unique name. All its processes carry the name in their environment and all its
shared-memory segments start with it, so cleanup never touches a recycled process id or another
server's segment. A launcher holds a lock on the file of its server; the kernel releases the lock
when the launcher ends in any way. `remove_orphans` removes the servers whose lock is free.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

from cascade.errors import CascadeError

VARIABLE = "CASCADE_SERVER"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # read for names that the server made
KILL_TIMEOUT_S = 10.0


class RunFolderError(CascadeError, PermissionError):
    """Other users could write into the folder of running servers."""


_locks: dict[str, IO[str]] = {}  # held by this process, by the name of the server


def run_folder() -> Path:
    """A private folder of this user for what lives as long as a server. Raises RunFolderError if
    another user could write into it, and so plant a library."""
    folder = Path(tempfile.gettempdir()) / f"cascade-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise RunFolderError(
            f"{folder} is not private to this user; remove it, or set TMPDIR to a folder of yours"
        )
    return folder


def register() -> str:
    """Choose a name for a new server and lock its file for as long as this process lives."""
    name = f"cascade_{secrets.token_hex(8)}"
    file = run_folder() / name / "lock"
    file.parent.mkdir()
    _locks[name] = lock = file.open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    file.rename(run_folder() / f"{name}.lock")  # other launchers see it only once it is locked
    return name


def processes(name: str) -> list[int]:
    """The process ids of the server of that name: tritonserver, its workers, and their children."""
    running = psutil.process_iter(["environ"])  # None for the processes of other users
    return [p.pid for p in running if (p.info["environ"] or {}).get(VARIABLE) == name]


def segments(name: str) -> list[Path]:
    """The shared-memory segments of the server of that name."""
    return sorted(SHARED_MEMORY.glob(f"{name}*"))


def remove(name: str) -> None:
    """Kill what is left of a server, and delete its segments and files. Raises TimeoutError if a
    process survives SIGKILL."""
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while alive := processes(name):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {alive} of {name} survive SIGKILL")
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for segment in segments(name):
        segment.unlink(missing_ok=True)
    shutil.rmtree(run_folder() / name, ignore_errors=True)
    (run_folder() / f"{name}.lock").unlink(missing_ok=True)
    if lock := _locks.pop(name, None):
        lock.close()


def remove_orphans() -> list[str]:
    """Remove the servers whose launchers have ended; returns their names."""
    removed = []
    for path in sorted(run_folder().glob("cascade_*.lock")):
        with suppress(FileNotFoundError, BlockingIOError), path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(path.stem)
            removed.append(path.stem)
    return removed
