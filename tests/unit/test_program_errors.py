"""A user's mistake ends every program with one line, `error: ...`, and exit code 1."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade.training import checkpoint

SYNTHETIC = "--data=synthetic:rows=200,items=20"


@pytest.fixture
def wrong(tmp_path: Path, synthetic: Any) -> dict[str, Path]:
    """What the command lines name: {missing}, {empty} (a folder), {file}, {unwritable} (a folder
    that cannot be made, because a file is in its way) and {data}, the prepared data."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("neither a key nor a folder")
    return {
        "missing": tmp_path / "missing",
        "empty": tmp_path / "empty",
        "file": tmp_path / "file",
        "unwritable": tmp_path / "file" / "below",
        "data": synthetic.root,
    }


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `python -m MODULE ARGUMENTS...` in this process -> its error."""

    def ran(module: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        assert isinstance(ended.value.code, str), ended.value.code  # printed, with exit code 1
        assert capsys.readouterr().err == ""
        return ended.value.code

    return ran


EVALUATION = "cascade.evaluation --data {data} --checkpoints {empty} --repository {empty}"


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("cascade.server --repository {missing}", "{missing}"),
        ("cascade.server --repository {file}", "{file}"),
        ("cascade.server --repository {empty}", "{empty}"),
        ("cascade.server --repository {empty} --control-key-file {missing}", "{missing}"),
        ("cascade.server --repository {empty} --control-key-file {file}", "{file}"),
        ("cascade.server --repository {empty} --tls-cert {missing} --tls-key {file}", "{missing}"),
        ("cascade.server --repository {empty} --tls-cert {file}", "--tls-key"),
        ("cascade.serving --repository {missing}", "{missing}"),
        ("cascade.server.health --tls-ca {missing}", "{missing}"),
        ("cascade.serving.health --tls-ca {missing}", "{missing}"),
        ("cascade.data --data criteo:{missing} --out {empty}", "{missing}"),
        ("cascade.data --data nonsense --out {empty}", "nonsense"),
        (f"cascade.data {SYNTHETIC} --out {{unwritable}}", "{file}"),
        ("cascade.training --data criteo:{missing} --out {empty}", "{missing}"),
        (f"cascade.training {SYNTHETIC} --prepared {{unwritable}} --out {{empty}}", "{file}"),
        (f"cascade.training {SYNTHETIC} --out {{unwritable}}", "{file}"),
        ("cascade.evaluation --data {missing} --checkpoints . --repository . --out .", "{missing}"),
        (f"{EVALUATION} --out {{empty}}", "rank"),
    ],
)
def test_a_mistake_is_one_line(
    run: Callable[..., str], wrong: dict[str, Path], command: str, named: str
) -> None:
    error = run(*(word.format(**wrong) for word in command.split()))
    assert error.startswith("error: ")
    assert "\n" not in error
    assert named.format(**wrong) in error


def test_a_repository_that_is_not_one_is_told_by_the_evaluation(
    run: Callable[..., str], wrong: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "load", lambda folder, schema: torch.nn.Identity())
    error = run(*(word.format(**wrong) for word in f"{EVALUATION} --out {{empty}}".split()))
    assert error.startswith("error: ")
    assert str(wrong["empty"]) in error
