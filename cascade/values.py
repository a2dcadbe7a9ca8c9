"""One raw feature value to its form on the wire, checked: in the clients, in the store, and in the
server where a request overrides what is stored. A value that no trained model could read is refused
by the name of its feature: sooner than in the server, and in terms of Python's types.
"""

from __future__ import annotations

import difflib
import json
import math
import reprlib
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np

from cascade.encoding import InvalidInput

SEPARATOR = "|"
_LARGEST = float(np.finfo(np.float32).max)


def number(feature: str, value: object) -> float:
    """A dense value as a float that fits in float32; NaN where it is missing. Raises InvalidInput
    for what is no number, infinite, or too large."""
    if value is None:
        return math.nan
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise _wrong(feature, value, "a number, or None where it is missing")
    try:
        as_float = float(value)
    except OverflowError:  # an int of more than 308 digits
        as_float = math.inf
    if abs(as_float) > _LARGEST:
        finite = f"a finite number up to {_LARGEST:.3g}, or None where it is missing"
        raise _wrong(feature, value, finite)
    return as_float


def category(feature: str, value: object) -> bytes:
    """A categorical value as UTF-8; empty where it is missing (None, NaN or ""). Raises
    InvalidInput for what is neither a string nor an int."""
    if _is_missing(value):
        return b""
    if isinstance(value, list | tuple | set | frozenset | dict | np.ndarray):
        raise _wrong(feature, value, "one string or int: only a bag or a sequence takes several")
    return text(feature, value, "a string or an int, or None where it is missing").encode()


def bag(feature: str, value: object, length: int) -> bytes:
    """A bag as UTF-8, members joined by `|`; empty where it is missing or has no member.

    Takes a list of strings and ints, or a string that is joined already; raises InvalidInput for
    what is neither. Only the first `length` members are sent, because the server reads no more.
    """
    return SEPARATOR.join(_members(feature, value)[:length]).encode()


def sequence(feature: str, value: object, length: int) -> bytes:
    """A sequence as UTF-8, like `bag`; the newest members, that is the last `length`, are sent."""
    return SEPARATOR.join(_members(feature, value)[-length:]).encode()


def _members(feature: str, value: object) -> list[str]:
    if _is_missing(value):
        return []
    if isinstance(value, str | bytes):
        members = text(feature, value, "").split(SEPARATOR)
    elif isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1):
        members = [_member(feature, member) for member in value]
    else:
        raise _wrong(feature, value, f"a list, or a string joined by {SEPARATOR!r}")
    return [member for member in members if member]


def _member(feature: str, value: object) -> str:
    member = text(feature, value, "strings and ints as the members of a list")
    if SEPARATOR in member:
        raise _wrong(feature, value, f"members without {SEPARATOR!r}, which separates members")
    return member


def text(feature: str, value: object, expected: str, where: str = "feature") -> str:
    """A string, an int or UTF-8 as text. Raises InvalidInput for anything else."""
    if isinstance(value, Integral) and not isinstance(value, bool | np.bool_):
        return str(int(value))
    try:
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, str):
            value.encode()
            return str(value)
    except UnicodeError as error:
        raise unexpected(f"{where} {feature}", value, "text that UTF-8 can hold") from error
    raise unexpected(f"{where} {feature}", value, expected)


def _is_missing(value: object) -> bool:
    """NaN counts too: it is how pandas marks a hole in a column of strings."""
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


def _wrong(feature: str, value: object, expected: str) -> InvalidInput:
    return unexpected(f"feature {feature}", value, expected)


def of_json(text: str | bytes) -> Any:
    """What a text in JSON says. Raises InvalidInput: it is none, is nested too deeply, or names a
    value of an object twice: one of the two would be lost."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except InvalidInput:
        raise
    except RecursionError as error:
        raise InvalidInput("not JSON that can be read: it is nested too deeply") from error
    except ValueError as error:
        raise InvalidInput(f"not JSON: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in content if names.count(name) > 1)
        raise InvalidInput(f"an object that has {reprlib.repr(twice)} twice; give it one value")
    return content


def unexpected(where: str, value: object, expected: str) -> InvalidInput:
    """The error that says what came, of which type, and what was expected there."""
    return InvalidInput(
        f"{where}: {reprlib.repr(value)} ({type(value).__name__}) came; expected {expected}"
    )


def unknown_name(what: str, name: object, known: Iterable[str]) -> str:
    """A message that suggests the name that was probably meant."""
    known = tuple(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    advice = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
    return f"unknown {what} {name!r}: {advice}"
