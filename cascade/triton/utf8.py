"""Makes Python speak UTF-8 in a process of Triton's, as it does everywhere else.

Up to server 2.51 the stub of Python 3.11 and later starts Python in isolation from the environment,
and without a locale: whatever LANG says, text files, file names and what is printed are ASCII.
"""

from __future__ import annotations

import codecs
import locale
import os
import sys
from contextlib import suppress
from io import TextIOWrapper

_ESCAPE = "surrogateescape"  # how Python encodes and decodes file names


def use_utf8() -> None:
    """Read and write text, file names and output in UTF-8 from now on. Without effect where Python
    does so already."""
    if sys.getfilesystemencoding() == "utf-8":
        return
    with suppress(locale.Error):
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")  # of text files
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    # The encoding of file names cannot be changed once Python runs, but what it does with
    # characters that it lacks can.
    escape = codecs.lookup_error(_ESCAPE)

    def encode_or_escape(error: UnicodeError) -> tuple[str | bytes, int]:
        if isinstance(error, UnicodeEncodeError):
            return error.object[error.start : error.end].encode("utf-8", _ESCAPE), error.end
        return escape(error)

    codecs.register_error(_ESCAPE, encode_or_escape)
    # What others set is in UTF-8, too. (To fsencode() bytes leaves them as they are.)
    os.environ.decodevalue = lambda value: os.fsencode(value).decode("utf-8", _ESCAPE)
    sys.path[:] = [os.fsencode(folder).decode("utf-8", _ESCAPE) for folder in sys.path]
