"""What processes hold in memory, from the kernel's own books (man 5 proc, smaps_rollup).

Resident memory counts a page in every process that has touched it. The proportional share (PSS)
divides a page among those who hold it, so only its sum over processes says what they cost together.
Whoever else maps the same files takes a part of the division: nothing else should serve them then.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cascade.server import cleanup

STUB = "triton_python_backend_stub"
PROC = Path("/proc")


@dataclass(frozen=True)
class Memory:
    """One process, or the sum of several. In MB of 10^6 bytes.

    Args:
        rss_mb: resident.
        pss_mb: resident, every page divided by the number of processes that hold it.
        shared_mb: the part of rss that another process holds as well.
        anonymous_mb: the part of rss that is in no file, so that nobody can share it.
    """

    rss_mb: float
    pss_mb: float
    shared_mb: float
    anonymous_mb: float


def of(pids: Iterable[int]) -> Memory:
    """The sum over these processes.

    Raises:
        FileNotFoundError: one of them has ended.
    """
    books = [_read(PROC / str(pid) / "smaps_rollup") for pid in pids]
    rss, pss, clean, dirty, anonymous = (
        sum(book.get(key, 0) for book in books) / 1e6
        for key in ("Rss", "Pss", "Shared_Clean", "Shared_Dirty", "Anonymous")
    )
    return Memory(rss, pss, clean + dirty, anonymous)


def mapped(pids: Iterable[int], folder: Path) -> dict[str, Memory]:
    """What these processes hold of the files under a folder, by the path within it.

    A file that is missing here was read into anonymous memory, or not at all.
    """
    found: dict[str, Memory] = {}
    prefix = f"{folder.resolve()}{os.sep}"
    for pid in pids:
        for name, book in _mappings(PROC / str(pid) / "smaps"):
            if name.startswith(prefix):
                key = name.removeprefix(prefix)
                found[key] = _add(found.get(key, Memory(0, 0, 0, 0)), book)
    return found


def stubs(server: str) -> list[int]:
    """The Python processes of the server of that name, by process id."""
    return [pid for pid in sorted(cleanup.processes(server)) if STUB in _command(pid)]


def run_watched(module: str, *arguments: object) -> tuple[float, float]:
    """Run `python -m module` -> its seconds, and the most memory that it held, in MB. Pages of the
    files that it mapped are part of that. It is never less than what this process itself holds, for
    a child begins as its copy.

    Raises:
        SystemExit: it failed, and so does the whole.
    """
    words = [sys.executable, "-m", module, *map(str, arguments)]
    began = time.monotonic()
    process = subprocess.Popen(words)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words[1:])} failed with {process.returncode}: see above")
    return time.monotonic() - began, used.ru_maxrss * 1024 / 1e6


def _command(pid: int) -> str:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")[0].decode()
    except OSError:
        return ""  # it has ended


def _read(path: Path) -> dict[str, int]:
    return _book(path.read_text().splitlines()[1:])


def _book(lines: Iterable[str]) -> dict[str, int]:
    """`Rss:  12 kB` and so on -> bytes."""
    fields = (line.split() for line in lines)
    return {f[0][:-1]: int(f[1]) * 1024 for f in fields if len(f) == 3 and f[2] == "kB"}


def _mappings(path: Path) -> Iterator[tuple[str, dict[str, int]]]:
    """Every mapping of a process that has a file -> the file's name, and its book."""
    name, lines = "", list[str]()
    for line in path.read_text().splitlines():
        if line.split(maxsplit=1)[0].endswith(":"):
            lines.append(line)
            continue
        if name:
            yield name, _book(lines)
        fields = line.split(maxsplit=5)
        name, lines = fields[5] if len(fields) == 6 else "", []
    if name:
        yield name, _book(lines)


def _add(memory: Memory, book: dict[str, int]) -> Memory:
    return Memory(
        memory.rss_mb + book["Rss"] / 1e6,
        memory.pss_mb + book["Pss"] / 1e6,
        memory.shared_mb + (book["Shared_Clean"] + book["Shared_Dirty"]) / 1e6,
        memory.anonymous_mb + book["Anonymous"] / 1e6,
    )
