"""The YAML file that says what the columns of a user's own tables are.

    interactions: clicks.parquet     # a file, a folder, a pattern such as 2026-*.csv, or a list
    users: users.csv                 # optional, one row per user, joined by the column `user`
    items: items.csv                 # optional, one row per item, joined by the column `item`
    item: item_id
    item_ids: integers               # optional: integers of 64 bits, or strings
    user: user_id                    # optional
    label: clicked                   # optional; without it every row is a positive; or `labels`
    time: clicked_at                 # optional; without it the split is random
    title: name                      # optional, of the items
    log: impressions                 # optional: impressions or choices
    past: true                       # optional: false leaves out what had happened before a row
    features:
    - {name: price, side: item, kind: dense, encoding: log1p}
    - {name: tags, side: item, kind: bag, length: 5, column: tag_list, min_count: 2}

Of several labels, `labels` has the columns; the first says which rows are positives:

    labels:
      click: clicked
      engagement: {column: liked, weight: 0.5}
      revenue: {column: spent, kind: amount, weight: 0.3}

Paths are relative to the file, or to the folder that `--data table:FOLDER` names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any, Literal, cast, get_args

from cascade.data import past
from cascade.data.source import LOGS, DataError, Log
from cascade.located import Node, load
from cascade.schema import CLICK, ENCODINGS, Feature, Schema, SchemaError, Task, TaskKind

Table = Literal["interactions", "users", "items"]
TABLES: tuple[Table, ...] = ("interactions", "users", "items")
COLUMNS = ("item", "user", "label", "time", "title")
ITEM_IDS = ("integers", "strings")
SUFFIXES = (".parquet", ".csv", ".csv.gz", ".tsv", ".tsv.gz")
_FEATURE = (
    *("name", "side", "kind", "encoding", "length", "min_count", "buckets"),
    *("column", "table", "shares"),
)
# Columns of the prepared form, beside which the features stand.
_RESERVED = (
    *("label", "item", "item_id", "title", "probability", "dense", "ids"),
    *("user_dense", "user_ids"),
)


@dataclass(frozen=True)
class Column:
    """A feature's column: its name, the table that it was said to be in, and where that stands."""

    name: str
    table: Table | None
    node: Node


@dataclass(frozen=True)
class Layout:
    """What the YAML file says.

    Args:
        schema: the features, not yet fitted; those of the past stand last; and the tasks.
        columns: by feature; one of the past has none.
        past: the features of the past of users and items, which are computed from the interactions.
        named: the nodes of `item`, `user`, `label`, `time` and `title`, where they are given; of
            several labels, the first is `label`.
        labels: the nodes that name the columns of the further tasks, by task.
        files: by table; a table that is not given has none.
        log: how the items of the rows were chosen, where the file says so.
    """

    root: Node
    schema: Schema
    columns: dict[str, Column]
    past: tuple[Feature, ...]
    named: dict[str, Node]
    labels: dict[str, Node]
    files: dict[Table, list[Path]]
    log: Log | None

    def column(self, role: str) -> str | None:
        """The name of the column of an item, a user, a label, a time or a title."""
        return self.named[role].text() if role in self.named else None


def read(schema: Path, where: str = "") -> Layout:
    """Read a YAML file. `where` is what came after `table:`: nothing, a folder in which the names
    of the tables are looked up, or the files of the interactions, separated by commas. Raises a
    CascadeError that names the line."""
    root = load(schema)
    root.only("name", *TABLES, *COLUMNS, "labels", "item_ids", "log", "past", "features")
    features: list[Feature] = []
    columns: dict[str, Column] = {}
    for node in root.take("features", Node.members):
        feature, column = _feature(node)
        if feature.name in columns:
            first = columns[feature.name].node.line
            raise node.error(f"a feature is called {feature.name!r} already, in line {first}")
        features.append(feature)
        columns[feature.name] = column
    kind = root.take("item_ids", lambda node: node.choice("item_ids", ITEM_IDS), ITEM_IDS[0])
    name = root.take("name", Node.text, schema.stem)
    log = root.take("log", lambda node: node.choice("log", LOGS), None)
    tasks, labels = _labels(root)
    earlier = _past(root, columns, log)
    of_users = (feature for feature in earlier if feature.side == "user")
    try:  # an item of which the past alone is known would be none
        found = Schema(name, (*features, *of_users), kind == "strings", tasks)
    except SchemaError as error:
        raise root.mapping()["features"].error(str(error)) from error
    root.take("item", Node.text)
    named = {role: root.mapping()[role] for role in COLUMNS if role in root.mapping()}
    if labels:
        named["label"] = labels.pop(tasks[0].name)
    for node in (*named.values(), *labels.values()):
        node.text()
    if "users" in root.mapping() and "user" not in named:
        raise root.mapping()["users"].error(
            "users are joined by their id; add the key 'user', the column that holds it"
        )
    files = _files(root, where)
    found = replace(found, features=(*features, *earlier))
    return Layout(root, found, columns, earlier, named, labels, files, cast("Log | None", log))


def _labels(root: Node) -> tuple[tuple[Task, ...], dict[str, Node]]:
    """The tasks, and by task the node that names its column, where the file has `labels`."""
    there = root.mapping()
    if "labels" not in there:
        return CLICK, {}
    if "label" in there:
        raise there["labels"].error("the key 'label' is there, too; name each label once")
    tasks: list[Task] = []
    columns: dict[str, Node] = {}
    for name, node in there["labels"].mapping().items():
        kind, weight, columns[name] = "binary", 1.0, node
        if isinstance(node.value, dict):
            node.only("column", "kind", "weight")
            kind = node.take("kind", lambda n: n.choice("kind", get_args(TaskKind)), kind)
            weight = node.take("weight", Node.number, weight)
            columns[name] = node.take("column", lambda n: n)
        try:
            tasks.append(Task(name, cast(TaskKind, kind), weight))
        except SchemaError as error:
            raise node.error(str(error)) from error
    if not tasks or tasks[0].kind != "binary":
        came = f"the first label, {tasks[0].name}, is an amount" if tasks else "no label came"
        raise there["labels"].error(f"{came}; expected a binary one, which tells the positives")
    return tuple(tasks), columns


def _past(root: Node, columns: dict[str, Column], log: str | None) -> tuple[Feature, ...]:
    """The features of the past that the interactions tell, but for those that the file describes
    itself."""
    wanted, there = root.take("past", Node.boolean, True), root.mapping()
    if not wanted or "time" not in there:
        return ()
    made = [*((*past.USER, past.ITEMS) if "user" in there else ()), *past.ITEM]
    labelled = "label" in there or "labels" in there
    untold = set() if labelled else {past.POSITIVES, past.ITEM_POSITIVES}
    if log != "choices" and (log or labelled):
        untold.add(past.ITEMS)  # what a system showed says nothing of what goes together
    return tuple(f for f in made if f.name not in columns and f not in untold)


def _feature(node: Node) -> tuple[Feature, Column]:
    node.only(*_FEATURE)
    name = node.take("name", Node.text)
    if name in _RESERVED or name.startswith("@"):
        raise node.mapping()["name"].error(
            f"{name!r} cannot be the name of a feature; choose another, and give `column: {name}`"
        )
    side = node.take("side", lambda n: n.choice("side", ("user", "item")))
    kind = node.take("kind", lambda n: n.choice("kind", ENCODINGS))
    known = ENCODINGS[kind]
    # The scale of a number has to be chosen; for all else there is a usual way.
    usual: dict[str, Any] = {} if kind == "dense" else {"default": "vocabulary"}
    encoding = node.take("encoding", lambda n: n.choice(f"encoding of a {kind}", known), **usual)
    values: dict[str, Any] = {"side": side, "kind": kind, "encoding": encoding}
    for key, usually in (("length", 1), ("min_count", 1), ("buckets", 0)):
        values[key] = node.take(key, lambda n: n.integer(least=1), usually)
    values["shares"] = node.take("shares", Node.text, "")
    if kind in ("bag", "sequence") and "length" not in node.mapping():
        raise node.error(f"a {kind} needs the key 'length', the most members that a model sees")
    try:
        made = Feature(name, **values)
    except SchemaError as error:
        raise node.error(str(error)) from error
    table = node.take("table", lambda n: n.choice("table", TABLES), None)
    if table is not None and table not in ("interactions", f"{side}s"):
        raise node.mapping()["table"].error(f"a feature of the {side} is not in the {table}")
    at = node.mapping().get("column", node.mapping()["name"])
    return made, Column(at.text(), cast("Table | None", table), at)


def _files(root: Node, where: str) -> dict[Table, list[Path]]:
    """The files of every table that there is."""
    given = [Path(part) for part in where.split(",") if part]
    folder = given[0] if len(given) == 1 and given[0].is_dir() else None
    base = folder or root.file.parent
    named_here = folder is None and bool(given)  # then the file need not have its interactions
    files = {
        table: _expanded(root.mapping()[table], base)
        for table in TABLES
        if table in root.mapping() and not (named_here and table == "interactions")
    }
    if named_here:
        for path in given:
            if not path.is_file():
                raise DataError(f"--data table:{where}: there is no file {path}")
            _known(path, DataError)
        files["interactions"] = given
    elif "interactions" not in files and folder is not None:
        others = {path.resolve() for paths in files.values() for path in paths}
        found = [path for path in _of_folder(folder) if path.resolve() not in others]
        if not found:
            raise DataError(f"{folder} holds no table; expected files {', '.join(SUFFIXES)}")
        files["interactions"] = found
    if "interactions" not in files:
        raise root.error(
            "the key 'interactions' is missing; add it, or name the files: --data table:FILE"
        )
    return files


def _expanded(node: Node, base: Path) -> list[Path]:
    """The files that a node names: each a file, a folder of files or a pattern."""
    found: list[Path] = []
    named = [node] if isinstance(node.value, str) else node.members()
    for name in named:
        path = base / name.text()
        if path.is_dir():
            here = _of_folder(path)
        elif path.is_file():
            here = [path]
        else:
            here = sorted(Path(file) for file in glob(str(path), recursive=True))
        if not here:
            raise name.error(f"there is no file {path}; paths are relative to {base}")
        for file in here:
            _known(file, name.error)
        found += here
    if not found:
        raise node.error("an empty list came; expected a file")
    return found


def _of_folder(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES))


def _known(path: Path, error: Callable[[str], Exception]) -> None:
    if not path.name.endswith(SUFFIXES):
        raise error(f"{path} is no table; expected a file {', '.join(SUFFIXES)}")
