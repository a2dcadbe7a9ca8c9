"""Lines about the work, on stderr or stdout, that never fail the work.

A disk may be full, the reader of a pipe gone or asleep, a stream closed: the line is then lost, and
the work goes on.
"""

from __future__ import annotations

import os
import select
import stat
import sys
from typing import Any, TextIO


def tell(text: str, stream: TextIO | None = None) -> bool:
    """Write lines to a stream, by default stderr, as far as it takes them now -> whether it took
    them all; never waits for a reader, never raises OSError. Several processes may write whole
    lines to one file."""
    stream = stream or sys.stderr
    if stream is None:  # closed before this program started
        return False
    try:
        try:
            descriptor = stream.fileno()
        except OSError:  # a stream in memory
            stream.write(text)
            return True
        return _write(descriptor, text.encode(errors="backslashreplace"))
    except OSError as error:
        if isinstance(stream, Lenient):
            stream.lost = stream.lost or error
    except ValueError:  # the stream is closed
        pass
    return False


def say(line: str) -> None:
    """Write a line to stdout at once, also into a pipe, as `tell` does."""
    if sys.stdout is not None:
        tell(f"{line}\n", sys.stdout)


def _write(descriptor: int, text: bytes) -> bool:
    file = stat.S_ISREG(os.fstat(descriptor).st_mode)
    took = True
    for line in text.splitlines(keepends=True):
        while line and (file or _takes_some(descriptor)):
            # What has room for anything takes so much of it without waiting.
            line = line[os.write(descriptor, line if file else line[: select.PIPE_BUF]) :]
        took = took and not line
    return took


def _takes_some(descriptor: int) -> bool:
    ready = select.poll()
    ready.register(descriptor, select.POLLOUT)
    return bool(ready.poll(0))


class Lenient:
    """A stream that loses what it cannot write; in all else it is the stream. Progress bars and
    warnings go to stderr while a program works for hours. `lost` is the first error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self.lose(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self.lose(error)

    def lose(self, error: OSError) -> None:
        self.lost = self.lost or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
