"""Marks inside a stage's process: what ended when. Off unless CASCADE_MARKS names a folder.

A batch is a row of marks, the first of them `START`. Each names the step that ended there, so the
time between two neighbours is that of the step whose name the later one bears. Times are those of
the monotonic clock, which the server's own traces use as well: the two fit together as they are.

The marks stay in memory until the model is unloaded. They are made for measurements of minutes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIABLE = "CASCADE_MARKS"
START = "start"
Marks = list[tuple[str, int]]


class Recorder:
    """Keeps the marks of a process, and writes them to FOLDER/<process id>.jsonl."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._batches: list[Marks] = []

    def mark(self, name: str) -> None:
        """Note that a step has ended now. Before the first batch nothing is noted."""
        now_ns = time.monotonic_ns()
        if name == START:
            self._batches.append([])
        if self._batches:
            self._batches[-1].append((name, now_ns))

    def write(self) -> None:
        """Append one line per batch, and forget them."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"{os.getpid()}.jsonl").open("a") as file:
            file.writelines(json.dumps(batch) + "\n" for batch in self._batches)
        self._batches.clear()


def _recorder() -> Recorder | None:
    folder = os.environ.get(VARIABLE)
    return Recorder(Path(folder)) if folder else None


_active = _recorder()


def mark(name: str) -> None:
    """The step of that name has ended. Off, this is a comparison."""
    if _active is not None:
        _active.mark(name)


def write() -> None:
    """Write what has been marked, if anything is."""
    if _active is not None:
        _active.write()


def after(name: str, step: Callable[..., Any]) -> Any:
    """A step that is marked by itself whenever it has run. Off, the step as it came."""
    return step if _active is None else _Marked(name, step, _active)


class _Marked:
    """Otherwise like the step: what else it has can be asked for."""

    def __init__(self, name: str, step: Callable[..., Any], recorder: Recorder) -> None:
        self._name, self._step, self._recorder = name, step, recorder

    def __call__(self, *inputs: Any) -> Any:
        made = self._step(*inputs)
        self._recorder.mark(self._name)
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)


def read(folder: Path) -> list[Marks]:
    """All batches of all processes, in the order in which they began."""
    batches = [
        [(name, ns) for name, ns in json.loads(line)]
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    return sorted(batches, key=lambda batch: batch[0][1])
