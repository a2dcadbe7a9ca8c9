"""YAML whose values know where they stand, so that an error names its file, line and key.

>>> path.write_text("name: shop\\nfeatures:\\n- {name: city, length: none}\\n")  # a file
50
>>> root = load(path)
>>> root.only("name", "features")
>>> root.take("name", Node.text)
'shop'
>>> for feature in root.take("features", Node.members):
...     feature.take("length", Node.integer, default=1)
Traceback (most recent call last):
cascade.located.LocatedError: shop.yaml, line 3: features[0].length: 'none' (str) came; expected \
an integer
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cascade.errors import CascadeError
from cascade.values import unknown_name

T = TypeVar("T")
_REQUIRED: Any = object()


class LocatedError(CascadeError, ValueError):
    """What is wrong in a file: the message has the file, the line and the key."""


@dataclass(frozen=True)
class Node:
    """One value of a file.

    Args:
        file: the file that it was read from.
        line: where the value begins, counted from 1.
        path: its keys and positions from the top, as `features[2].kind`; empty for the top.
        value: a `dict[str, Node]`, a `list[Node]`, or a scalar as YAML's safe schema reads it.
        key_line: the line of its key, where it has one.
    """

    file: Path
    line: int
    path: str
    value: Any
    key_line: int

    def error(self, message: str) -> LocatedError:
        """The error `FILE, line N: PATH: message`, to be raised."""
        return _error(self.file, self.line, f"{self.path}: {message}" if self.path else message)

    def unexpected(self, expected: str) -> LocatedError:
        """The error that says what came, of which type, and what was expected here."""
        if self.value is None:
            return self.error(f"nothing came; expected {expected}")
        value = self.plain()
        return self.error(
            f"{reprlib.repr(value)} ({type(value).__name__}) came; expected {expected}"
        )

    def plain(self) -> Any:
        """The value and what is below it, without the locations."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def mapping(self) -> dict[str, Node]:
        """The values by key."""
        if not isinstance(self.value, dict):
            raise self.unexpected("a mapping, that is lines of `key: value`")
        return self.value

    def only(self, *known: str) -> None:
        """Refuse a key of this mapping that is not among the known ones."""
        for key, node in self.mapping().items():
            if key not in known:
                message = unknown_name("key", key, known)
                where = f"{self.path}: " if self.path else ""
                raise _error(self.file, node.key_line, f"{where}{message}")

    def take(self, key: str, read: Callable[[Node], T], default: T = _REQUIRED) -> T:
        """What `read` makes of the value under a key; the default where the key is absent.

        `read` is a method of a Node (`Node.text`, `Node.integer`, ...) or takes one."""
        found = self.mapping().get(key)
        if found is not None:
            return read(found)
        if default is _REQUIRED:
            raise self.error(f"the key {key!r} is missing; add it")
        return default

    def members(self) -> list[Node]:
        """The members of a list."""
        if not isinstance(self.value, list):
            raise self.unexpected("a list, that is lines of `- value`")
        return self.value

    def texts(self) -> list[str]:
        """A list of strings; one string stands for a list of itself."""
        if isinstance(self.value, str):
            return [self.text()]
        return [member.text() for member in self.members()]

    def text(self) -> str:
        """A string of one character or more."""
        if isinstance(self.value, bool | int | float):
            raise self.unexpected(f"a string; quote it: '{self.value}'")
        if not isinstance(self.value, str) or not self.value:
            raise self.unexpected("a string")
        return self.value

    def choice(self, what: str, known: Iterable[str]) -> str:
        """One of some strings; `what` they are is for the error: `unknown kind 'bga': ...`."""
        known, value = tuple(known), self.value
        if not isinstance(value, str):
            raise self.unexpected(f"one of {', '.join(known)}")
        if value not in known:
            raise self.error(unknown_name(what, value, known))
        return value

    def boolean(self) -> bool:
        """`true` or `false`."""
        if not isinstance(self.value, bool):
            raise self.unexpected("true or false")
        return self.value

    def integer(self, least: int | None = None, most: int | None = None) -> int:
        """An integer from `least` to `most`."""
        value, expected = self.value, f"an integer{_bounds(least, most)}"
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.unexpected(expected)
        if not _within(value, least, most):
            raise self.unexpected(expected)
        return value

    def number(self, least: float | None = None, most: float | None = None) -> float:
        """A finite number from `least` to `most`; `1e-3` is one, which YAML takes for a string."""
        value, expected = self.value, f"a number{_bounds(least, most)}"
        try:
            as_float = float(value) if isinstance(value, int | float | str) else math.nan
        except (ValueError, OverflowError):
            as_float = math.nan
        if isinstance(value, bool) or not math.isfinite(as_float):
            raise self.unexpected(expected)
        if not _within(as_float, least, most):
            raise self.unexpected(expected)
        return as_float

    def file_path(self) -> Path:
        """A path; where it is relative, then to the folder of this file."""
        return self.file.parent / self.text()


def load(path: Path | str) -> Node:
    """Read a YAML file of one document. What it holds is data alone: tags that would make objects
    are refused, as is a key that occurs twice. A file that cannot be read is a LocatedError."""
    path = Path(path)
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise _error(path, line, "what stands here is not UTF-8; save the file as UTF-8") from error
    except FileNotFoundError as error:
        raise LocatedError(f"there is no file {path}") from error
    except OSError as error:
        raise LocatedError(f"{path} cannot be read: {error.strerror}") from error
    try:
        loader = yaml.SafeLoader(text)
        try:
            top = loader.get_single_node()
            if top is None:
                return Node(path, 1, "", None, 1)
            return _node(loader, path, top, "", _line(top), frozenset())
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = f"{error.problem or error.context}; expected YAML"
        raise _error(path, mark.line + 1 if mark else 1, what) from error
    except RecursionError as error:
        raise _error(path, 1, "what the file holds is nested too deeply to be read") from error
    except yaml.YAMLError as error:  # a character that YAML forbids
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        raise _error(path, line, f"{str(error).splitlines()[0]}; expected YAML") from error


def _node(
    loader: Any, file: Path, node: yaml.Node, path: str, key_line: int, above: frozenset[int]
) -> Node:
    line = _line(node)
    if id(node) in above:
        raise _error(file, line, f"{path}: an alias stands inside of what it names; write it out")
    above = above | {id(node)}
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        values: dict[str, Node] = {}
        for key, value in node.value:
            name = _key(loader, file, key)
            if name in values:
                first = values[name].key_line
                raise _error(file, _line(key), f"the key {name!r} stands in line {first} already")
            below = f"{path}.{name}" if path else name
            values[name] = _node(loader, file, value, below, _line(key), above)
        return Node(file, line, path, values, key_line)
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        members = [
            _node(loader, file, member, f"{path}[{i}]", _line(member), above)
            for i, member in enumerate(node.value)
        ]
        return Node(file, line, path, members, key_line)
    try:
        value = loader.construct_object(node, deep=True)
    except (ValueError, OverflowError) as error:  # a date that does not exist
        raise _error(file, line, f"{path}: {error}; quote it where it is a string") from error
    return Node(file, line, path, value, key_line)


def _key(loader: Any, file: Path, key: yaml.Node) -> str:
    name = loader.construct_object(key, deep=True)
    if not isinstance(name, str):
        came = f"{reprlib.repr(name)} ({type(name).__name__}) came as a key"
        raise _error(file, _line(key), f"{came}; expected a string: quote it")
    return name


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _error(file: Path, line: int, message: str) -> LocatedError:
    return LocatedError(f"{file}, line {line}: {message}")


def _within(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def _bounds(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least} to {most}"
    if least is not None:
        return f" of {least} or more"
    return "" if most is None else f" of {most} or less"
