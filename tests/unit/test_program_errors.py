"""A user's mistake ends every program with one line, `error: ...`, and exit code 1."""

from __future__ import annotations

import errno
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from cascade import errors
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


def test_a_full_disk_is_one_line(
    run: Callable[..., str], wrong: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a write fails whose error names no file."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys.modules["cascade.data.prepare"], "write", full)
    out = wrong["missing"]
    error = run("cascade.data", SYNTHETIC, "--out", str(out))
    assert error == f"error: {out}: No space left on device"
    assert not [*out.parent.glob("missing*")]


def test_a_repository_that_is_not_one_is_told_by_the_evaluation(
    run: Callable[..., str], wrong: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "load", lambda folder, schema: torch.nn.Identity())
    error = run(*(word.format(**wrong) for word in f"{EVALUATION} --out {{empty}}".split()))
    assert error.startswith("error: ")
    assert str(wrong["empty"]) in error


def write_to_full_disk() -> None:
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


def index_to_full_disk() -> None:
    index = faiss.IndexFlatIP(64)
    index.add(np.zeros((20_000, 64), np.float32))
    faiss.write_index(index, "/dev/full")  # a RuntimeError


def copy_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").symlink_to("absent")
    shutil.copytree(tmp_path / "source", tmp_path / "target")


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda folder: write_to_full_disk(), "error: No space left on device"),
        (copy_to_nowhere, "error: [Errno 2] No such file or directory: '"),
        (lambda folder: (folder / "absent").read_text(), "absent: No such file or directory"),
        (lambda folder: np.zeros(1 << 20).tofile("/dev/full"), "error: 1048576 requested and "),
        (lambda folder: index_to_full_disk(), "No space left on device"),
    ],
)
def test_what_a_disk_refuses_is_one_line(
    work: Callable[[Path], Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        errors.run(lambda: work(tmp_path))
    assert str(ended.value).startswith("error: ")
    assert said in str(ended.value)
    assert "\n" not in str(ended.value)


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        errors.run(lambda: 1 // 0)
