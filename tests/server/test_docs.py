"""README and docs are true: commands know their flags, links lead somewhere."""

from __future__ import annotations

import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from unittest import mock

import pytest

from cascade.server.launcher import Server
from tests.docs import PAGES, PYTHON, ROOT, TEXTS, URL, blocks


def commands() -> Iterator[tuple[str, ...]]:
    """Every `python -m` line of every page, without its interpreter."""
    for text in TEXTS.values():
        content = "\n".join(content for _, content in blocks(text, "bash[ a-z]*"))
        for line in content.replace("\\\n", " ").splitlines():
            for part in line.split(" | "):
                words = shlex.split(part, comments=True)
                if words[:2] == [PYTHON, "-m"]:
                    yield tuple(words[2:])


@pytest.mark.parametrize("words", sorted(set(commands())), ids=" ".join)
def test_a_command_knows_its_flags(words: tuple[str, ...]) -> None:
    module, *arguments = words
    has_commands = module in ("export", "cascade.data")
    subcommand = arguments[:1] if has_commands and arguments[0].isalpha() else []
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
