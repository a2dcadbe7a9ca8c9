"""A cascade served as in production, by `python -m cascade.server` in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cascade.server import cleanup
from perf import memory
from perf.record import ROOT

_READY = re.compile(r"ready: .* grpc (\S+), (?:http (\S+), )?metrics (\S+), ")
FREE_PORTS = tuple(f"--{service}-port=0" for service in ("http", "grpc", "metrics"))
EXIT_S = 60.0


@dataclass(frozen=True)
class Served:
    """What runs.

    Args:
        launcher: `python -m cascade.server`.
        url, http_url, metrics_url: its services.
    """

    launcher: subprocess.Popen[str]
    url: str
    http_url: str
    metrics_url: str

    @property
    def pid(self) -> int:
        """Of tritonserver; another one where the launcher had to start it again.

        Raises:
            ValueError: there is none now.
        """
        launcher = self.launcher.pid
        return int(Path(f"/proc/{launcher}/task/{launcher}/children").read_text())

    @property
    def name(self) -> str:
        """Of the server, `cascade.server.cleanup`."""
        variables = Path(f"/proc/{self.pid}/environ").read_bytes().split(b"\0")
        (name,) = (v for v in variables if v.startswith(f"{cleanup.VARIABLE}=".encode()))
        return name.partition(b"=")[2].decode()

    @property
    def running(self) -> bool:
        return self.launcher.poll() is None

    def anonymous_mb(self) -> float:
        """Memory of tritonserver and its stubs that is in no file."""
        while True:
            with suppress(FileNotFoundError, ProcessLookupError):  # a release has just been retired
                return memory.of([self.pid, *memory.stubs(self.name)]).anonymous_mb


@contextmanager
def serve(repository: Path, log: Path, *arguments: str) -> Iterator[Served]:
    """Start, wait until it answers, and stop in the end.

    Args:
        log: file for what the launcher says.

    Raises:
        SystemExit: it did not start.
    """
    command: Sequence[str] = (
        *(sys.executable, "-m", "cascade.server", "--repository", str(repository)),
        *FREE_PORTS,
        *arguments,
    )
    with log.open("w") as said:
        launcher = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=said, text=True
        )
    with launcher:
        try:
            assert launcher.stdout is not None
            line = launcher.stdout.readline()
            found = _READY.match(line)
            if found is None:
                raise SystemExit(f"the server did not start: {log.read_text()}{line}")
            yield Served(launcher, found[1], found[2] or "", found[3])
        finally:
            if code := launcher.poll():
                print(f"the launcher ended with {code}: {log.read_text()}", file=sys.stderr)
            launcher.terminate()  # does nothing to one that has ended
            launcher.wait(EXIT_S)
