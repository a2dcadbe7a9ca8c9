"""The process of tritonserver: its environment, its tie to the launcher, its end and its log."""

from __future__ import annotations

import errno
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from tritonclient import grpc

import cascade
from cascade import pbtxt
from cascade.errors import CascadeError
from cascade.server import binaries, cleanup, security, shell
from cascade.spec import FILES_VARIABLE, REPOSITORY_VARIABLE
from cascade.triton import admission

PACKAGE = Path(cascade.__path__[0])  # what the models of the repository import
REQUEST_TIMEOUT_S = 10.0
DRAIN_POLL_S = 0.01
LEAST_FILES = 256
STOP_MARGIN_S = 5.0  # beyond tritonserver's own exit timeout
EXCERPT_LINES = 30
LOG_BYTES = 1 << 20  # of the log's end, for an excerpt
LISTEN_TIMEOUT_S = 1.0
# The signals by which a program ends that finds itself broken; the kernel sends SIGKILL when it
# needs the memory, and the same would come again.
CRASHES = frozenset({signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV})

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
_ARGUMENTS_START, _ARGUMENTS_END = 45, 46  # arg_start and arg_end
_LOG_ENTRY = re.compile(r"^(?P<level>[IWEF])\d{4} \S+ +\d+ \S+\] ?(?P<message>.*)$")
_REASON = re.compile(r"(?m)^failed to load '.{,500}|(?<=what\(\):  ).{,500}")
_SUMMARY = "error: creating server: "  # of the reasons before it
# A server built for GPUs logs these on every machine without one.
_WITHOUT_GPU = re.compile(r"CUDA|CudaDriver|pinned system memory|NVML|DCGM", re.IGNORECASE)


class ServerError(CascadeError):
    """tritonserver did not start or does not answer; `log` is what its log says of it."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(f"{message}:\n{log}" if log else message)
        self.message, self.log = message, log


class CrashError(ServerError):
    """tritonserver ended by one of the signals `CRASHES`, hung while it started, or gave up a
    worker (`cascade.server.starved`)."""


class ServerLog:
    """What a server writes to the end of its log file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._start = file, file.seek(0, os.SEEK_END)

    @classmethod
    def from_here(cls, path: Path) -> ServerLog | None:
        """From the present end of the file on; None for a terminal or a pipe."""
        return cls(path.open("rb")) if path.is_file() else None

    def close(self) -> None:
        self._file.close()

    def excerpt(self, renamed: Mapping[str, str]) -> str:
        """What the log says of problems, with other words for some. It may have been renamed,
        emptied or removed."""
        size = self._file.seek(0, os.SEEK_END)
        start = self._start if self._start <= size else 0
        self._file.seek(max(start, size - LOG_BYTES))
        said = self._file.read(LOG_BYTES).decode(errors="replace")
        for written, known in renamed.items():
            said = said.replace(written, known)
        return log_excerpt(said)


def open_log(path: Path) -> IO[bytes]:
    """Open a server's log to append to it, which waits for nothing. Raises ServerError: it is a
    pipe that nothing reads."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise ServerError(
            f"{path}: nothing reads this pipe, and a log that fills up would stop the server; "
            "start its reader before the server, or name a file"
        ) from error
    os.set_blocking(descriptor, True)  # for the server, as it shares this setting
    return os.fdopen(descriptor, "ab")


def check_repository(repository: Path, models: Sequence[str] | None) -> None:
    """Raises ServerError if there is no model repository, this user may not read it, or the name of
    a model to be loaded would break the command that starts its processes."""
    make_one = "make one (python -m export)"
    if not repository.is_dir():
        raise ServerError(f"there is no model repository at {repository}; {make_one}")
    if not os.access(repository, os.R_OK | os.X_OK):
        raise ServerError(
            f"{repository}: this user may not read it. Its owner can run: chmod -R a+rX "
            f"{shlex.quote(str(repository))}"
        )
    configs = sorted(repository.glob("*/config.pbtxt"))
    if not configs:
        holds = f"{repository} is no model repository: it holds no MODEL/config.pbtxt"
        raise ServerError(f"{holds}; {make_one}")
    for config in configs:
        name = config.parent.name
        wanted = models is None or name in models
        if wanted and not shell.is_safe(name) and pbtxt.read(config).backend == "python":
            raise ServerError(
                f"{repository} holds a model called {name!r}; the Python backend starts models "
                "with names of letters (A to Z), digits and _.-+@% alone: rename its folder"
            )


def check_files() -> None:
    """Allow this process, and those that it starts, as many open files as a server needs. Raises
    ServerError if they may not be allowed: server 2.51 would wait for ever."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < LEAST_FILES:
        raise ServerError(
            f"a process may open {most} files here (ulimit -n), and a server needs {LEAST_FILES} "
            "or more, one of them for each connection: allow 4096"
        )
    if now < LEAST_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def environment(
    binary: binaries.ServerBinary,
    name: str,
    threads: int,
    metrics_url: str,
    python: Path,
    repository: Path,
) -> dict[str, str]:
    """The environment of the server called `name` and of its workers.

    Args:
        python: the folder of the python3 whose packages the workers import.
        threads: most compute threads of a process: for the numerical libraries and the stages.
        repository: where the stages look for what is no part of a release.
        metrics_url: where the stages read how many requests wait for them.
    """
    variables = binaries.loader_environment(binary.libraries)
    variables[cleanup.VARIABLE] = name
    # A stub decodes text and file names in this, if it takes it at all: see `cascade.triton.utf8`.
    variables |= {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
    # The stub's Python looks for a virtual environment beside the first python3 on PATH. Up to 3.10
    # it reads PYTHONPATH too; later ones embed it in isolation.
    variables["PATH"] = os.pathsep.join((str(python), variables.get("PATH", os.defpath)))
    inherited = filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))
    packages = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    folders = (str(PACKAGE.parent), *(os.path.abspath(folder) for folder in inherited), *packages)
    variables["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(folders))
    limits = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CASCADE_THREADS")
    variables |= dict.fromkeys(limits, str(threads))
    variables[admission.VARIABLE] = metrics_url
    variables[REPOSITORY_VARIABLE] = str(repository)
    variables[FILES_VARIABLE] = str(cleanup.run_folder() / name)
    variables.pop(security.KEY_VARIABLE, None)  # not for the code of models
    return variables


def tied(command: Sequence[str]) -> list[str]:
    """The command that becomes `command` and gets SIGTERM when this process dies.

    The kernel sends it when the *thread* that started the process ends, and only the main thread
    lives as long as the process: the server of another is left to `cleanup.remove_orphans`.
    """
    in_main = threading.current_thread() is threading.main_thread()
    launcher = [str(os.getpid()), str(int(signal.SIGTERM) if in_main else 0)]
    return [sys.executable, "-I", "-S", "-c", _TIED, *launcher, *command]


def drain(
    client: grpc.InferenceServerClient, model: str, headers: Mapping[str, str], timeout_s: float
) -> None:
    """Unload the model that clients call, and wait until its requests are answered: server 2.51
    ends the members of an ensemble while requests are still on their way to them. Raises
    InferenceServerException."""
    limits = {"headers": dict(headers), "client_timeout": REQUEST_TIMEOUT_S}
    deadline = time.monotonic() + timeout_s
    client.unload_model(model, **limits)
    while time.monotonic() < deadline:
        index = client.get_model_repository_index(**limits).models
        if not any(m.name == model and m.state in ("READY", "UNLOADING") for m in index):
            return
        time.sleep(DRAIN_POLL_S)


def end(process: subprocess.Popen[bytes], exit_timeout_s: float) -> int:
    """Stop the server in order, or by force when that takes too long. Returns its exit code."""
    process.terminate()
    try:
        return process.wait(exit_timeout_s + STOP_MARGIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def listens(host: str, port: int) -> bool:
    """Whether something accepts connections at an address."""
    try:
        socket.create_connection((host, port), LISTEN_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def wipe(pid: int, secret: str) -> None:
    """Overwrite a secret in the command line of a child, which `ps` shows to every user. Where the
    kernel does not allow a parent to do so, the secret stays."""
    with suppress(PermissionError, FileNotFoundError):
        fields = stat_fields(pid)
        start, end = int(fields[_ARGUMENTS_START]), int(fields[_ARGUMENTS_END])
        with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            words = memory.read(end - start)
            for found in re.finditer(re.escape(secret.encode()), words):
                memory.seek(start + found.start())
                memory.write(b"*" * len(secret))


def stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third, `state`, on; psutil leaves some of them out.
    Raises FileNotFoundError or ProcessLookupError where there is no such process."""
    line = Path(f"/proc/{pid}/stat").read_text()
    return line.rpartition(")")[2].split()  # the name before it may hold spaces and brackets


def ended(code: int, excerpt: str) -> str:
    """Says in one line how tritonserver ended, and why, as far as the excerpt of its log says so.
    Library code ends by a signal where it gets no memory."""
    said = f"tritonserver ended with {code}"
    if code < 0:
        said += f" ({signal.Signals(-code).name})"
        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most != resource.RLIM_INFINITY:
            said += f"; perhaps the {most:,} bytes that a process may have (ulimit -v) are too few"
    reason = _REASON.search(excerpt)
    return f"{said}: {reason[0]}" if reason else said


def log_excerpt(log: str, lines: int = EXCERPT_LINES) -> str:
    """The last lines of a server's log that tell of a problem: warnings, errors, and what models or
    libraries printed; without times, tables, repetitions and messages about absent GPUs. Where
    nothing is left, the last lines as they are."""
    kept: dict[str, None] = {}
    for line in log.splitlines():
        if not line.strip() or line[0] in "|+" or line.startswith(_SUMMARY):
            continue
        if line.startswith("Usage: tritonserver"):
            kept["tritonserver does not accept its arguments"] = None
            break  # pages of help follow
        entry = _LOG_ENTRY.match(line)
        if entry is None:
            kept[line] = None
        elif entry["level"] != "I" and not _WITHOUT_GPU.search(entry["message"]):
            kept[entry["message"].strip('" ').replace("\\n", "\n").strip()] = None
    wanted = "\n".join(kept).splitlines() or log.splitlines()
    return "\n".join(wanted[-lines:]) or "(its log is empty)"
