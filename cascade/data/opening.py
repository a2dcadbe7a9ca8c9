"""`--data SPEC` -> the reader of what it names."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc

from cascade import values
from cascade.data.criteo import Criteo
from cascade.data.movielens import MovieLens
from cascade.data.past import OfItems, told
from cascade.data.source import (
    LOGS,
    BadRows,
    DataError,
    Policy,
    Source,
    Split,
    file_identity,
    typed,
)
from cascade.data.synthetic import Synthetic
from cascade.data.tables import TableSource, layout
from cascade.schema import Schema

KINDS = {
    "criteo": "criteo:PATH",
    "movielens": "movielens:PATH",
    "synthetic": "synthetic[:rows=…,items=…,seed=…,tasks=…]",
    "table": "table[:FOLDER or FILES] with --schema FILE",
}
SPEC = f"{', '.join(KINDS.values())}, or package.module:Class[:ARGUMENT]"
_MEMBERS = ("schema", "fingerprint", "chunks", "catalogue")
_CLASS = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)(?::(.*))?")


def open_source(spec: str, bad: BadRows, schema: Path | None = None) -> Source:
    """The reader that `spec` names; malformed rows go to `bad`. `schema` is the YAML file of
    `table`."""
    kind, _, rest = spec.partition(":")
    if kind == "table":
        if schema is None:
            raise DataError(f"--data {spec} needs --schema FILE, which says what its columns are")
        return TableSource(layout.read(schema, rest), bad)
    if schema is not None:
        raise DataError(f"--schema goes with --data table; --data {spec} has a schema of its own")
    if kind == "synthetic":
        return Synthetic.parse(rest)
    if kind == "criteo" and rest:
        return Criteo(Path(rest), bad)
    if kind == "movielens" and rest:
        return MovieLens(Path(rest), bad)
    if kind not in KINDS and (found := _CLASS.fullmatch(spec)):
        return OwnSource(*found.groups())
    raise DataError(f"--data {spec!r} is not understood; give {SPEC}")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that name a source."""
    add = parser.add_argument
    add("--data", required=True, metavar="SPEC", help=SPEC)
    add("--schema", type=Path, metavar="FILE", help="YAML: what the columns of --data table are")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every program that prepares data."""
    add_source_arguments(parser)
    add = parser.add_argument
    skip = "stop at the first malformed row, or leave such rows out and count them"
    add("--bad-rows", choices=get_args(Policy), default="error", help=skip)
    rare = "values seen less often in training share one id"
    add("--min-count", type=int, metavar="N", help=rare)
    hashed = "hash each category into N ids; no vocabularies"
    add("--hash-buckets", type=int, metavar="N", help=hashed)


class OwnSource(Source):
    """A class of a user's own, checked for what a `Source` has to offer.

    Args:
        module, name: of the class; the module is found in the working directory, too.
        argument: what the class is called with; None calls it with nothing.
    """

    def __init__(self, module: str, name: str, argument: str | None) -> None:
        self._name = f"{module}:{name}"
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            if isinstance(error, ModuleNotFoundError) and error.name != module.split(".")[0]:
                raise self._wrong(f"importing it failed: {error}") from error
            kinds = values.unknown_name("kind of data", module, KINDS)
            here = f"there is no module {module}, here or installed ({error})"
            raise self._wrong(f"{here}; {kinds}") from error
        made_of = getattr(found, name, None)
        if made_of is None:
            raise self._wrong(f"{module} has no {name}; it has {', '.join(_classes(found))}")
        if not inspect.isclass(made_of):
            raise self._wrong(f"{made_of!r} came; expected a class")
        given = [] if argument is None else [argument]
        try:
            inspect.signature(made_of).bind(*given)
        except TypeError as error:
            raise self._wrong(
                f"it cannot be called with {given or 'no argument'} ({error}); --data "
                f"{self._name}:ARGUMENT hands one string to it"
            ) from error
        self._made: Any = made_of(*given)
        missing = [member for member in _MEMBERS if not hasattr(self._made, member)]
        if missing:
            raise self._wrong(
                f"it lacks {', '.join(missing)}, which cascade.data.source.Source describes"
            )
        self._argument, self._listed = argument, False
        self._code = getattr(found, "__file__", None)

    def _wrong(self, what: str) -> DataError:
        return DataError(f"--data {self._name}: {what}")

    @property
    def schema(self) -> Schema:
        found = self._made.schema
        if not isinstance(found, Schema):
            raise self._wrong(f"its schema is {found!r}; expected a cascade.schema.Schema")
        return found

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Its own, and the file of its code: rows that are read otherwise are other rows."""
        given = self._made.fingerprint
        if not isinstance(given, dict):
            raise self._wrong(f"its fingerprint is a {type(given).__name__}; expected a dict")
        try:
            own = json.loads(json.dumps(given))
        except (TypeError, ValueError) as error:
            raise self._wrong(f"its fingerprint is no JSON: {error}") from error
        code = None if self._code is None else file_identity(Path(self._code))
        return {"source": self._name, "argument": self._argument, "code": code, "own": own}

    @property
    def log(self) -> Any:
        """As the class says, where it does."""
        found = getattr(self._made, "log", None)
        if found is not None and found not in LOGS:
            raise self._wrong(f"its log is {found!r}; expected {' or '.join(LOGS)}")
        return found

    @property
    def notes(self) -> list[str]:
        return [*map(str, getattr(self._made, "notes", ()))]

    @property
    def item_past(self) -> OfItems | None:
        found: OfItems | None = getattr(self._made, "item_past", None)
        return found

    @property
    def total_rows(self) -> int | None:
        found: int | None = getattr(self._made, "total_rows", None)
        return found

    def catalogue(self) -> pa.Table | None:
        found = self._made.catalogue()
        self._listed = found is not None
        if found is None:
            return None
        checked = self._checked("catalogue()", found, listed=True)
        typed(told(self, self.schema).side("item"), checked)
        return checked

    def chunks(self, split: Split) -> Iterator[pa.Table]:
        for chunk in self._made.chunks(split):
            yield self._checked(f"chunks({split!r})", chunk, self._listed)

    def _checked(self, what: str, table: Any, listed: bool) -> pa.Table:
        """A table, whose `item_id` is int64, or string as the schema says, where it has one."""
        if not isinstance(table, pa.Table):
            raise self._wrong(f"{what} gave {type(table).__name__}; expected a pyarrow.Table")
        if not listed:
            return table
        if "item_id" not in table.column_names:
            raise self._wrong(f"{what} has no column item_id; it has {table.column_names}")
        ids, place = table["item_id"], table.column_names.index("item_id")
        strings = self.schema.string_ids
        is_text = pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)
        fits = is_text if strings else pa.types.is_integer(ids.type)
        if not fits or ids.null_count:
            came = f"{ids.type}{' with missing ones' if ids.null_count else ''}"
            expected = "string" if strings else "int64: number the items"
            if is_text and not strings:
                expected += ", or give its schema string_ids=True"
            raise self._wrong(f"{what} has item ids of type {came}; expected {expected}")
        try:
            ids = ids.cast(pa.string() if strings else pa.int64())
        except pa.ArrowInvalid as error:
            raise self._wrong(f"{what} has an item id beyond int64: {error}") from error
        none = pc.equal(ids, "") if strings else pc.less(ids, 0)
        if pc.any(none).as_py():
            item = ids.filter(none)[0].as_py()
            stands = "an empty string" if strings else "-1"
            raise self._wrong(f"{what} has the item id {item!r}; {stands} stands for no item")
        return table.set_column(place, "item_id", ids)


def _classes(module: Any) -> list[str]:
    own = [n for n, value in vars(module).items() if inspect.isclass(value) and n[0] != "_"]
    return own or ["no class"]
