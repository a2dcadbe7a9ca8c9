"""The measures of a training, as TensorBoard reads them.

tensorboardX's own writer hands its events to a thread, which ends with the first write that fails;
the training then waits for it for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from cascade.telling import tell


class Curves:
    """Writes into a folder; what its disk does not take is lost, which is told once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: EventsWriter | None = None
        self._try(self._open)

    def add(self, measures: Mapping[str, float], step: int) -> None:
        """One point of each curve."""
        self._try(lambda: self._write(measures, step))

    def close(self) -> None:
        """No more points come."""
        if self._writer is not None:
            self._try(self._writer.close)

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(self._folder / "events"))

    def _write(self, measures: Mapping[str, float], step: int) -> None:
        if self._writer is None:
            return
        for name, value in measures.items():
            event = Event(wall_time=time.time(), step=step, summary=scalar(name, value))
            self._writer.write_event(event)
        self._writer.flush()

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as error:
            self._writer = None
            tell(f"{self._folder}: the curves from here on are lost: {error.strerror}\n")
