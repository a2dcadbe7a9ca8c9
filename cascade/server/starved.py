"""Ends workers that a server gave up while they loaded, and loads their models again.

Server 2.51 gives up a worker that gives no sign of life for a second while it loads: it got no
processor, or the whole machine stood still. The server then waits for the worker's end, and the
worker, once it goes on, for requests. The load never returns, nor does a later load of that model,
until the worker is ended; the server then says what happened, and the next load succeeds.
"""

from __future__ import annotations

import platform
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from cascade.server import workers
from cascade.telling import tell

GIVEN_UP = "is not healthy"  # of the server about such a worker
TRIES = 3  # of a load
LOOK_S = 1.0
WAIT_S = 3.0  # of the server for the end of a process; in order it takes milliseconds
_WAIT = {"x86_64": "61", "aarch64": "260"}.get(platform.machine())  # the kernel's number of wait4


def load(client: grpc.InferenceServerClient, model: str, **options: Any) -> None:
    """`client.load_model`, again where the server gave up a worker. Raises as it does."""
    for left in reversed(range(TRIES)):
        try:
            client.load_model(model, **options)
            return
        except InferenceServerException as error:
            if GIVEN_UP not in str(error.message()) or not left:
                raise


class Watch:
    """A thread that looks at a running server until `stop`.

    Args:
        pid: of tritonserver.
        name: of the server, see `cascade.server.cleanup`.
    """

    def __init__(self, pid: int, name: str) -> None:
        self._pid, self._name = pid, name
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="starved workers", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        since: dict[int, float] = {}
        while not self._over.wait(LOOK_S):
            now = time.monotonic()
            since = {pid: since.get(pid, now) for pid in waited_for(self._pid)}
            late = {pid for pid, start in since.items() if now - start >= WAIT_S}
            if late:
                self._end(late)

    def _end(self, pids: set[int]) -> None:
        for worker in workers.alive(self._name):
            if worker.pid in pids:
                tell(
                    f"worker {worker.pid} of {worker.model}/{worker.version} was ended: "
                    "tritonserver gave it up, and would wait for its end for ever\n"
                )
                with suppress(psutil.NoSuchProcess):
                    worker.process.kill()


def waited_for(pid: int) -> set[int]:
    """The processes whose end a thread of that process waits for; none where the kernel, or
    another processor than x86-64 and arm64, does not tell."""
    found = set()
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                call, *arguments = (thread / "syscall").read_text().split()
                if call == _WAIT:
                    found.add(int(arguments[0], 16))
    return found
