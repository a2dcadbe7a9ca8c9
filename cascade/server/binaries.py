"""Finds tritonserver, and checks that it fits this Python. It comes from an NVIDIA container or
from the wheel `nvidia-pytriton`, of which only the binary is used: its package is never imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cascade.errors import CascadeError
from cascade.server import cleanup, shell

CONTAINER_SERVER = Path("/opt/tritonserver/bin/tritonserver")
WHEEL, LIBRARIES = "nvidia-pytriton", "nvidia_pytriton.libs"
WHEEL_GLIBC = (2, 35)  # the wheel's own tag: manylinux_2_35
CHECK_TIMEOUT_S = 60.0
STUB = "triton_python_backend_stub"
# The last: of the addresses in the list, the curl in server 2.51 finds no other.
LOOPBACK = "localhost,::1,127.0.0.1"


class BinaryError(CascadeError):
    """A program is missing or does not fit; the message says what to do."""


@dataclass(frozen=True)
class ServerBinary:
    """A tritonserver that can run here.

    Args:
        libraries: folders that the dynamic loader must search.
        arguments: of tritonserver, about its own files.
        python_backend: files to be linked into the folder `python` of a backend directory; empty
            where the server has one.
    """

    path: Path
    libraries: tuple[Path, ...] = ()
    arguments: tuple[str, ...] = ()
    python_backend: tuple[Path, ...] = field(default=(), repr=False)

    def assemble(self, folder: Path, package: Path) -> tuple[str, ...]:
        """Build the wheel's missing backend directory out of links, or what is missing of it;
        returns the arguments for tritonserver. Models import what lies in it, so a link to
        `package` goes there too: the stub's Python searches no other folder that does not depend on
        the current one."""
        if not self.python_backend:
            return self.arguments
        (folder / "python").mkdir(parents=True, exist_ok=True)
        for source in (*self.python_backend, package):
            with suppress(FileExistsError):
                (folder / "python" / source.name).symlink_to(source)
        # Keep Python from writing bytecode: on a disk that fills up it writes half a file.
        (folder / "python" / "__pycache__").touch()
        return (*self.arguments, f"--backend-directory={folder}")


def tritonserver() -> ServerBinary:
    """The container's tritonserver where there is one, otherwise the wheel's. Raises BinaryError if
    there is none, it does not fit this Python, numpy or C library, or this user may not use it."""
    try:
        return _found()
    except PermissionError as error:
        raise _forbidden(Path(error.filename)) from error


def _found() -> ServerBinary:
    on_path = shutil.which("tritonserver")
    if on_path or CONTAINER_SERVER.exists():
        return _container(Path(on_path or CONTAINER_SERVER).resolve())
    package = wheel_package()
    if package is None:
        raise BinaryError(
            "no tritonserver: it is neither on PATH nor at "
            f"{CONTAINER_SERVER}, and the wheel {WHEEL} is not installed for {sys.executable}. "
            f"Install it (pip install '{WHEEL}==0.7.0') or run inside nvcr.io/nvidia/tritonserver."
        )
    return _wheel(package)


def _container(path: Path) -> ServerBinary:
    backends = path.parent.parent / "backends"
    stub = backends / "python" / STUB
    if not stub.exists():
        return ServerBinary(path)
    linked = re.search(rb"libpython(\d+\.\d+)", stub.read_bytes())  # the name of its library
    check_python(linked and linked[1].decode(), sys.version_info[:2], str(path))
    _check_permissions(path, stub)
    return ServerBinary(path, arguments=(f"--backend-directory={backends}",))


def _wheel(package: Path) -> ServerBinary:
    root = package / "tritonserver"
    stubs = {p.parent.name: p for p in (root / "python_backend_stubs").glob(f"*/{STUB}")}
    check_wheel(
        wheel=importlib.metadata.version(WHEEL),
        numpy=importlib.metadata.version("numpy"),
        python=sys.version_info[:2],
        stubs=stubs,
        glibc=platform.libc_ver()[1],
    )
    stub = stubs[f"{sys.version_info[0]}.{sys.version_info[1]}"]
    libraries = (package.parent / LIBRARIES, *_libpython_folders())
    server = root / "bin" / "tritonserver"
    backend = (stub, *(p for p in (root / "backends" / "python").iterdir() if p.is_file()))
    _check_permissions(server, *backend, *libraries[0].glob("*.so*"))
    _check_runs(stub, libraries)
    return ServerBinary(server, libraries, (f"--cache-directory={root / 'caches'}",), backend)


def wheel_package() -> Path | None:
    """The folder of the package `pytriton`, found without importing it (it would start things).
    Beside it stands that of the libraries, `LIBRARIES`."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        return None
    package = Path(spec.submodule_search_locations[0])
    return package if (package / "tritonserver" / "bin" / "tritonserver").exists() else None


def _libpython_folders() -> tuple[Path, ...]:
    """Folders that may hold libpython, which the stub embeds."""
    folder = Path(sysconfig.get_config_var("LIBDIR") or sys.base_prefix)
    multiarch = sysconfig.get_config_var("MULTIARCH")
    return (folder, folder / multiarch) if multiarch else (folder,)


def check_wheel(
    *, wheel: str, numpy: str, python: tuple[int, int], stubs: Collection[str], glibc: str
) -> None:
    """Raises BinaryError for versions that do not work with the wheel's server.

    Args:
        stubs: versions of Python that the wheel has a stub for.
        glibc: version of the C library; empty where it is another one (musl).
    """
    wanted = f"{python[0]}.{python[1]}"
    if wanted not in stubs:
        have = ", ".join(sorted(stubs, key=_numbers))
        raise BinaryError(
            f"{WHEEL} {wheel} cannot run models in Python {wanted}: it has stubs for {have}. "
            "Create the environment with one of those."
        )
    if _numbers(numpy)[0] >= 2:
        raise BinaryError(
            f"numpy {numpy} does not work with {WHEEL} {wheel}: its Python stubs were built "
            "against numpy 1 and hand out empty tensors. Install 'numpy<2'."
        )
    if not glibc or _numbers(glibc)[:2] < WHEEL_GLIBC:
        raise BinaryError(
            f"{WHEEL} {wheel} needs glibc {WHEEL_GLIBC[0]}.{WHEEL_GLIBC[1]} or newer; this system "
            f"has {'glibc ' + glibc if glibc else 'another C library'}. Use Debian 12, Ubuntu "
            "22.04 or newer, or the NGC container."
        )


def check_python(stub: str | None, python: tuple[int, int], server: str) -> None:
    """Raises BinaryError for a stub whose Python cannot import this interpreter's packages."""
    here = f"{python[0]}.{python[1]}"
    if stub is not None and stub != here:
        raise BinaryError(
            f"the Python backend of {server} embeds Python {stub}, but this is Python {here}: "
            f"packages installed here cannot be imported there. Install them for python{stub} and "
            "start the server with it."
        )


def _check_permissions(*paths: Path) -> None:
    """Raises BinaryError for a file that this user may not read, or a program that it may not run:
    another user may have installed them. A program that runs but is unreadable hides its
    environment, by which `cleanup` finds the processes of a server."""
    for path in paths:
        programs = os.X_OK if path.name in (STUB, "tritonserver") else 0
        if not os.access(path, os.R_OK | programs):
            raise _forbidden(path)


def _forbidden(path: Path) -> BinaryError:
    folder = next((p for p in path.parents if p.name in ("pytriton", LIBRARIES)), path.parent)
    remedy = f"chmod -R a+rX {shlex.quote(str(folder))}"
    if path.name in (STUB, "tritonserver"):
        remedy += f" && chmod a+x {shlex.quote(str(path))}"
    return BinaryError(
        f"{path}: this user may not use it. Its owner can run: {remedy}; or install the server in "
        "an environment of this user's own."
    )


def _check_runs(stub: Path, libraries: tuple[Path, ...]) -> None:
    """Start the stub without arguments, which it rejects: exit code 127 means that the loader did
    not find a library. Without this check a load of the model would time out instead."""
    environment = loader_environment(libraries)
    ran = subprocess.run(
        [stub], env=environment, capture_output=True, text=True, timeout=CHECK_TIMEOUT_S
    )
    if ran.returncode == 127:
        raise BinaryError(
            f"{stub} does not start: {ran.stderr.strip()}. Where libpython is missing, use a "
            "Python built with --enable-shared (Debian and Ubuntu: apt-get install "
            f"libpython{sys.version_info[0]}.{sys.version_info[1]})."
        )


def loader_environment(libraries: tuple[Path, ...]) -> dict[str, str]:
    """This process's environment with `libraries` searched first by the dynamic loader, which
    reads `;` and `$` in their paths otherwise, and with no proxy between the programs of this
    machine: curl and gRPC, inside Triton's programs, read these variables."""
    run_folder = cleanup.run_folder()
    safe = [str(shell.safe(folder, run_folder)) for folder in libraries]
    folders = [*safe, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    variables = os.environ | ({"LD_LIBRARY_PATH": os.pathsep.join(folders)} if folders else {})
    curl = variables.get("no_proxy") or variables.get("NO_PROXY")
    grpc = variables.get("no_grpc_proxy", variables.get("no_proxy"))
    # A * stands for every host, but only where it stands alone.
    variables["no_proxy"] = "*" if curl == "*" else ",".join(filter(None, (curl, LOOPBACK)))
    variables["no_grpc_proxy"] = ",".join(filter(None, (grpc, LOOPBACK)))
    return variables


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
