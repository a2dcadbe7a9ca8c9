"""README and docs are true: commands know their flags, links lead somewhere, blocks run."""

from __future__ import annotations

import io
import os
import re
import runpy
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from unittest import mock

import pytest

from cascade.server.launcher import Server

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text() for page in PAGES}
PYTHON = ".venv/bin/python"
URL = "127.0.0.1:8001"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
START_S, BLOCK_S = 120, 300


def blocks(text: str, kinds: str = r"[\w. ]+") -> list[tuple[str, str]]:
    """The fenced blocks of a page in order: (kind, content)."""
    return re.findall(rf"(?m)^```({kinds})\n(.*?)^```", text, re.DOTALL)


def commands() -> Iterator[tuple[str, ...]]:
    """Every `python -m` line of every page, without its interpreter."""
    for text in TEXTS.values():
        content = "\n".join(content for _, content in blocks(text, "bash[ a-z]*"))
        for line in content.replace("\\\n", " ").splitlines():
            for part in line.split(" | "):
                words = shlex.split(part, comments=True)
                if words and words[0] == PYTHON:
                    yield tuple(words[2:])


@pytest.mark.parametrize("words", sorted(set(commands())), ids=" ".join)
def test_a_command_knows_its_flags(words: tuple[str, ...]) -> None:
    module, *arguments = words
    subcommand = arguments[:1] if module == "export" and arguments[0].isalpha() else []
    shown = help_of(module, *subcommand)
    for flag in (word for word in arguments if word.startswith("--")):
        assert flag in shown, f"python -m {module} {' '.join(subcommand)} does not know {flag}"


@cache
def help_of(module: str, *subcommand: str) -> str:
    """What `python -m MODULE [SUBCOMMAND] --help` prints, run in this process: a new one would
    spend seconds on its imports."""
    printed, words = io.StringIO(), [module, *subcommand, "--help"]
    with (
        mock.patch.object(sys, "argv", words),
        redirect_stdout(printed),
        pytest.raises(SystemExit) as ended,
    ):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert not ended.value.code
    return printed.getvalue()


def test_there_are_commands_to_check() -> None:
    assert len(set(commands())) >= 20


def test_make_knows_the_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = {t for text in TEXTS.values() for t in re.findall(r"(?m)(?:^|`)make (\w+)", text)}
    assert named >= {"demo", "test"}
    for target in named:
        assert re.search(rf"(?m)^{target}:", makefile), target


def test_links_and_paths_lead_somewhere() -> None:
    for page in PAGES:
        text = re.sub(r"(?ms)^```.*?^```", "", page.read_text())
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert link.startswith("https://") or (page.parent / link).exists(), (page.name, link)
        for path in re.findall(r"`((?:cascade|export|clients|perf|tests)/[\w/.]+)`", text):
            assert (ROOT / path).exists(), (page.name, path)


def test_the_front_door_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 150


@pytest.mark.parametrize("page", ["README.md", "client.md"])
def test_asking_in_python_runs(
    page: str, criteo_server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    ((_, code),) = blocks(TEXTS[page], "python")
    # A shared machine may be slower than the deadline that the page suggests.
    exec(code.replace(URL, criteo_server.url).replace("deadline_s=0.1", "deadline_s=30"), {})
    assert len(re.findall(r"\d{10}", capsys.readouterr().out)) == 10  # ten item ids


def test_the_tutorial_runs_block_by_block(tmp_path: Path) -> None:
    url = f"127.0.0.1:{free_port()}"
    with background() as servers:
        for kind, content in blocks(TEXTS["tutorial.md"]):
            block = content.replace(PYTHON, sys.executable).replace(URL, url)
            if kind == "bash serve":
                port = url.rpartition(":")[2]
                block = f"{block.strip()} --grpc-port {port} --http-port 0 --metrics-port 0"
                servers.append(serve(block, tmp_path))
            elif kind == "bash":
                shell(block, tmp_path)
            else:
                assert kind == "python"
                code = block.replace("deadline_s=5", "deadline_s=30")
                shell(f"{sys.executable} - <<'PYTHON'\n{code}\nPYTHON", tmp_path)


def test_adding_a_model_runs_block_by_block(tmp_path: Path) -> None:
    for kind, content in blocks(TEXTS["add-a-model.md"]):
        if kind == "bash":
            shell(content.replace(PYTHON, sys.executable), tmp_path)
        elif kind.startswith("python "):  # a file, by name
            (tmp_path / kind.removeprefix("python ")).write_text(content)
        else:
            shell(f"{sys.executable} - <<'PYTHON'\n{content}\nPYTHON", tmp_path)


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
