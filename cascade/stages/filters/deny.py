"""The deny list: a file of item ids that no user may get, watched while requests are answered.

`cascade.id_lines` says what the file may hold. Every process checks its time and size while it
answers a request, at most twice a second, so a change is in force within a second and needs no
release. Replace the file by a rename, so that no process reads half of it.

An error never permits an item. Where some lines cannot be read, the others are in force, and so is
all that was denied before; where the file cannot be read, or is gone, what was denied stays denied.
A process that starts knows what the processes before it denied, as long as their server lives: see
`Memory`. Where there were none, it does not start over a file that it cannot read.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cascade.errors import CascadeError
from cascade.files import replace_text
from cascade.id_lines import BadLine, read
from cascade.index import Mask
from cascade.item_keys import keys_of
from cascade.spec import FILES_VARIABLE
from cascade.stages.filters.items import FilterItems

CHECK_S = 0.5
NAMED = 5  # bad lines in a message
LOG = logging.getLogger(__name__)
Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class Denied:
    """Rows that are denied: a mask [N], and the count of its true values."""

    mask: Mask
    count: int

    @classmethod
    def of(cls, mask: Mask) -> Denied:
        return cls(mask, int(np.count_nonzero(mask)))

    @classmethod
    def nothing(cls, items: FilterItems) -> Denied:
        return cls(np.zeros(len(items), bool), 0)

    def __or__(self, other: Denied) -> Denied:
        return Denied.of(self.mask | other.mask)


class DenyListError(CascadeError, ValueError):
    """A deny list that cannot be read."""


@dataclass(frozen=True)
class DenyFile:
    """The content of a deny list: what it denies of a catalogue, how many of its lines name an item
    (`applied`) and how many none (`absent`), and the lines that cannot be read."""

    denied: Denied
    applied: int
    absent: int
    bad: tuple[BadLine, ...]

    @classmethod
    def of(cls, data: bytes, items: FilterItems, string_ids: bool) -> DenyFile:
        """Read the content of a file; the ids of `items` are integers or strings."""
        lines = read(data, string_ids)
        header = [lines.header] if string_ids and lines.header else []  # an item may be called so
        listed = [*lines.ids, *header]
        keys = keys_of(listed, len(listed)) if string_ids else np.array(listed, np.int64)
        known = items.known(keys)
        numbers = np.array([*lines.numbers, *(0 for _ in header)], np.int64)
        literal = np.array([*lines.literal, *(True for _ in header)], bool)
        # Another reading of a line counts: of integers always, for nothing says which one is meant;
        # of strings, where the line as it stands is no item.
        other = ~np.isin(numbers, numbers[known & literal]) if string_ids else True
        meant = known & (literal | other)
        mask = np.zeros(len(items), bool)
        mask[items.rows(keys[meant])] = True
        applied = len(np.unique(numbers[meant & (numbers > 0)]))
        distinct = len(np.unique(numbers[numbers > 0]))
        return cls(Denied.of(mask), applied, distinct - applied, tuple(lines.bad))

    @property
    def readable(self) -> bool:
        """Whether a line can be read, or there is none that cannot."""
        return self.applied + self.absent > 0 or not self.bad

    def named(self) -> str:
        """The bad lines, for a message."""
        more = len(self.bad) - NAMED
        return "; ".join(map(str, self.bad[:NAMED])) + (f"; and {more} more" if more > 0 else "")

    def lines(self) -> Mapping[str, float]:
        """Lines by state."""
        return {"applied": self.applied, "absent": self.absent, "bad": len(self.bad)}


class Memory:
    """The contents that are in force, in a file of the server: the last list that was read as a
    whole, and those since then of which some lines were. None: there is no such file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    @classmethod
    def of_server(cls, deny_list: Path) -> Memory:
        """That of the server whose process this is, where a launcher started it."""
        folder = os.environ.get(FILES_VARIABLE)
        name = hashlib.sha256(os.fsencode(deny_list)).hexdigest()[:16]
        return cls(Path(folder) / f"denied_{name}" if folder else None)

    def read(self) -> list[bytes]:
        """Nothing where nothing was kept. Raises DenyListError: what was kept is damaged."""
        try:
            kept = json.loads(self._path.read_text()) if self._path else []
            return [base64.b64decode(content) for content in kept]
        except FileNotFoundError:
            return []
        except (TypeError, ValueError) as error:
            raise DenyListError(f"{self._path}, what was denied before, is damaged") from error

    def keep(self, contents: Sequence[bytes]) -> None:
        """A failure is logged: what is denied now is denied all the same."""
        if self._path is None:
            return
        try:
            kept = [base64.b64encode(content).decode() for content in contents]
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(self._path, json.dumps(kept))
        except OSError as error:
            LOG.error("a process that starts later may not know what was denied: %s", error)


class DenyList:
    """The items that a file denies at present. Without a file nothing is denied, until there is
    one. DenyListError: there is one that cannot be read."""

    def __init__(
        self,
        path: Path,
        items: FilterItems,
        clock: Callable[[], float] = time.monotonic,
        string_ids: bool = False,
        memory: Memory | None = None,
    ) -> None:
        self._path, self._items, self._clock = path, items, clock
        self._string_ids = string_ids
        self._memory = memory or Memory(None)
        self._contents = self._memory.read()
        denied = Denied.nothing(items)
        for before in self._contents:
            denied |= DenyFile.of(before, items, string_ids).denied
        self._file = DenyFile(denied, 0, 0, ())
        self._stamp: Stamp | None = None  # of the content that was read last
        self._complaint = ""
        self._written_s: float | None = None  # since 1970: the file that was last read as a whole
        self._next_check_s = -np.inf
        self._check(first=True)

    def now(self) -> Denied:
        """The denied rows. What is wrong with the file is reported in the log, once."""
        now_s = self._clock()
        if now_s >= self._next_check_s:
            self._next_check_s = now_s + CHECK_S
            self._check()
        return self._file.denied

    def levels(self) -> Mapping[str, float | Mapping[str, float]]:
        """Lines by state; whether the file is in force as it stands; how long ago the file was
        written that was last read as a whole, in seconds, where there was one."""
        found: dict[str, float | Mapping[str, float]] = {
            "deny_list_lines": self._file.lines(),
            "deny_list_ok": float(not self._complaint),
        }
        if self._written_s is not None:
            found["deny_list_age_s"] = max(0.0, time.time() - self._written_s)
        return found

    def _check(self, first: bool = False) -> None:
        try:
            stamp = _stamp(self._path)
            if stamp is not None and stamp == self._stamp:
                return
            if stamp is not None:
                self._take(content(self._path))
                self._stamp = stamp
                if not self._complaint:
                    self._written_s = stamp[0] / 1e9
                return
            problem = "the file is gone; to deny nothing, leave an empty one" * self._denies
        except (OSError, DenyListError) as error:
            problem = (error.strerror if isinstance(error, OSError) else "") or str(error)
            if first and not self._contents:
                raise DenyListError(
                    f"deny list {self._path}: {problem}; mend it, or every item could be answered"
                ) from error
        self._stamp = None
        self._tell(problem and f"{problem}; what was denied stays denied")

    @property
    def _denies(self) -> bool:
        return self._file.denied.count > 0

    def _take(self, data: bytes) -> None:
        """Put a file's content in force. Raises DenyListError: no line of it can be read."""
        file = DenyFile.of(data, self._items, self._string_ids)
        if not file.readable:
            self._file = replace(self._file, bad=file.bad)
            raise DenyListError(f"none of its {len(file.bad)} lines can be read; {file.named()}")
        if file.bad:
            file = replace(file, denied=file.denied | self._file.denied)
        contents = [*self._contents, data] if file.bad else [data]
        if data not in self._contents or not file.bad:
            self._contents = contents
            self._memory.keep(contents)
        self._file = file
        total = file.applied + file.absent + len(file.bad)
        kept = "the others are in force, with all that was denied before"
        self._tell(
            f"{len(file.bad)} of {total} lines cannot be read, {kept}; {file.named()}"
            if file.bad
            else ""
        )

    def _tell(self, problem: str) -> None:
        """Log a problem that is new, and the end of one."""
        if problem and problem != self._complaint:
            LOG.error("deny list %s: %s", self._path, problem)
        elif self._complaint and not problem:
            LOG.warning("deny list %s: in force as it stands again", self._path)
        self._complaint = problem


def content(path: Path) -> bytes:
    """What a deny list holds. Raises OSError: it cannot be read; DenyListError: it is a pipe or a
    device, whose reader could wait for ever."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise DenyListError("it is no regular file")
        return file.read()


def _stamp(path: Path) -> Stamp | None:
    """Values that change when a file is edited or replaced; None where there is no file. Raises
    OSError for a link to none, or a folder that is not there: that is no decision to deny
    nothing."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        if path.is_symlink() or not path.parent.is_dir():
            raise
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size
