"""Runs a program of this repository inside the test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from cascade.errors import run


def status(main: Callable[[Sequence[str]], Any], arguments: Sequence[str]) -> int:
    """The exit status of `main` under the runner of all programs; its message goes to stderr."""
    try:
        run(lambda: main(arguments))
    except SystemExit as end:
        if not isinstance(end.code, str):
            return end.code or 0
        print(end.code, file=sys.stderr)
    return 1


def last_error(printed: str) -> str:
    """The one line `error: ...` that ends what a program printed, after its progress bars."""
    lines = printed.splitlines()
    errors = [line for line in lines if line.startswith(("error: ", "Traceback"))]
    assert errors == lines[-1:], printed
    return errors[0]
