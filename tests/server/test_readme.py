"""The README tells the truth: its commands exist with their flags, and its Python runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cascade.errors import CascadeError
from cascade.server.launcher import Server
from perf import report

README = (Path(__file__).parents[2] / "README.md").read_text()
MAKEFILE = (Path(__file__).parents[2] / "Makefile").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    lines = "\n".join(blocks("bash")).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


MODULES = [words[2:] for words in commands() if words[0].endswith("python")]


@pytest.mark.parametrize("words", MODULES, ids=" ".join)
def test_a_command_knows_its_flags(words: list[str]) -> None:
    module, *arguments = words
    shown = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True
    ).stdout
    for flag in (word for word in arguments if word.startswith("--")):
        assert flag in shown, f"python -m {module} does not know {flag}"


def test_there_are_commands_to_check() -> None:
    assert len(MODULES) >= 4


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?m)(?:^|`)make (\w+)", README))))
def test_make_knows_the_target(target: str) -> None:
    assert re.search(rf"(?m)^{target}:", MAKEFILE)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code: str, criteo_server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert "127.0.0.1:8001" in code
    # A shared machine may be slower than the deadline that the README suggests.
    code = code.replace("127.0.0.1:8001", criteo_server.url).replace(
        "deadline_s=0.1", "deadline_s=30"
    )
    exec(code, {})
    assert len(re.findall(r"\d{10}", capsys.readouterr().out)) == 10  # ten item ids


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (Path(__file__).parents[2] / link).exists(), link


def test_blocks_are_replaced() -> None:
    text = "a\n<!-- demo -->\nold\n<!-- /demo -->\nb\n"
    once = report.fill(text, {"demo": lambda: "new"})
    assert once == "a\n<!-- demo -->\nnew\n<!-- /demo -->\nb\n"
    assert report.fill(once, {"demo": lambda: "new"}) == once
    with pytest.raises(CascadeError, match="no block 'tests'"):
        report.fill(text, {"tests": lambda: "new"})
