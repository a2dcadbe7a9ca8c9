"""A stranger's path, docs/your-models.md block by block, ends with the answer of the models' own
code; so does a team's cascade in a form that no page shows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.docs import (
    ENVIRONMENT,
    PYTHON,
    ROOT,
    TEXTS,
    URL,
    background,
    blocks,
    free_port,
    serve,
    shell,
)

SECTION = "## From plain PyTorch to an answer\n"


def test_a_strangers_path_runs_block_by_block(tmp_path: Path) -> None:
    section = TEXTS["your-models.md"].partition(SECTION)[2].partition("\n## ")[0]
    url = f"127.0.0.1:{free_port()}"
    with background() as servers:
        for kind, content in blocks(section):
            block = content.replace(PYTHON, sys.executable).replace(URL, url)
            language, _, name = kind.partition(" ")
            if kind == "bash serve":
                port = url.rpartition(":")[2]
                block = f"{block.strip()} --grpc-port {port} --http-port 0 --metrics-port 0"
                servers.append(serve(block, tmp_path))
            elif name:
                (tmp_path / name).write_text(content)
            elif language == "bash":
                shell(block, tmp_path)
            else:
                code = block.replace("deadline_s=5", "deadline_s=30")
                shell(f"{sys.executable} - <<'PYTHON'\n{code}\nPYTHON", tmp_path)


def test_a_team_gets_its_own_answers(tmp_path: Path) -> None:
    """The short form of `make own`: one form of all."""
    options = ["--out", str(tmp_path), "--forms", "vectors", "--users", "40"]
    words = [sys.executable, "-m", "perf.own", *options]
    ended = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert ended.returncode == 0, f"{ended.stdout[-3000:]}{ended.stderr[-3000:]}"
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["same_ten"] == 1.0
    assert found["score_max_abs"] <= 1e-5
    assert found["wrong_vocabulary"]["code"] == 1
    assert "golden.file" in found["wrong_vocabulary"]["message"]
