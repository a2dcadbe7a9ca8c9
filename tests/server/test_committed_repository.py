"""The committed model_repository/ is served as it is once weights have been exported into it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cascade.client import Recommender
from cascade.server.launcher import Server
from export import __main__ as export_command
from tests.cascades import Cascade

ROOT = Path(__file__).parents[2]


def committed(repository: Path) -> dict[str, str]:
    patterns = ("*/config.pbtxt", "*/1/model.py")
    paths = (path for pattern in patterns for path in repository.glob(pattern))
    return {str(path.relative_to(repository)): path.read_text() for path in paths}


def test_an_export_completes_it(
    criteo: Cascade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_committed = shutil.ignore_patterns("*.bin", "*.onnx", "*.pt", "*.faiss", "*.json", "*.txt")
    repository = tmp_path / "model_repository"
    shutil.copytree(ROOT / "model_repository", repository, ignore=only_committed)
    before = committed(repository)
    assert len(before) == 8
    folders = ("--checkpoints", criteo.checkpoints, "--repository", repository)
    # What an export measures is its machine's own, and would show in config.pbtxt.
    plain = ("--untuned", "--instances", "1", "--batch-users", "0")
    monkeypatch.chdir(ROOT)
    export_command.main([*map(str, folders), *plain])
    assert committed(repository) == before  # so git sees no change
    with Server(repository) as server, Recommender(server.url, deadline_s=30) as recommender:
        assert len(recommender.recommend(criteo.users[0]).item_ids) == 10


def test_a_missing_checkpoint_is_one_line(criteo: Cascade, tmp_path: Path) -> None:
    checkpoints = shutil.copytree(criteo.checkpoints, tmp_path / "checkpoints")
    shutil.rmtree(checkpoints / "rank")
    folders = ("--checkpoints", checkpoints, "--repository", tmp_path / "repository")
    command = [sys.executable, "-m", "export", *map(str, folders)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 1
    assert "holds no finished model" in found.stderr.splitlines()[-1]
    assert "Traceback" not in found.stderr
