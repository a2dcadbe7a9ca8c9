"""README and docs as tests see them: their pages, their fenced blocks, and what runs a block."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text() for page in PAGES}
PYTHON = ".venv/bin/python"
URL = "127.0.0.1:8001"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
START_S, BLOCK_S = 120, 300


def blocks(text: str, kinds: str = r"[\w. ]+") -> list[tuple[str, str]]:
    """The fenced blocks of a page in order: (kind, content)."""
    return re.findall(rf"(?m)^```({kinds})\n(.*?)^```", text, re.DOTALL)


def shell(script: str, folder: Path) -> None:
    """Run a block as a user would, each line to its end."""
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{folder}:{ROOT}"}
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=BLOCK_S,
    )
    assert ran.returncode == 0, f"{script}\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"


def serve(command: str, folder: Path) -> subprocess.Popen[str]:
    """Start the launcher, and wait for the line that says that the server answers."""
    process = subprocess.Popen(
        shlex.split(command), cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "127.0.0.1" in line, line
    return process


@contextmanager
def background() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are stopped in order when the block is left."""
    started: list[subprocess.Popen[str]] = []
    try:
        yield started
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=START_S)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
