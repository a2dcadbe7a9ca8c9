"""A stranger's path: docs/your-models.md, each block as it stands there, ends with the served answer
equal to that of the models' own code."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.docs import PYTHON, TEXTS, URL, background, blocks, free_port, serve, shell

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
