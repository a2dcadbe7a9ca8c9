"""A model of one's own goes the way of docs/add-a-model.md, each block as it stands there."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.docs import PYTHON, TEXTS, blocks, shell


def test_adding_a_model_runs_block_by_block(tmp_path: Path) -> None:
    for kind, content in blocks(TEXTS["add-a-model.md"]):
        if kind == "bash":
            shell(content.replace(PYTHON, sys.executable), tmp_path)
        elif kind.startswith("python "):  # a file, by name
            (tmp_path / kind.removeprefix("python ")).write_text(content)
        else:
            shell(f"{sys.executable} - <<'PYTHON'\n{content}\nPYTHON", tmp_path)
