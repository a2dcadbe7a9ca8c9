"""Reads the JSON that says which features feed a third-party model; `wrapper` describes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx_ir as ir

from cascade.artifact import Array
from cascade.errors import CascadeError
from cascade.files import write_json
from cascade.schema import Schema, Side
from cascade.values import unknown_name

Source = Literal["user_dense", "user_ids", "item_dense", "item_ids"]
Rows = Mapping[str, Array]  # encoded rows [n, F], by source

FORM = (
    '{"inputs": {INPUT: [FEATURE, ...], ...}, "output": OUTPUT, '
    '"output_is": "logit", "probability" or "value", perhaps "tasks": [NAME, ...]}'
)
Meaning = Literal["logit", "probability", "value"]
DTYPES = tuple(ir.DataType[name] for name in ("FLOAT16", "FLOAT", "DOUBLE", "INT32", "INT64"))


class ForeignError(CascadeError, ValueError):
    """A third-party model, or the mapping of its inputs, that cannot be served."""


@dataclass(frozen=True)
class Column:
    """One column of an encoded tensor."""

    source: Source
    position: int


@dataclass(frozen=True)
class Input:
    """An input of the foreign graph: [n, F], or [n] where rank is 1."""

    name: str
    dtype: ir.DataType
    rank: int
    columns: tuple[Column, ...]

    def feed(self, rows: Rows) -> Array:
        """Encoded rows -> the array that the input takes."""
        columns = [rows[c.source][:, c.position] for c in self.columns]
        values: Array = np.stack([c.astype(self.dtype.numpy()) for c in columns], axis=1)
        return values[:, 0] if self.rank == 1 else values


@dataclass(frozen=True)
class InputMap:
    """The JSON: features by input, the output and its meaning; a `value` is any finite number.

    Args:
        side: of which a model needs a feature.
        tasks: names of the output's columns, where they are values that a formula makes the final
            score of (`cascade.formula`).
    """

    path: Path
    features: dict[str, list[str]]
    output: str | None
    meaning: Meaning
    side: Side = "item"
    tasks: tuple[str, ...] = ()

    @property
    def is_logit(self) -> bool:
        """Whether a sigmoid makes it the probability of a click."""
        return self.meaning == "logit"

    @classmethod
    def load(cls, path: Path) -> InputMap:
        """Read the file. Raises ForeignError: shows what it holds, and the form expected."""
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ForeignError(f"{path} is no JSON file: {error}; expected {FORM}") from error
        known = {"inputs", "output", "output_is", "tasks"}
        if not isinstance(content, dict) or not content.keys() <= known:
            raise ForeignError(f"{path} holds {content!r:.200}; expected {FORM}")
        features = content.get("inputs")
        if not isinstance(features, dict) or not all(
            isinstance(names, list) and names and all(isinstance(name, str) for name in names)
            for names in features.values()
        ):
            raise ForeignError(f"{path}: inputs is {features!r:.200}; expected {FORM}")
        meaning: Any = content.get("output_is")
        if meaning not in get_args(Meaning):
            raise ForeignError(f"{path}: output_is is {meaning!r}; expected {FORM}")
        tasks: Any = content.get("tasks", [])
        named = isinstance(tasks, list) and all(isinstance(name, str) for name in tasks)
        if not named or len({*tasks}) < len(tasks) or (tasks and meaning != "value"):
            raise ForeignError(
                f"{path}: tasks is {tasks!r:.200}; expected different names of the columns of an "
                "output that is a value"
            )
        return cls(path, features, content.get("output"), meaning, tasks=tuple(tasks))

    def save(self, path: Path) -> None:
        """Write the file that `load` reads."""
        content = {"inputs": self.features, "output": self.output, "output_is": self.meaning}
        write_json(path, {**content, "tasks": [*self.tasks]} if self.tasks else content)

    def inputs(self, values: Mapping[str, ir.Value], schema: Schema, name: str) -> list[Input]:
        """The inputs of the graph `values` of the model `name`, each with its columns. Raises
        ForeignError: an input or a feature is missing, unknown, or does not fit."""
        missing, extra = values.keys() - self.features.keys(), self.features.keys() - values.keys()
        if missing or extra:
            raise ForeignError(
                f"{self.path} does not fit {name}: inputs without a mapping: "
                f"{sorted(missing) or 'none'}; mapped, but not in the graph: "
                f"{sorted(extra) or 'none'}. The graph's inputs are {list(values)}"
            )
        known = schema_columns(schema)
        inputs = [
            self._input(f"input {key!r} of {name}", value, known) for key, value in values.items()
        ]
        if self.side == "user":
            return inputs
        if not any(c.source.startswith("item") for i in inputs for c in i.columns):
            raise ForeignError(
                f"{self.path} feeds {name} no item feature, so that every item would get the same "
                f"score; the item features are {[f.name for f in schema.side('item')]}"
            )
        return inputs

    def _input(self, where: str, value: ir.Value, known: Mapping[str, tuple[Column, ...]]) -> Input:
        features = self.features[str(value.name)]
        for feature in features:
            if feature not in known:
                raise ForeignError(
                    f"{self.path}: {where}: {unknown_name('feature', feature, [*known])}"
                )
        columns = tuple(column for feature in features for column in known[feature])
        if value.dtype not in DTYPES:
            raise ForeignError(
                f"{where} takes {value.dtype or value.type}; expected one of "
                f"{[d.name for d in DTYPES]}: encoded values are numbers"
            )
        return Input(str(value.name), value.dtype, _rank(where, value, columns, features), columns)


def schema_columns(schema: Schema) -> dict[str, tuple[Column, ...]]:
    """Where the encoded values of every feature lie."""
    found: dict[str, tuple[Column, ...]] = {}
    sides: tuple[tuple[Side, Source, Source], ...] = (
        ("user", "user_dense", "user_ids"),
        ("item", "item_dense", "item_ids"),
    )
    for side, dense, ids in sides:
        for position, feature in enumerate(schema.dense(side)):
            found[feature.name] = (Column(dense, position),)
        start = 0
        for feature in schema.ids(side):
            stop = start + feature.length
            found[feature.name] = tuple(Column(ids, position) for position in range(start, stop))
            start = stop
    return found


def _rank(where: str, value: ir.Value, columns: tuple[Column, ...], features: list[str]) -> int:
    """1 or 2; a shape that the file leaves open counts as [n, columns]."""
    shape = [None, None] if value.shape is None else list(value.shape)
    dims = [dim if isinstance(dim, int) else None for dim in shape]
    if len(dims) not in (1, 2):
        raise ForeignError(
            f"{where} has the {len(dims)} dimensions {value.shape}; expected [n] or [n, columns]"
        )
    if dims[0] is not None:
        raise ForeignError(
            f"{where} has a fixed batch dimension of {dims[0]}; it must be dynamic, because "
            "all candidates of all users of a batch come at once. PyTorch: torch.onnx.export(..., "
            f"dynamic_shapes={{{value.name!r}: {{0: 'rows'}}}}); skl2onnx: "
            "FloatTensorType([None, columns])"
        )
    takes = 1 if len(dims) == 1 else dims[1]
    if takes not in (None, len(columns)):
        raise ForeignError(
            f"{where} takes {takes} columns, but {features} have {len(columns)} (a bag has "
            "`length` of them)"
        )
    return len(dims)
