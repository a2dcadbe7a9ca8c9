"""The features of the file, and how raw values become the ids and numbers of the team's models."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cascade.encoding import Encoder, Ids
from cascade.located import Node
from cascade.schema import REFUSED, Feature, Hashing, Kind, Schema, SchemaError
from cascade.values import of_json
from export.described import tables

KEYS = (
    "name", "side", "kind", "dtype", "column", "length", "pad", "vocabulary", "hash", "integer",
    "missing", "unknown", "rows", "transform", "mean", "std", "boundaries",
)  # fmt: skip
TRANSFORMS = ("identity", "log1p", "standardise", "buckets")
Vocabulary = tuple[list[bytes], Ids]  # values, and the id of each


@dataclass
class Features:
    """The schema with its encoder, and where each feature stands in tables and in the file."""

    encoder: Encoder
    nodes: dict[str, Node]
    columns: dict[str, str]
    dtypes: dict[str, str] = field(default_factory=dict)  # "string" or "integer", where it is said
    refusing: list[str] = field(default_factory=list)  # of the user: other values have no row

    @property
    def schema(self) -> Schema:
        return self.encoder.schema

    def check(self, table: pa.Table) -> None:
        """Raises LocatedError: a column holds something else than its feature's `dtype` says."""
        for name, dtype in self.dtypes.items():
            if not dtype or self.columns[name] not in table.column_names:
                continue
            values = table[self.columns[name]]
            while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
                values = pc.list_flatten(values)
            if pa.types.is_dictionary(values.type):
                values = values.cast(values.type.value_type)
            found = "integer" if pa.types.is_integer(values.type) else "string"
            if dtype == "integer" and pa.types.is_string(values.type):  # a CSV file has texts alone
                wrong = values.filter(pc.invert(pc.match_substring_regex(values, r"^(-?\d+)?$")))
                found = "integer" if not len(wrong) else f"string, as {wrong[0].as_py()!r}"
            if found != dtype and not pa.types.is_null(values.type):
                raise self.nodes[name].error(
                    f"dtype is {dtype}, and the column {self.columns[name]} holds {found}"
                )

    def texts(self, *sides: str) -> set[str]:
        """The columns that hold ids: strings, even where a CSV file has digits in them."""
        return {self.columns[f.name] for f in self.schema.features
                if f.side in sides and f.kind != "dense"}  # fmt: skip

    def wanted(self, side: str) -> dict[str, tuple[Feature, str]]:
        """The features of a side by name, with their columns."""
        return {f.name: (f, self.columns[f.name]) for f in self.schema.features if f.side == side}


def read(node: Node, name: str, string_ids: bool) -> Features:
    """Read the list of features. Raises LocatedError."""
    vocabularies: dict[Path, Vocabulary] = {}
    read_one = [_Reader(member, vocabularies) for member in node.members()]
    features = [one.feature() for one in read_one]
    values, ids = {}, {}
    for one, feature in zip(read_one, features, strict=True):
        if one.vocabulary is not None:
            values[feature.name], ids[feature.name] = one.vocabulary
    try:
        encoder = Encoder.fit(Schema(name, tuple(features), string_ids), values, ids)
    except SchemaError as error:
        raise node.error(str(error)) from error
    users = [f for f in features if f.side == "user" and f.kind != "dense"]
    refusing = [f.name for f in users if f.unknown_id == REFUSED and not _hashes_all(f)]
    named = zip(read_one, features, strict=True)
    nodes = {f.name: one.node for one, f in named}
    columns = {f.name: one.column for one, f in zip(read_one, features, strict=True)}
    dtypes = {f.name: one.dtype for one, f in zip(read_one, features, strict=True)}
    return Features(encoder, nodes, columns, dtypes, refusing)


def _hashes_all(feature: Feature) -> bool:
    return feature.encoding == "hash" and feature.hashing != "modulo"


class _Reader:
    """One feature of the file."""

    def __init__(self, node: Node, vocabularies: dict[Path, Vocabulary]) -> None:
        node.only(*KEYS)
        self.node, self._vocabularies = node, vocabularies
        self.name = node.take("name", Node.text)
        self.column = node.take("column", Node.text, self.name)
        self.dtype = node.take("dtype", lambda n: n.choice("dtype", ("string", "integer")), "")
        self.kind = node.take("kind", lambda n: n.choice("kind", get_args(Kind)))
        self.side = node.take("side", lambda n: n.choice("side", ("user", "item")))
        self.vocabulary: Vocabulary | None = None

    def feature(self) -> Feature:
        found: dict[str, Any] = {
            "name": self.name,
            "side": self.side,
            "kind": self.kind,
        }
        found |= self._dense() if self.kind == "dense" else self._ids()
        try:
            return Feature(**found)
        except SchemaError as error:
            raise self.node.error(str(error)) from error

    def _dense(self) -> dict[str, Any]:
        node = self.node
        self._refuse("vocabulary", "hash", "integer", "length", "pad", "unknown", "rows", "dtype")
        kind = node.take("transform", lambda n: n.choice("transform", TRANSFORMS), "identity")
        found: dict[str, Any] = {"encoding": "identity" if kind == "standardise" else kind}
        found["fill"] = node.take("missing", Node.number, 0.0)
        if kind == "buckets":
            self._refuse("mean", "std")
            found["boundaries"] = tuple(
                member.number() for member in node.take("boundaries", Node.members)
            )
        elif kind == "standardise":
            found["mean"], found["std"] = (node.take(key, Node.number) for key in ("mean", "std"))
        else:  # log1p may be scaled, too
            found["mean"] = node.take("mean", Node.number, 0.0)
            found["std"] = node.take("std", Node.number, 1.0)
        return found

    def _ids(self) -> dict[str, Any]:
        node = self.node
        self._refuse("transform", "mean", "std", "boundaries")
        found: dict[str, Any] = {}
        if "missing" not in node.mapping() and self.side == "user":
            raise node.error(
                "say as `missing: ID` which row a user without this value gets, as a new user is; "
                "it is also that of the pads of a list"
            )
        if self.kind in ("bag", "sequence"):
            found["length"] = node.take("length", lambda n: n.integer(1))
            found["pad_side"] = node.take("pad", lambda n: n.choice("side", ("left", "right")), "")
            if "missing" not in node.mapping():
                raise node.error(
                    f"a {self.kind} has pads where it is shorter than {found['length']}: say their "
                    "id as `missing: ID`"
                )
        else:
            self._refuse("length", "pad")
        ways = [key for key in ("vocabulary", "hash", "integer") if key in node.mapping()]
        if len(ways) != 1:
            raise node.error(
                f"{' and '.join(ways) or 'no way'} came by which a value becomes an id; expected "
                "one of vocabulary, hash, integer"
            )
        rows = node.take("rows", lambda n: n.integer(1), 0)
        if ways == ["vocabulary"]:
            found |= {"encoding": "vocabulary"} | self._vocabulary(node.mapping()["vocabulary"])
        elif ways == ["hash"]:
            found |= {"encoding": "hash"} | _hash(node.mapping()["hash"])
        else:
            found |= {"encoding": "integer"} | _integer(node.mapping()["integer"])
            rows = rows or found.pop("size")
        for key in ("missing", "unknown"):
            found[f"{key}_id"] = node.take(key, self._reserved, REFUSED)
        last = self._last(found)
        if rows and last >= rows:
            raise node.error(f"id {last} came, but the table has {rows} rows, ids 0 to {rows - 1}")
        found.pop("size", None)
        return found | {"cardinality": rows}

    def _last(self, found: dict[str, Any]) -> int:
        last = max(found["missing_id"], found["unknown_id"])
        if self.vocabulary is not None:
            last = max(last, int(self.vocabulary[1].max(initial=-1)))
        if found["encoding"] == "hash":
            last = max(last, found["offset"] + found["buckets"] - 1)
        return last

    def _reserved(self, node: Node) -> int:
        """The id of a reserved row, or that of a value of the vocabulary."""
        if not isinstance(node.value, str):
            return node.integer(0)
        values, ids = self.vocabulary or ([], np.zeros(0, np.int64))
        if node.text().encode() not in values:
            raise node.error(f"{node.value!r} is no value of the vocabulary; say an id")
        return int(ids[values.index(node.text().encode())])

    def _refuse(self, *keys: str) -> None:
        for key in keys:
            if key in self.node.mapping():
                raise self.node.mapping()[key].error(f"a {self.kind} feature has no `{key}`")

    def _vocabulary(self, node: Node) -> dict[str, Any]:
        options: dict[str, Any] = {"value": None, "id": None, "first": 0}
        if isinstance(node.value, dict):
            node.only("file", *options)
            options["value"] = node.take("value", Node.text, None)
            options["id"] = node.take("id", Node.text, None)
            options["first"] = node.take("first", lambda n: n.integer(0), 0)
            node = node.take("file", lambda n: n)
        path = node.file_path()
        if path not in self._vocabularies or any(options.values()):
            self._vocabularies[path] = _read_vocabulary(node, **options)
        self.vocabulary = self._vocabularies[path]
        return {}


def _hash(node: Node) -> dict[str, Any]:
    if isinstance(node.value, int):
        return {"buckets": node.integer(1), "offset": 0}
    node.only("buckets", "function", "offset")
    function = node.take("function", lambda n: n.choice("hash", get_args(Hashing)), "crc32")
    offset = node.take("offset", lambda n: n.integer(0), 0)
    return {
        "buckets": node.take("buckets", lambda n: n.integer(1)),
        "hashing": function,
        "offset": offset,
    }


def _integer(node: Node) -> dict[str, Any]:
    node.only("offset", "size")
    return {
        "offset": node.take("offset", Node.integer, 0),
        "size": node.take("size", lambda n: n.integer(1)),
    }


def _read_vocabulary(node: Node, value: str | None, id: str | None, first: int) -> Vocabulary:
    """Values and their ids, each value once. Raises LocatedError."""
    path = node.file_path()
    if not path.is_file():
        raise node.error(f"there is no file {path}")
    if path.suffix in (".parquet", ".csv"):
        values, ids = _from_table(node, value, id)
    elif path.suffix in (".json", ".txt"):
        values, ids = _from_text(node, path, first)
    else:
        raise node.error(
            f"{path.name} came; expected a vocabulary as .txt (a value per line), .json (a list, "
            "or an object of ids by value), .parquet or .csv (columns `value` and `id`)"
        )
    if wrong := next((text for text in values if re.search("[\n|\ud800-\udfff]", text)), None):
        expected = "values have no line end and no |, and UTF-8 holds them"
        raise node.error(f"{path.name} has the value {wrong!r}; {expected}")
    texts = [text.encode() for text in values]
    real = np.array([bool(text) for text in texts], bool)  # an empty text is a missing value
    texts, ids = [text for text in texts if text], ids[real]
    if len(set(texts)) < len(texts):
        seen: dict[bytes, int] = {}
        for text, number in zip(texts, ids.tolist(), strict=True):
            if seen.setdefault(text, number) != number:
                raise node.error(
                    f"{path.name} has {text.decode()!r} with the ids {seen[text]} and {number}; "
                    "a value has one id"
                )
        texts, ids = [*seen], np.array([*seen.values()], np.int64)
    if ids.min(initial=0) < 0:
        raise node.error(f"{path.name} has the id {ids.min()}; ids are rows of a table, from 0 on")
    return texts, ids


def _from_table(node: Node, value: str | None, id: str | None) -> tuple[list[str], Ids]:
    value, id = value or "value", id or "id"
    table = tables.read(node, (value,))
    values = tables.texts(node, value, tables.column(node, table, value))
    ids = tables.column(node, table, id)
    if not pa.types.is_integer(ids.type) or ids.null_count:
        raise node.error(
            f"column {id} is {ids.type} with {ids.null_count} nulls; expected integers"
        )
    return values.to_pylist(), np.array(ids, np.int64)


def _from_text(node: Node, path: Path, first: int) -> tuple[list[str], Ids]:
    try:
        text = path.read_text("utf-8")
        content = of_json(text) if path.suffix == ".json" else text.removesuffix("\n").split("\n")
    except ValueError as error:
        raise node.error(f"{path.name} cannot be read: {error}") from error
    if isinstance(content, dict):
        wrong = next((k for k, v in content.items() if type(v) is not int or abs(v) >> 63), None)
        if wrong is not None:
            raise node.error(
                f"{path.name}: {wrong!r} has the id {content[wrong]!r}; expected an int of 64 bits"
            )
        return [*content], np.array([*content.values()], np.int64)
    if not isinstance(content, list) or not all(isinstance(v, str | int) for v in content):
        raise node.error(f"{path.name} holds no list of values, nor an object of ids by value")
    return [str(v) for v in content], np.arange(first, first + len(content), dtype=np.int64)
