"""What a user can mend: one base class, and one runner that turns it into one line.

An error that its reader can act on is a `CascadeError`: its message says what came, what was
expected and what to do. Anything else is a fault of this repository and ends in a traceback.
"""

from __future__ import annotations

import errno
import importlib
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

from cascade.telling import Lenient

STDOUT = "standard output"
DISK_FULL = os.strerror(errno.ENOSPC)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CascadeError(Exception):
    """A mistake of the user, or a state of the world that the user can change."""


class MissingPackage(CascadeError):
    """A package is not installed that only some of the product needs."""


def need(package: str, purpose: str, extra: str, error: type[CascadeError] = MissingPackage) -> Any:
    """Import a module of an optional package. Where it is not installed, raises `error`: `purpose`
    needs it, and `pip install 'cascade[EXTRA]'` brings it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as missing:
        needs = f"{purpose} needs {missing.name}, which is not installed here"
        raise error(f"{needs}; run: pip install 'cascade[{extra}]'") from missing


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A disk without room, met while the block writes a file or a folder, is an error that names
    it."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM and error.filename is None:
            error.filename = str(path)
        raise


def run(main: Callable[[], int | str | None], to_end: bool = False) -> None:
    """Run a program's `main` and exit with what it returns.

    A `CascadeError`, an `OSError` and whatever a full disk raises is printed as one line
    `error: ...` and ends the program with exit code 1. An interrupt ends it with 130, a closed pipe
    with 141. What cannot be written to stderr while it works is lost.

    Args:
        to_end: its product are files, and stdout only tells of the work, which goes on where stdout
            takes nothing. The exit code says so at the end: 141 for a closed pipe, otherwise 1.
    """
    stream = sys.stdout or _closed()
    stdout: Lenient = Lenient(stream) if to_end else _Strict(stream)
    stderr = Lenient(sys.stderr) if sys.stderr else None
    try:
        with redirect_stderr(stderr), redirect_stdout(stdout):
            code = _code(main)
            stdout.flush()
    except CascadeError as error:
        _close_bars(error)
        sys.exit("error: " + " ".join(str(error).split("\n")))
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:
        _close_bars(error)
        sys.exit(f"error: {_said(error)}")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if DISK_FULL not in str(error):
            raise
        _close_bars(error)
        sys.exit(f"error: {_line(error)}")  # of libraries that have their own kinds of errors
    finally:
        _let_go(stream)
    if to_end and stdout.lost and not code:
        gone = isinstance(stdout.lost, BrokenPipeError)
        code = 141 if gone else f"error: {STDOUT}: {stdout.lost.strerror}; all else is done"
    sys.exit(code)


class _Strict(Lenient):
    """A stdout whose errors say that they are of it."""

    def lose(self, error: OSError) -> None:
        error.filename = STDOUT
        raise error


def _closed() -> TextIO:
    """A stream for a stdout that was closed before the program started: it takes nothing. Nor does
    a file that the program opens take the place of stdout."""
    return os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")


def _code(main: Callable[[], int | str | None]) -> Any:
    try:
        return main()
    except SystemExit as end:
        return end.code


def _let_go(stream: TextIO) -> None:
    """Drop what a stream does not take, or Python complains of it when it exits."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            stream.flush()


def _said(error: OSError) -> str:
    """What a system call said, with the file where it is known: a write does not know its own."""
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
        _, _, first = error.args[0][0]  # of all that could not be copied
        return str(first)
    if error.filename is None:
        return _line(error.strerror or error)
    return f"{error.filename}: {error.strerror}"


def _line(said: object) -> str:
    return " ".join(str(said).split()) or type(said).__name__


def _close_bars(error: BaseException | None) -> None:
    """A progress bar that a suspended generator holds ends its line when the generator is freed;
    the frames of the traceback keep it."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
