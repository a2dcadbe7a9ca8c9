"""Every command: a mistake of the user is one line and exit code 1, and the help fits a screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cascade import pbtxt
from cascade.config import Product, Serving
from cascade.errors import run
from cascade.spec import Sizes
from export import __main__ as front
from tests.cascades import BAGS, Cascade

SCREEN = 40


@pytest.fixture
def places(seven: Cascade, tmp_path: Path) -> dict[str, str]:
    """What the arguments below name in braces."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("neither Parquet nor ONNX nor a folder")
    stored = Product(store=f"lmdb:{tmp_path / 'users'}")
    pbtxt.write(tmp_path / "stored", BAGS, Sizes(), Serving(), version=1, product=stored)
    names = {name: str(tmp_path / name) for name in ("missing", "empty", "file", "new", "stored")}
    checkpoints, exported = str(seven.checkpoints), str(seven.repository)
    return {**names, "checkpoints": checkpoints, "exported": exported}


CASES = {
    "build": [
        ("--checkpoints {missing} --repository {new}", "missing is not a folder of checkpoints"),
        ("--checkpoints {empty} --repository {new}", "schema.json, catalogue.parquet, users.parq"),
        ("--checkpoints {file} --repository {new}", "file is not a folder of checkpoints"),
        ("--checkpoints {exported} --repository {new}", "is not a folder of checkpoints"),
        ("--checkpoints {checkpoints} --repository {file}", "Not a directory"),
        ("--checkpoints {checkpoints} --repository {new} --preranker nil", "nil holds no finished"),
        ("--checkpoints {checkpoints} --repository {new} --store x", "store 'x': expected lmdb:"),
        ("--checkpoints {checkpoints} --repository {new} --diversity 1", "need a --pool"),
        ("--checkpoints {checkpoints} --repository {new} --survivors 9 --candidates 8", "shrink"),
        ("--checkpoints {checkpoints} --repository {new} --inputs {file}", "go together"),
        (
            "--checkpoints {checkpoints} --repository {new} --ranker-onnx {file} --inputs {file}",
            "file is no JSON file",
        ),
        (
            "--checkpoints {checkpoints} --repository {new} --retrieve-from {empty}",
            "empty holds no exported cascade",
        ),
        (
            "--checkpoints {checkpoints} --repository {new} --filter-features nil",
            "no item feature is called nil",
        ),
        ("--checkpoints {checkpoints} --repository {new} --keep 0.9", "give --sizes auto with it"),
        ("--checkpoints {checkpoints} --repository {new} --sizes auto --keep 2", "--keep 2: expec"),
    ],
    "plan": [
        ("--checkpoints {missing} --out {new}", "missing is not a folder of checkpoints"),
        ("--checkpoints {checkpoints} --out {file}", "file"),
        ("--checkpoints {checkpoints} --out {new} --keep 0", "--keep 0: expected a share"),
        ("--checkpoints {checkpoints} --out {new} --users 1", "--users 1: expected 2 or more"),
        ("--out {new}", "--checkpoints DIR or --cascade FILE is needed"),
        (
            "--checkpoints {checkpoints} --out {new} --try-survivors 9",
            "--try-survivors 9: expected 10 or more",
        ),
    ],
    "publish": [
        ("--repository {new} --checkpoints {missing}", "missing is not a folder of checkpoints"),
        ("--repository {new} --release {missing}", "missing holds no exported cascade"),
        ("--repository {new} --release {empty}", "empty holds no exported cascade"),
        ("--repository {file} --release {exported}", "file"),
        ("--repository {new} --release {exported} --share 0.5", "cannot give release 1"),
        ("--repository {new} --release {exported} --control-key-file {missing}", "No such file"),
    ],
    "rollback": [
        ("--repository {missing}", "missing holds no release"),
        ("--repository {empty}", "empty holds no release"),
        ("--repository {file}", "file holds no release"),
        ("--repository {exported}", "cannot go back to an earlier release"),
    ],
    "releases": [
        ("--repository {missing}", "missing holds no release"),
        ("--repository {empty}", "empty holds no release"),
        ("--repository {file}", "file holds no release"),
    ],
    "split": [
        ("--repository {missing} --number 1", "missing holds no release"),
        ("--repository {empty} --end", "empty holds no release"),
        ("--repository {exported} --end", "no release has a share"),
        ("--repository {exported} --number 1 --share 2", "a share lies between 0 and 1"),
    ],
    "catalogue": [
        ("--repository {exported} --checkpoints {checkpoints}", "nothing to change"),
        ("--repository {empty} --checkpoints {checkpoints} --add {file}", "empty holds no release"),
        ("--repository {exported} --checkpoints {missing} --add {file}", "missing"),
        ("--repository {exported} --checkpoints {checkpoints} --add {missing}", "there is no file"),
        ("--repository {exported} --checkpoints {checkpoints} --add {file}", "is not Parquet"),
        ("--repository {exported} --checkpoints {checkpoints} --remove {file}", "is no item id"),
    ],
    "rewire": [
        ("--repository {missing} --topology fused --out {new}", "missing holds no exported"),
        ("--repository {empty} --topology fused --out {new}", "empty holds no exported cascade"),
        ("--repository {exported} --topology fused --out {file}", "Not a directory"),
        ("--repository {exported} --topology fused --out {exported}", "is the repository to read"),
        ("--repository {exported} --topology fused --out {new} --store x", "store 'x': expected"),
    ],
    "users": [
        ("--repository {missing} --table {file}", "missing holds no exported cascade"),
        ("--repository {empty} --table {file}", "empty holds no exported cascade"),
        ("--repository {stored} --table {missing}", "there is no file"),
        ("--repository {stored} --table {file}", "is not a Parquet file"),
        ("--repository {stored} --table {file} --store x", "is not a Parquet file"),
    ],
    "flat": [
        ("--checkpoints {missing} --onnx {new} --inputs {new}", "missing"),
        ("--checkpoints {empty} --onnx {new} --inputs {new}", "empty"),
        ("--checkpoints {checkpoints} --ranker nil --onnx {new} --inputs {new}", "nil holds no"),
        ("--checkpoints {checkpoints} --onnx {file}/x --inputs {new}", "file"),
    ],
    "nil": [("", "no command 'nil'; known are build, publish, rollback")],
}


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [(command, *case) for command, cases in CASES.items() for case in cases],
)
def test_a_mistake_is_one_line(
    places: dict[str, str], command: str, arguments: str, message: str
) -> None:
    words = [command, *(word.format(**places) for word in arguments.split())]
    with pytest.raises(SystemExit) as stopped:
        run(lambda: front.main(words))
    said: Any = stopped.value.code  # Python prints it and exits with 1
    assert isinstance(said, str)
    assert said.startswith("error: ")
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize("command", front.COMMANDS)
def test_the_help_fits_a_screen(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        front.main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= SCREEN
    assert max(map(len, lines)) <= 110
    assert any("--repository DIR" in line or "--checkpoints DIR" in line for line in lines)


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_alone_it_lists_the_commands(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    front.main(words)
    said = capsys.readouterr().out
    assert all(f"\n  {command} " in said for command in front.COMMANDS)
