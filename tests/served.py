"""A cascade served as in production, by `python -m cascade.server` in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from cascade.server import cleanup, workers
from perf.harness.measurement import memory

_READY = re.compile(r"ready: .* grpc (\S+), (?:http (\S+), )?metrics (\S+), ")
FREE_PORTS = tuple(f"--{service}-port=0" for service in ("http", "grpc", "metrics"))
EXIT_S = 60.0


@dataclass(frozen=True)
class Served:
    """A launcher and the addresses of its server.

    Args:
        launcher: `python -m cascade.server`.
        http_url: empty where the server speaks TLS.
        ready: the line that says that the server answers.
    """

    launcher: subprocess.Popen[str]
    url: str
    http_url: str
    metrics_url: str
    ready: str = ""

    @property
    def pid(self) -> int:
        """Process id of tritonserver; it changes when the launcher starts the server again.

        Raises:
            ValueError: there is no server now.
        """
        (server,) = psutil.Process(self.launcher.pid).children()
        return int(server.pid)

    @property
    def name(self) -> str:
        """The server's name in `cascade.server.cleanup`."""
        return str(psutil.Process(self.pid).environ()[cleanup.VARIABLE])

    @property
    def running(self) -> bool:
        return self.launcher.poll() is None

    def anonymous_mb(self) -> float:
        """Memory of tritonserver and its stubs that belongs to no file."""
        while True:
            with suppress(psutil.NoSuchProcess):  # a release is being unloaded
                stubs = [worker.pid for worker in workers.alive(self.name)]
                return memory([self.pid, *stubs]).anonymous_mb


@contextmanager
def serve(
    repository: Path,
    log: Path,
    *arguments: str,
    prefix: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Served]:
    """Start a launcher, wait until its server answers, and stop it in the end.

    Args:
        log: file, or another place, for what the launcher writes to stderr.
        prefix: a command that runs it.
        environment: what it gets beside this process's own.

    Raises:
        RuntimeError: the server did not start; holds the log.
    """
    command = (*prefix, sys.executable, "-m", "cascade.server", "--repository", str(repository))
    with log.open("w") as stderr:
        launcher = subprocess.Popen(
            (*command, *FREE_PORTS, *arguments),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, **(environment or {})},
        )
    with launcher:
        try:
            assert launcher.stdout is not None
            line = launcher.stdout.readline()
            found = _READY.match(line)
            if found is None:
                raise RuntimeError(f"the server did not start: {_said(log)}{line}")
            yield Served(launcher, found[1], found[2] or "", found[3], line.strip())
        finally:
            if code := launcher.poll():
                print(f"the launcher ended with {code}: {_said(log)}", file=sys.stderr)
            launcher.terminate()  # has no effect on a launcher that has ended
            launcher.wait(EXIT_S)


def _said(log: Path) -> str:
    return log.read_text() if log.is_file() else ""
