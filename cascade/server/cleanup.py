"""Finds and removes the processes and the shared memory of servers, also after a `kill -9`.

Each server has a unique name. All its processes carry the name in their environment and all its
shared-memory segments start with it, so cleanup never touches a recycled process id or another
server's segment. A launcher holds a lock on the file of its server; the kernel releases the lock
when the launcher ends in any way. `remove_orphans` removes the servers whose lock is free.

Servers run for months, and programs remove old files from the folder of temporary files. A launcher
locks its run folder, which systemd-tmpfiles then spares, and makes again what others removed.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

from cascade.errors import CascadeError
from cascade.server import shell

VARIABLE = "CASCADE_SERVER"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # read for names that the server made
SHARED = "denied_*"
Shared = tuple[int, bytes]  # when it changed, in ns, and its content
KILL_TIMEOUT_S = 10.0
USUAL_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  # in a private folder


class RunFolderError(CascadeError, PermissionError):
    """Other users could write into the folder of running servers, or there is no place for it."""


_chosen: dict[str, Path] = {}  # the folders of temporary files, by those that were wanted
_locks: dict[str, ExitStack] = {}  # held by this process, by the name of the server


def run_folder() -> Path:
    """A private folder of this user for what lives as long as a server; a shell reads its path as
    it is written. Raises RunFolderError if another user could write into it, and so plant a
    library, or if there is no place for it."""
    folder = _temporary() / f"cascade-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise RunFolderError(
            f"{folder} is not private to this user; remove it, or set TMPDIR to a folder of yours"
        )
    return folder


def other_than_wanted() -> str:
    """Says where a server keeps its files where that is not below TMPDIR; else empty. Raises
    RunFolderError."""
    wanted = os.environ.get("TMPDIR")
    if not wanted or run_folder().is_relative_to(os.path.abspath(wanted)):
        return ""
    return (
        f"TMPDIR={wanted} cannot be written to, or a shell would misread its path: the server's "
        f"files are in {run_folder()}"
    )


def _temporary() -> Path:
    """Python's folder of temporary files, or a usual one where its path is not safe or there is
    none: Python does not look into /dev/shm."""
    try:
        wanted = tempfile.gettempdir()
    except FileNotFoundError:
        wanted = os.environ.get("TMPDIR", USUAL_TEMPORARY[0])
    if (before := _chosen.get(wanted)) and not os.path.lexists(before):
        return before  # it was removed: servers look for their files there
    for folder in (wanted, *USUAL_TEMPORARY):
        if shell.is_safe(folder) and os.access(folder, os.W_OK | os.X_OK):
            _chosen[wanted] = Path(folder)
            return Path(folder)
    raise RunFolderError(
        f"there is no place for a server's files: {wanted} cannot be written to, or a shell would "
        f"misread its path, and none of {', '.join(USUAL_TEMPORARY)} can be written to; set TMPDIR "
        "to a folder without spaces and special characters that can"
    )


def register() -> str:
    """Choose a name for a new server and lock its file for as long as this process lives."""
    name = f"cascade_{secrets.token_hex(8)}"
    _lock(name)
    return name


def keep(name: str) -> bool:
    """Lock the file of a server of this process again, if it was removed -> whether it was. Raises
    RunFolderError as `run_folder`; OSError: the file cannot be made."""
    if (run_folder() / f"{name}.lock").exists():
        return False
    held = _locks[name]
    _lock(name)
    held.close()
    return True


def share(name: str, known: dict[str, Shared]) -> None:
    """Bring the files that the processes of a server leave for those that start later, such as what
    was denied (`cascade.stages.filters.deny`), up to date in `known`, by name, and write those
    again that are gone: of a server before this one, or removed. Raises OSError."""
    folder = run_folder() / name
    folder.mkdir(exist_ok=True)
    for file in known.keys() - {path.name for path in folder.glob(SHARED)}:
        (folder / file).write_bytes(known[file][1])
    for path in folder.glob(SHARED):
        changed = path.stat().st_mtime_ns
        if path.name not in known or known[path.name][0] != changed:
            known[path.name] = changed, path.read_bytes()


def _lock(name: str) -> None:
    run = run_folder()
    file = run / name / "lock"
    file.parent.mkdir(exist_ok=True)
    with ExitStack() as held:
        lock = held.enter_context(file.open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = os.open(run, os.O_RDONLY)
        held.callback(os.close, folder)
        with suppress(OSError):  # some file systems lock no folders
            fcntl.flock(folder, fcntl.LOCK_SH)
        file.rename(run / f"{name}.lock")  # other launchers see it only once it is locked
        _locks[name] = held.pop_all()


def processes(name: str) -> list[int]:
    """The process ids of the server of that name: tritonserver, its workers, and their children."""
    running = psutil.process_iter(["environ"])  # None for the processes of other users
    return [p.pid for p in running if (p.info["environ"] or {}).get(VARIABLE) == name]


def segments(name: str) -> list[Path]:
    """The shared-memory segments of the server of that name."""
    return sorted(SHARED_MEMORY.glob(f"{name}*"))


def hide_segments(name: str) -> None:
    """Let no other user of the machine read the segments, which hold what users send: Triton makes
    them readable for all, whatever the umask."""
    for segment in segments(name):
        with suppress(FileNotFoundError):  # its model was unloaded
            if segment.stat().st_mode & 0o077:
                segment.chmod(0o600)


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
    if held := _locks.pop(name, None):
        held.close()


def remove_orphans() -> list[str]:
    """Remove the servers whose launchers have ended; returns their names."""
    removed = []
    for path in sorted(run_folder().glob("cascade_*.lock")):
        with suppress(FileNotFoundError, BlockingIOError), path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(path.stem)
            removed.append(path.stem)
    return removed
