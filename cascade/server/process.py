"""The process of tritonserver: the environment that it and its stubs run in, how it is tied to its
launcher, how it is ended.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import cascade
from cascade.server import binaries, cleanup, security
from cascade.triton import admission

PACKAGE = Path(cascade.__path__[0])  # what the models of the repository import
STOP_MARGIN_S = 5.0  # what tritonserver may take beyond its own exit timeout

# Runs in place of tritonserver for an instant: asks the kernel for SIGTERM when the launcher dies,
# then becomes tritonserver under the same process id. A `preexec_fn` would do the same between fork
# and exec, which is unsafe beside gRPC's threads.
_TIED = """
import ctypes, os, sys
if int(sys.argv[2]):
    ctypes.CDLL(None).prctl(1, int(sys.argv[2]))  # 1 is PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the launcher has ended")
os.execv(sys.argv[3], sys.argv[3:])
"""


def environment(
    binary: binaries.ServerBinary, name: str, threads: int, metrics_url: str
) -> dict[str, str]:
    """What the server called `name` and its stubs find in their environment.

    Args:
        threads: bound on the compute threads of each process, for the numerical libraries and, as
            CASCADE_THREADS, for the stages.
        metrics_url: where the stages see how many requests wait for them.
    """
    variables = binaries.loader_environment(binary.libraries)
    variables[cleanup.VARIABLE] = name
    # The stub's Python looks for a virtual environment beside the first python3 on PATH. Up to 3.10
    # it reads PYTHONPATH too; later ones embed it in isolation.
    variables["PATH"] = os.pathsep.join(
        (str(Path(sys.executable).parent), variables.get("PATH", os.defpath))
    )
    inherited = filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))
    packages = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    folders = (str(PACKAGE.parent), *(os.path.abspath(folder) for folder in inherited), *packages)
    variables["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(folders))
    for library in ("OMP", "OPENBLAS", "MKL"):
        variables[f"{library}_NUM_THREADS"] = str(threads)
    variables["CASCADE_THREADS"] = str(threads)
    variables[admission.VARIABLE] = metrics_url
    variables.pop(security.KEY_VARIABLE, None)  # not for the code of models
    return variables


def tied(command: Sequence[str]) -> list[str]:
    """The command that becomes `command` and is told to stop when this process dies.

    The kernel tells it when the *thread* that started it ends: only the main thread is sure to live
    as long as this process. Started elsewhere, it is left to `reap`.
    """
    in_main = threading.current_thread() is threading.main_thread()
    launcher = [str(os.getpid()), str(int(signal.SIGTERM) if in_main else 0)]
    return [sys.executable, "-I", "-S", "-c", _TIED, *launcher, *command]


def end(process: subprocess.Popen[bytes], exit_timeout_s: float) -> int:
    """Stop the server in order, or by force when that takes too long. Returns its exit code."""
    process.terminate()
    try:
        return process.wait(exit_timeout_s + STOP_MARGIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def wipe(pid: int, secret: str) -> None:
    """Overwrite a secret in the command line of a child, which `ps` shows to everybody.

    The kernel lets a parent do so unless it was told to be stricter; then the secret stays.
    """
    with suppress(PermissionError, FileNotFoundError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of man 5 proc
        with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            words = memory.read(end - start)
            for found in re.finditer(re.escape(secret.encode()), words):
                memory.seek(start + found.start())
                memory.write(b"*" * len(secret))
