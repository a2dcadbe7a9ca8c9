"""`python tests/export/make_old_release.py`: makes the releases in tests/export/old_release.

Checks out the commit that wrote such releases into a temporary worktree, and lets its own export
write two tiny untrained cascades, one in each topology. The result is committed, so the tests need
neither that commit nor the versions of its dependencies.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
RELEASES = Path(__file__).with_name("old_release")
COMMIT = "10713df"  # the last with `cascade.serving`, and with a parameter per setting
EXPORT = """
import sys
from pathlib import Path
from cascade.spec import Serving
from tests.cascades import BAGS, Plan, export_cascade

models = {"retrieve": ("two_tower", "tiny"), "prerank": ("dlrm", "tiny"), "rank": ("dlrm", "tiny")}
for topology in ("ensemble", "fused"):
    folder = Path(sys.argv[1]) / topology
    folder.mkdir()
    serving = Serving(max_batch_size=8, topology=topology)
    export_cascade(Plan(BAGS, items=60, users=16, models=models, serving=serving), folder)
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        source, made = Path(temporary) / "source", Path(temporary) / "made"
        made.mkdir()
        git = ("git", "-C", str(ROOT), "worktree")
        subprocess.run([*git, "add", "--detach", str(source), COMMIT], check=True)
        try:
            environment = {**os.environ, "PYTHONPATH": str(source)}
            command = [sys.executable, "-c", EXPORT, str(made)]
            subprocess.run(command, cwd=source, env=environment, check=True)
        finally:
            subprocess.run([*git, "remove", "--force", str(source)], check=True)
        shutil.rmtree(RELEASES, ignore_errors=True)
        for folder in made.iterdir():
            shutil.copytree(folder / "repository", RELEASES / folder.name)


if __name__ == "__main__":
    main()
