"""Spans of a stage's process: which step ended when. Off unless CASCADE_MARKS names a folder.

A batch is a row of (name, time), the first of them `START`. Each name is that of the step that
ended then, so a step's span is the time since the entry before it. Times are those of the monotonic
clock, which the server's own traces use as well. The spans stay in memory until the model is
unloaded: they are meant for measurements of minutes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from cascade.telling import tell

VARIABLE = "CASCADE_MARKS"
START = "start"
Batch = list[tuple[str, int]]  # of one batch: names and nanoseconds


class Recorder:
    """Keeps the spans of a process and writes them to FOLDER/<process id>.jsonl."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._batches: list[Batch] = []

    def end(self, name: str) -> None:
        """A step has ended now; `START` begins a batch. Before the first batch nothing is noted."""
        now_ns = time.monotonic_ns()
        if name == START:
            self._batches.append([])
        if self._batches:
            self._batches[-1].append((name, now_ns))

    def write(self) -> None:
        """Append one line per batch, and forget them. Where the folder does not take them, that is
        told on stderr."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / f"{os.getpid()}.jsonl").open("a") as file:
                file.writelines(json.dumps(batch) + "\n" for batch in self._batches)
        except OSError as error:
            tell(f"the spans of {len(self._batches)} batches are lost: {error}\n")
        self._batches.clear()


_folder = os.environ.get(VARIABLE)
_active = Recorder(Path(_folder)) if _folder else None


def end(name: str) -> None:
    """The step of that name has ended. When spans are off, this is one comparison."""
    if _active is not None:
        _active.end(name)


def write() -> None:
    """Write the recorded spans, if there are any."""
    if _active is not None:
        _active.write()


def traced(name: str, step: Callable[..., Any]) -> Any:
    """The same step, whose runs are spans. When spans are off, the step itself."""
    if _active is None:
        return step

    @wraps(step)  # its attributes, too
    def run(*inputs: Any) -> Any:
        made = step(*inputs)
        end(name)
        return made

    return run


def read(folder: Path) -> list[Batch]:
    """All batches of all processes, in the order in which they began."""
    batches = [
        [(name, ns) for name, ns in json.loads(line)]
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    return sorted(batches, key=lambda batch: batch[0][1])
