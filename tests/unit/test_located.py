"""YAML with locations: every mistake is told with its file, line and key."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascade import located
from cascade.errors import CascadeError
from cascade.located import Node

TEXT = """\
# a shop
name: shop
rate: 1e-3
share: 0.5
ready: true
features:
- name: city
  length: 3
- {name: price}
files: [a.csv, b.csv]
"""


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "shop.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_values_lines_and_paths(written: Callable[[str], Path], tmp_path: Path) -> None:
    root = located.load(written(TEXT))
    root.only("name", "rate", "share", "ready", "features", "files")
    assert root.take("name", Node.text) == "shop"
    assert root.take("rate", Node.number) == 0.001
    assert root.take("share", lambda node: node.number(0, 1)) == 0.5
    assert root.take("ready", Node.boolean) is True
    assert root.take("files", Node.texts) == ["a.csv", "b.csv"]
    assert root.take("name", Node.texts) == ["shop"]
    assert root.take("name", Node.file_path) == tmp_path / "shop"
    city, price = root.take("features", Node.members)
    assert (city.line, city.path) == (7, "features[0]")
    length = city.mapping()["length"]
    assert (length.line, length.path, length.integer(1, 3)) == (8, "features[0].length", 3)
    assert price.take("length", Node.integer, 1) == 1
    assert root.mapping()["features"].plain() == [{"name": "city", "length": 3}, {"name": "price"}]


def _features(read: Callable[[Node], Any]) -> Callable[[Node], Any]:
    return lambda root: [read(node) for node in root.take("features", Node.members)]


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda root: root.only("nam", "rate"), "line 2: unknown key 'name': did you mean 'nam'?"),
        (
            _features(lambda node: node.only("name")),
            "line 8: features[0]: unknown key 'length': known are name",
        ),
        (lambda root: root.take("title", Node.text), "line 2: the key 'title' is missing"),
        (
            _features(lambda node: node.take("length", Node.integer)),
            "line 9: features[1]: the key 'length' is missing",
        ),
        (lambda root: root.take("name", Node.integer), "line 2: name: 'shop' (str) came; expected"),
        (lambda root: root.take("name", Node.number), "name: 'shop' (str) came; expected a number"),
        (lambda root: root.take("name", Node.boolean), "expected true or false"),
        (lambda root: root.take("name", Node.members), "expected a list, that is lines of"),
        (lambda root: root.take("name", Node.mapping), "expected a mapping, that is lines of"),
        (lambda root: root.take("share", Node.text), "expected a string; quote it: '0.5'"),
        (lambda root: root.take("ready", Node.integer), "True (bool) came; expected an integer"),
        (lambda root: root.take("ready", Node.number), "True (bool) came; expected a number"),
        (
            lambda root: root.take("share", lambda node: node.number(least=1)),
            "line 4: share: 0.5 (float) came; expected a number of 1 or more",
        ),
        (
            _features(lambda node: node.take("length", lambda length: length.integer(4, 9))),
            "line 8: features[0].length: 3 (int) came; expected an integer from 4 to 9",
        ),
        (
            lambda root: root.take("name", lambda node: node.choice("shop", ("shed", "stop"))),
            "line 2: name: unknown shop 'shop': did you mean 'stop'?",
        ),
        (
            lambda root: root.take("features", lambda node: node.choice("shop", ("shed", "stop"))),
            "line 7: features: [{'length': 3, 'name': 'city'}, {'name': 'price'}] (list) came",
        ),
    ],
)
def test_a_wrong_value_is_told_with_its_line(
    written: Callable[[str], Path], read: Callable[[Node], Any], message: str
) -> None:
    path = written(TEXT)
    with pytest.raises(located.LocatedError) as told:
        read(located.load(path))
    assert str(told.value).startswith(f"{path}, line ")
    assert message in str(told.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' stands in line 1 already"),
        ("a: 1\n b: 2\n", "line 2: mapping values are not allowed here; expected YAML"),
        ("a: [1,\n", "line 2: "),
        ("a: 1\n\tb: 2\n", "line 2: "),
        ("a: 1\nyes: 2\n", "line 2: True (bool) came as a key; expected a string: quote it"),
        ("a: 1\n[b]: 2\n", "line 2: ['b'] (list) came as a key"),
        ("a: 1\n---\na: 2\n", "but found another document"),
        ("a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("a: 1\nb: 2020-13-45\n", "line 2: b: month must be in 1..12; quote it"),
        ("a: &x\n  b: *x\n", "a.b: an alias stands inside of what it names"),
        ("a: 1\nb: *x\n", "line 2: found undefined alias"),
        ("a: " + "[" * 9_000, "line 1: what the file holds is nested too deeply"),
        (b"a: 1\nb: \xff\n", "line 2: what stands here is not UTF-8"),
        ("a: 1\nb: \x00\n", "line 2: unacceptable character"),
    ],
)
def test_what_is_no_yaml_is_told_with_its_line(
    written: Callable[[str | bytes], Path], text: str | bytes, message: str
) -> None:
    path = written(text)
    with pytest.raises(CascadeError) as told:
        located.load(path)
    assert str(told.value).startswith(f"{path}, line ")
    assert message in str(told.value)


def test_an_empty_file_has_an_empty_value(written: Callable[[str], Path]) -> None:
    root = located.load(written(""))
    with pytest.raises(CascadeError, match=r"line 1: nothing came; expected a mapping"):
        root.only("name")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CascadeError, match="there is no file"):
        located.load(tmp_path / "nil.yaml")
    with pytest.raises(CascadeError, match="cannot be read: Is a directory"):
        located.load(tmp_path)


def test_what_the_module_shows_is_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"path": Path("shop.yaml"), "load": located.load, "Node": Node}
    found = doctest.testmod(located, extraglobs=names)
    assert found.attempted
    assert not found.failed
