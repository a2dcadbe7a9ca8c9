"""Programs of this repository in forks of a process that has imported them: a run takes
milliseconds, so that many can be tried, or killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.resilience.faults import ROOT, UNABLE, Ran

PARENT = """
import importlib, json, os, runpy, sys, traceback
for name in sys.argv[1:]:
    importlib.import_module(name)
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, name in enumerate(("output", "errors"), 1):
            os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv, code = asked["words"], 0
        try:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code or 0
            if isinstance(code, str):
                print(code, file=sys.stderr)
                code = 1
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@dataclass(frozen=True)
class Forks:
    """Runs `python -m WORDS` of modules that the parent has imported."""

    parent: subprocess.Popen[str]
    folder: Path

    def __call__(self, *words: object, kill_after_s: float | None = None) -> Ran:
        """Run a program to its end, or to its death by SIGKILL."""
        files = {name: str(self.folder / name) for name in ("output", "errors")}
        start = time.monotonic()
        self._tell({"words": [*map(str, words)], **files})
        child = int(self._line())
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(int(self._line()))
        output, errors = (Path(file).read_text(errors="replace") for file in files.values())
        return Ran(code, output, errors, time.monotonic() - start)

    def _tell(self, asked: dict[str, Any]) -> None:
        assert self.parent.stdin is not None
        self.parent.stdin.write(json.dumps(asked) + "\n")
        self.parent.stdin.flush()

    def _line(self) -> str:
        assert self.parent.stdout is not None
        return self.parent.stdout.readline()


@contextmanager
def forks(folder: Path, *modules: str) -> Iterator[Forks]:
    """A parent of programs that has imported these modules, and obeys permissions, as root, too.

    Args:
        folder: for what they print.
    """
    pipe = subprocess.PIPE
    unable = () if os.getuid() else ("setpriv", *UNABLE)
    command = [*unable, sys.executable, "-c", PARENT, *modules]
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as parent:
        yield Forks(parent, folder)
        assert parent.stdin is not None
        parent.stdin.close()
