"""Finds perf_analyzer: it comes with the SDK container or with `tritonclient==2.51.0`, whose binary
borrows two libraries of the server's wheel.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from cascade.server.binaries import LIBRARIES, WHEEL, BinaryError, loader_environment, wheel_package
from cascade.server.cleanup import run_folder

CHECK_TIMEOUT_S = 60.0
NEEDED = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}


def perf_analyzer() -> tuple[Path, dict[str, str]]:
    """The load generator and the environment to run it in. Raises BinaryError where none starts."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which("perf_analyzer", path=beside) or shutil.which("perf_analyzer")
    if found is None:
        raise BinaryError(
            "no perf_analyzer on PATH or beside this Python. Install the client that carries it "
            "(pip install 'tritonclient[grpc]==2.51.0'; later ones do not) or run inside the "
            "Triton SDK container."
        )
    environment = loader_environment(_libraries())
    command = [found, "--version"]
    ran = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=CHECK_TIMEOUT_S
    )
    if ran.returncode != 0:
        reason = (ran.stderr or ran.stdout).strip() or f"it ended with {ran.returncode}"
        raise BinaryError(
            f"{found} does not start: {reason}. It needs glibc 2.34 and the libraries of {WHEEL} "
            f"(pip install '{WHEEL}==0.7.0'), or the Triton SDK container."
        )
    return Path(found), environment


def _libraries() -> tuple[Path, ...]:
    """A folder with the wheel's libraries under the names that perf_analyzer asks for."""
    package = wheel_package()
    if package is None:
        return ()  # the SDK container has them
    folder = run_folder() / f"perf_analyzer_{sha256(str(package).encode()).hexdigest()[:16]}"
    folder.mkdir(exist_ok=True)
    for name, pattern in NEEDED.items():
        for library in (package.parent / LIBRARIES).glob(pattern):
            with suppress(FileExistsError):
                (folder / name).symlink_to(library)
    return (folder,)
