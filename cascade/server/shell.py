"""Paths that the Python backend can start a process from.

It starts each process by an unquoted `bash -c`, which holds the paths of the model and of the stub,
and the stub's Python reads paths, also those in the files of its environment, as ASCII.
"""

from __future__ import annotations

import hashlib
import os
import re
import site
import sys
from contextlib import suppress
from pathlib import Path

_SAFE = re.compile(r"[\w./+@%-]+", re.ASCII)


def is_safe(path: str | Path) -> bool:
    """Whether a shell reads an absolute path, or a name, as it is written, and ASCII holds it."""
    return bool(_SAFE.fullmatch(str(path)))


def safe(path: Path, folder: Path) -> Path:
    """The absolute path itself, or where it is not safe a link to it in `folder`, which exists. The
    name of the link follows from the path."""
    if is_safe(path):
        return path
    link = folder / f"link_{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
    with suppress(FileExistsError):
        link.symlink_to(path)
    return link


def python(package: Path, folder: Path) -> Path:
    """The folder whose `python3` leads a stub to this process's Python and packages. Where these
    lie under a path that is not ASCII, it is that of a virtual environment made in `folder`, which
    speaks UTF-8 before it reads the paths of the packages. `package` is the folder of `cascade`.
    """
    if not _beyond_ascii():
        return Path(sys.executable).parent
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    made = folder / "python"
    binaries, packages = made / "bin", made / "lib" / version / "site-packages"
    for place in (binaries, packages):
        place.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        (binaries / "python3").symlink_to(sys.executable)
    home = safe(Path(sys.base_prefix), folder) / "bin"
    (made / "pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = false\n")
    first = (
        f"import site, sys; sys.path.insert(0, {str(safe(package.parent, folder))!r})",
        "from cascade.triton.utf8 import use_utf8",
        "sys.path.pop(0); use_utf8()",
        f"[*map(site.addsitedir, {site.getsitepackages()!a})]",
    )
    (packages / "cascade.pth").write_text("; ".join(first) + "\n")
    return binaries


def _beyond_ascii() -> bool:
    """Whether the paths of this Python and of its packages are more than ASCII."""
    places = [Path(place) for place in site.getsitepackages()]
    paths = (sys.executable, sys.prefix, sys.base_prefix, *map(str, places))
    texts = [os.fsencode(path) for path in paths]
    for place in places:
        texts += [path.read_bytes() for path in place.glob("*.pth") if os.access(path, os.R_OK)]
    return not all(text.isascii() for text in texts)
