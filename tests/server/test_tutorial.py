"""The tutorial runs, each block as it stands in docs/tutorial.md."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.docs import PYTHON, TEXTS, URL, background, blocks, free_port, serve, shell


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
