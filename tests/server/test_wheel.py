"""The wheel holds `cascade` alone, and asks a server with numpy and tritonclient beside it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascade.client import Recommender
from cascade.models.registry import shipped
from cascade.server.launcher import Server
from tests.cascades import Cascade

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "onnx", "onnxruntime", "faiss", "pyarrow", "pandas", "tqdm", "pytriton")
HEAVY += ("lmdb", "redis")

ASK = """
import importlib.util
import json
import sys

import cascade
from cascade.client import Recommender

url, user, heavy = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
with Recommender(url, deadline_s=30) as recommender:
    answer = recommender.recommend(user)
print(json.dumps({
    "cascade": cascade.__file__,
    "present": [name for name in heavy if importlib.util.find_spec(name)],
    "item_ids": answer.item_ids.tolist(),
    "scores": answer.scores.tolist(),
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves build/ beside the sources and packs what lies in it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("cascade", "clients", "export", "perf"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip(Path(sys.executable), "wheel", "--no-deps", "--wheel-dir", str(folder), str(source))
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The Python of an environment that holds the wheel and what it needs."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    found = folder / "bin" / "python"
    pip(found, "install", "--no-compile", "-c", str(ROOT / "constraints.txt"), str(wheel))
    yield found
    shutil.rmtree(folder)


def pip(python: Path, *arguments: str) -> None:
    command = [python, "-m", "pip", "--quiet", *arguments]
    subprocess.run(command, env=outside(), check=True)


def run(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run that Python in a folder that is not the checkout."""
    command = [python, *arguments]
    return subprocess.run(command, cwd=folder, env=outside(), capture_output=True, text=True)


def outside() -> dict[str, str]:
    """The environment without PYTHONPATH: pip takes what lies there for installed."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_the_wheel_holds_cascade_alone(wheel: Path) -> None:
    files = zipfile.ZipFile(wheel).namelist()
    names = {name.split("/")[0] for name in files}
    assert {name for name in names if not name.endswith(".dist-info")} == {"cascade"}
    assert {f"cascade/recipes/{name}.toml" for name in shipped()} <= {*files}


def test_the_installed_client_asks_a_server(python: Path, criteo: Cascade, tmp_path: Path) -> None:
    user: dict[str, Any] = criteo.users[0]
    with Server(criteo.repository) as server:
        done = run(python, tmp_path, "-c", ASK, server.url, json.dumps(user), json.dumps(HEAVY))
        assert done.returncode == 0, done.stderr
        with Recommender(server.url, deadline_s=30) as recommender:
            expected = recommender.recommend(user)
    found = json.loads(done.stdout)
    assert Path(found["cascade"]).is_relative_to(python.parents[1])
    assert found["present"] == []
    assert found["item_ids"] == expected.item_ids.tolist()
    np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-5)


def test_the_programs_run_over_it_and_name_what_they_lack(python: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "clients", tmp_path / "clients")
    help_text = run(python, tmp_path, "-m", "clients.recommend", "--help").stdout
    assert "--random" in help_text
    batch = run(python, tmp_path, "-m", "clients.batch", "in.parquet", "out.parquet")
    events = run(python, tmp_path, "-m", "clients.events", "--store", "lmdb:users")
    for done, package, extra in ((batch, "pyarrow", "batch"), (events, "lmdb", "store")):
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert f"needs {package}" in done.stderr
        assert f"pip install 'cascade[{extra}]'" in done.stderr
        assert done.stderr.count("\n") == 1
