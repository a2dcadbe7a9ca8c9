"""What the command lines share: steps as commands of their own, progress, and an argument type."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from clients.options import positive

PROGRESS_S = 10
CURSOR = r"\x1b\[[0-9;]*[A-Za-z]"  # what progress bars move it by


def run(module: str, *arguments: object, log: Path | None = None) -> float:
    """Run `python -m module` -> seconds. The command is printed, to be tried alone. With
    a log its output is appended to that, and the screen shows its last line every `PROGRESS_S`
    seconds. Raises SystemExit: it failed."""
    words = [sys.executable, "-m", module, *map(str, arguments)]
    heading(f"python {' '.join(words[1:])}")
    started = time.monotonic()
    code = _logged(words, log, started) if log else _shown(words)
    if code:
        seen = f"{log}, which ends with\n{tail(log, 10)}" if log else "above"
        raise SystemExit(f"error: python -m {module} failed with code {code}: see {seen}")
    return time.monotonic() - started


def _shown(words: list[str]) -> int:
    """The step's stdout goes through this program's, so that it is never lost to the step."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
        return process.wait()


def _logged(words: list[str], log: Path, started: float) -> int:
    with log.open("a") as file:
        print(f"==> {' '.join(words)}", file=file, flush=True)
        with subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT) as process:
            while True:
                try:
                    return process.wait(PROGRESS_S)
                except subprocess.TimeoutExpired:
                    print(f"{time.monotonic() - started:6.0f} s  {tail(log, 1)[:90]}", flush=True)


def tail(log: Path, lines: int) -> str:
    """The last lines; of a progress bar its last state."""
    text = re.sub(CURSOR, "", log.read_text(errors="replace")).replace("\r", "\n")
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def heading(text: str) -> None:
    """A line that stands out."""
    print(f"\n\033[1m==> {text}\033[0m" if sys.stdout.isatty() else f"\n==> {text}", flush=True)


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def end_in_order() -> None:
    """Let SIGTERM end the `with` blocks, and so the servers."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second signal must not interrupt that
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def counts(text: str) -> tuple[int, ...]:
    """An argparse type: numbers from 1 on, separated by commas."""
    return tuple(positive(part) for part in text.split(","))


def rows_there(name: str, folder: str, shared: Path) -> bool:
    """Whether the real rows of a data set are in their folder of the shared data; says so where
    they are not. An empty folder is of rows that are drawn."""
    if folder and not (shared / folder).exists():
        say(f"{name} is left out: there is no {shared / folder}; --shared DIR says where rows are")
        return False
    return True
