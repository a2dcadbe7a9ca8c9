"""Files that are complete or absent: digests, and writes that survive a kill at any moment; the
content of packed ones, and text in any form of Unicode."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import quote

import numpy as np

BLOCK = 1 << 20
LONGEST_NAME = 200  # bytes of a file's name: file systems take 255
GZIP_MAGIC = b"\x1f\x8b"
UNPACKING_ERRORS = (OSError, EOFError, zlib.error)  # of what `unpacked` returns
_MARKS = (  # those of UTF-32 begin like those of UTF-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def sha256(path: Path) -> str:
    """Digest of a file's content, in hexadecimal."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            sha.update(block)
    return sha.hexdigest()


def file_name(name: str, ending: str = "") -> str:
    """A file's name that says `name`, which may be any text. Letters of ASCII, digits, and `_.-~`
    stand for themselves, all else is percent-encoded; of a long name, a digest takes the place of
    the rest. Different names have different files."""
    quoted = quote(name, safe="", errors="surrogatepass")
    if len(quoted) > LONGEST_NAME:
        digest = hashlib.sha256(quoted.encode()).hexdigest()
        quoted = f"{quoted[: LONGEST_NAME - len(digest)]}%~{digest}"  # quote() never writes %~
    return quoted + ending


def named_file(folder: Path, name: str, ending: str = "") -> Path:
    """The file of that name in a folder; where it lies there under the name itself, as earlier
    versions wrote it, that one."""
    path, earlier = folder / file_name(name, ending), folder / (name + ending)
    # os.path.exists() is False for what cannot be the name of a file, where Path.exists() raises.
    use_earlier = "/" not in name and not path.exists() and os.path.exists(earlier)
    return earlier if use_earlier else path


def unpacked(path: Path) -> IO[bytes]:
    """A file's content, where it is gzip unpacked, whatever its name: as gzip does it, several
    members one after the other, and zeros between and behind them left out."""
    with path.open("rb") as file:
        packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    opened: Any = gzip.open(path) if packed else path.open("rb")  # noqa: SIM115
    return cast("IO[bytes]", opened)


def replace_text(path: Path, text: str) -> None:
    """Write a file such that a reader finds the old text or the new, also after a crash."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # on a full disk
    _sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as `replace_text` does; numbers may be NumPy's."""
    replace_text(path, json.dumps(value, indent=1, default=plain) + "\n")


def plain(value: Any) -> Any:
    """A number of NumPy's as a plain one; for `json.dumps(default=...)`."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value)} does not go into JSON")


def move(source: Path, target: Path) -> None:
    """Rename a folder on one file system, and write the new name to the disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(source, target)
    _sync(target.parent)


def link(source: Path, target: Path) -> None:
    """A hard link to a file, or a copy if the file system has none. Files of a release are never
    written again."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def sync(folder: Path) -> None:
    """Write a folder to the disk, with all its content."""
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            _sync(path)


def content(folder: Path) -> Iterator[Path]:
    """The files below a folder, in a fixed order."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def text_of(data: bytes) -> str:
    """A file's text in UTF-8, UTF-16 or UTF-32, with a lone surrogate for each byte or unit that is
    none."""
    without = b"", _encoding(data)
    mark, encoding = next((pair for pair in _MARKS if data.startswith(pair[0])), without)
    return data[len(mark) :].decode(encoding, _SURROGATE)


def _encoding(data: bytes) -> str:
    """The encoding of text without a mark, by the zeros of its first character."""
    if data[:1] == b"\0":
        return "utf-32-be" if data[:3] == b"\0\0\0" else "utf-16-be"
    if data[1:2] == b"\0":
        return "utf-32-le" if data[2:4] == b"\0\0" else "utf-16-le"
    return "utf-8"


_SURROGATE = "cascade.surrogate"
codecs.register_error(_SURROGATE, lambda error: ("\udcff", error.end))  # type: ignore[attr-defined]
