"""The example of docs/data.md runs, each block as it stands there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.docs import PYTHON, TEXTS, blocks, shell

SECTION = "## Your own tables\n"


def test_the_example_runs_block_by_block(tmp_path: Path) -> None:
    section = TEXTS["data.md"].partition(SECTION)[2].partition("\n## ")[0]
    for kind, content in blocks(section):
        language, _, name = kind.partition(" ")
        if name:
            (tmp_path / name).write_text(content)
        elif language == "bash":
            shell(content.replace(PYTHON, sys.executable), tmp_path)
        else:
            shell(f"{sys.executable} - <<'PYTHON'\n{content}\nPYTHON", tmp_path)
    assert json.loads((tmp_path / "described.json").read_text())["warnings"] == []
    found = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert None not in found.values()
