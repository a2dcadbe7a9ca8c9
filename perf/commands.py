"""Runs the commands that a longer command is made of, printed so that each can be tried alone."""

from __future__ import annotations

import subprocess
import sys


def run(module: str, *arguments: object) -> None:
    """Run `python -m module` where the user sees it.

    Raises:
        SystemExit: it failed, and so does the whole.
    """
    words = [str(argument) for argument in arguments]
    heading(f"python -m {module} {' '.join(words)}")
    code = subprocess.run([sys.executable, "-m", module, *words], check=False).returncode
    if code:
        raise SystemExit(f"python -m {module} failed with code {code}: see above")


def heading(text: str) -> None:
    """A line that stands out."""
    print(f"\n\033[1m==> {text}\033[0m" if sys.stdout.isatty() else f"\n==> {text}", flush=True)
