"""Steps that are commands of their own, whose output goes to a log and whose seconds to a line."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from cascade.errors import CascadeError
from perf.harness.commands import say, tail


class StepError(CascadeError):
    """A step that ended with an error; its log says more."""


@dataclass(frozen=True)
class Steps:
    """The steps of one run.

    Attributes:
        name: of the run, at the head of its lines of progress.
        log: the file that the output of all steps is appended to.
        threads: of each step.
    """

    name: str
    log: Path
    threads: int

    def run(self, module: str, *arguments: object) -> None:
        """Run `python -m module` and say how long it took. Raises StepError: it failed."""
        words = [sys.executable, "-m", module, *map(str, arguments)]
        started = time.monotonic()
        with self.log.open("a") as file:
            print(f"==> {' '.join(words)}", file=file, flush=True)
            environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
            code = subprocess.run(
                words, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False
            ).returncode
        took = f"{time.monotonic() - started:.0f} s"
        if code:
            say(f"{self.name}: {module} failed after {took}")
            raise StepError(
                f"{self.name}: python -m {module} failed with code {code}: see {self.log}, which "
                f"ends with {tail(self.log, 1)}"
            )
        say(f"{self.name}: {module} {took}")
