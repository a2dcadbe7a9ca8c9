"""The fault table: what each fault shows, what it costs, and how long until all is right again.

A fault is *lost* work where something is gone or wrong for good: a release, users of a store, a
request that got neither an answer nor an error, a wrong answer. A fault is *silent* where neither
an error, nor an event of the launcher, nor a metric, nor the health check tells of it.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cascade.server import binaries

ROOT = Path(__file__).parents[2]
PROGRAM_TIMEOUT_S = 120.0
PATIENCE_S, POLL_S = 90.0, 0.1
UNABLE = ("--bounding-set=-dac_override,-dac_read_search",)  # root then obeys permissions


@dataclass
class Finding:
    """What one fault did, as far as it is known; silent and a loss until the opposite is shown.

    Args:
        shows: what told of it, in the words that a user or an operator reads.
        lost: releases, users or requests.
        right_s: from the end of the fault until all worked as before.
    """

    fault: str
    shows: str = ""
    lost: int = 1
    right_s: float = float("nan")


@dataclass
class FaultTable:
    """The faults that were tried."""

    findings: list[Finding] = field(default_factory=list)

    @contextmanager
    def __call__(self, fault: str) -> Iterator[Finding]:
        """Try a fault; the block fills in what it finds. One that cannot be tried here does not
        count."""
        found = Finding(fault)
        self.findings.append(found)
        try:
            yield found
        except pytest.skip.Exception:
            self.findings.remove(found)
            raise

    @property
    def figures(self) -> dict[str, float]:
        return {
            "faults_tried": len(self.findings),
            "faults_lost": sum(found.lost for found in self.findings),
            "faults_silent": sum(not found.shows for found in self.findings),
        }

    def rows(self) -> Iterator[list[str]]:
        for found in self.findings:
            shows = re.sub(r"/\S*/resilience/work/[^/\s]*", "...", " ".join(found.shows.split()))
            text = shows if len(shows) <= 100 else f"{shows[:97]}..."
            yield [found.fault, text or "(nothing)", str(found.lost), f"{found.right_s:.1f}"]


@dataclass(frozen=True)
class Ran:
    """A program that has ended."""

    code: int
    output: str
    errors: str
    seconds: float

    @property
    def error(self) -> str:
        """The line `error: ...` that ended it. Fails the test if there is none, or a traceback."""
        assert "Traceback" not in self.errors, self.errors
        assert self.code == 1, (self.code, self.errors)
        text = self.errors.replace("\x1b[A", "\n")  # how a progress bar leaves its place
        lines = [line for line in text.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.errors
        return lines[0]


def program(
    *words: str | Path,
    able: bool = True,
    limits: Mapping[int, int] | None = None,
    environment: Mapping[str, str] | None = None,
    prefix: tuple[str, ...] = (),
) -> Ran:
    """Run `python -m WORDS` to its end.

    Args:
        able: False: also root obeys permissions.
        limits: of `resource`, by number.
        prefix: a command that runs it.
    """

    def limit() -> None:
        for kind, most in (limits or {}).items():
            resource.setrlimit(kind, (most, most))

    unable = () if able else setpriv()
    command = [*prefix, *unable, sys.executable, "-m", *map(str, words)]
    start = time.monotonic()
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=PROGRAM_TIMEOUT_S,
        check=False,
        preexec_fn=limit if limits else None,  # between tests, no threads
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr, time.monotonic() - start)


def setpriv() -> tuple[str, ...]:
    """The command that makes a server of root's obey permissions. It may run the stub of the wheel,
    from which a server that ran as root has taken that right."""
    if os.getuid():
        return ()
    for stub in binaries.wheel_package().glob(f"tritonserver/*/*/{binaries.STUB}"):  # type: ignore[union-attr]
        stub.chmod(0o755)
    return ("setpriv", *UNABLE)


@contextmanager
def small_disk(folder: Path, size: int, options: str = "") -> Iterator[Path]:
    """A file system of so many bytes at a folder, in memory. Skips the test where that takes rights
    that this user lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={max(4096, size)}{options}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder mounted over itself, read-only."""
    _mount("--bind", str(folder), str(folder))
    try:
        _mount("-o", "remount,bind,ro", str(folder))
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def own_mounts(commands: str) -> tuple[str, ...]:
    """A prefix that runs a program after shell commands in a space of mounts of its own. Skips the
    test where that takes rights that this user lacks."""
    prefix = ("unshare", "-m", "sh", "-ec", f'{commands}; exec "$@"', "sh")
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"this user cannot mount: {tried.stderr.strip()}")
    return prefix


def _mount(*words: str) -> None:
    mounted = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this user cannot mount: {mounted.stderr.strip()}")


def fill(folder: Path, left: int = 0) -> Path:
    """Fill the file system of a folder up to so many bytes -> the file that takes the room."""
    room = os.statvfs(folder)
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        wanted = max(0, room.f_bavail * room.f_frsize - left)
        while wanted > 0:
            try:
                wanted -= file.write(b"x" * min(wanted, 1 << 20))
            except OSError:
                break
    return path


def wait_until(condition: Callable[[], Any], what: str = "it did not happen") -> Any:
    """What the condition returns, once that is true -> fails the test where that takes long."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(POLL_S)
    return found


def events(log: Path, since: int = 0) -> list[dict[str, Any]]:
    """What the launcher has reported into its log of stderr, from the n-th event on."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line[:1] == "{"]
    return [json.loads(line) for line in lines][since:]


def metric(url: str, name: str, **labels: str) -> float | None:
    """The largest value of a metric at a /metrics address, over what the labels leave open."""
    with urllib.request.urlopen(url, timeout=5) as page:
        text = page.read().decode()
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    lines = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
    values = [float(line.rpartition(" ")[2]) for line in lines if all(w in line for w in wanted)]
    return max(values, default=None)


def health(url: str, metrics_url: str) -> str:
    """The line of the health check."""
    asked = ("--url", url, "--metrics-url", metrics_url)
    return program("cascade.server.health", *asked).output.strip()
