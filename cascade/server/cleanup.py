"""No server outlives its launcher: how the processes and the shared memory of a server are found
and removed, also when the launcher was killed and could not do it.

Every server gets a name that nothing else has. All its processes carry the name in their
environment, all its shared-memory segments carry it in front of theirs, so neither a recycled
process id nor another server's segment is ever touched. A state file says which launcher the server
belongs to; `reap` removes what belongs to launchers that are gone.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "CASCADE_SERVER"
SHARED_MEMORY = Path("/dev/shm")
KILL_TIMEOUT_S = 10.0


def run_folder() -> Path:
    """A private folder of this user for what lives as long as a server.

    Raises:
        PermissionError: somebody else could write into it, and so plant a library.
    """
    folder = Path(tempfile.gettempdir()) / f"cascade-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(
            f"{folder} is not private to this user; remove it, or set TMPDIR to a folder of yours"
        )
    return folder


def register() -> str:
    """Choose a name for a new server and note that it belongs to this process."""
    name = f"cascade_{secrets.token_hex(8)}"
    state = {"launcher": os.getpid(), "started": _start_time(os.getpid()), "machine": _machine()}
    (run_folder() / name).mkdir()
    unfinished = run_folder() / name / "state"
    unfinished.write_text(json.dumps(state))
    unfinished.replace(run_folder() / f"{name}.json")  # nobody reads half a file
    return name


def processes(name: str) -> list[int]:
    """The process ids of the server of that name: tritonserver, its stubs, and their children."""
    marker = f"{VARIABLE}={name}".encode()
    return [pid for pid, variables in _environments() if marker in variables]


def segments(name: str) -> list[Path]:
    """The shared-memory segments of the server of that name."""
    return sorted(SHARED_MEMORY.glob(f"{name}*"))


def remove(name: str) -> None:
    """End what is left of a server, at once, and delete its segments and files.

    Raises:
        TimeoutError: a process did not die, which only the kernel can explain.
    """
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while alive := processes(name):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {alive} of {name} survive SIGKILL")
        for pid in alive:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it ended by itself meanwhile
        time.sleep(0.02)
    for segment in segments(name):
        segment.unlink(missing_ok=True)
    shutil.rmtree(run_folder() / name, ignore_errors=True)
    (run_folder() / f"{name}.json").unlink(missing_ok=True)


def reap() -> list[str]:
    """Remove the servers whose launchers are gone, and return their names."""
    reaped = []
    for path in sorted(run_folder().glob("cascade_*.json")):
        try:
            state = json.loads(path.read_text())
        except FileNotFoundError:
            continue  # its launcher has just removed it
        if state["machine"] != _machine():
            continue  # another container that shares this folder: its processes cannot be seen
        if _start_time(state["launcher"]) != state["started"]:
            remove(path.stem)
            reaped.append(path.stem)
    return reaped


def _start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot: with the id it names one process for
    ever. None when it is gone or only waits to be buried by its parent."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = line.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    return None if fields[0] in "ZX" else int(fields[19])


def _machine() -> str:
    """Where process ids mean the same: this boot and this process namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    """The environments that processes of this user were started with."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                yield int(folder.name), (folder / "environ").read_bytes().split(b"\0")
            except (PermissionError, FileNotFoundError, ProcessLookupError):
                continue  # another user's, or it has just ended
