"""A ranker that was trained elsewhere: an ONNX file over flat (user, item) rows.

A JSON file says which features feed each input of its graph, and what its output means:

    {"inputs": {"numbers": ["I1", "I2"], "genre": ["C7"], "mixed": ["I1", "C7", "I2"]},
     "output": "prob",
     "output_is": "probability"}

- `inputs`: for every input of the graph, the features of the schema whose encoded columns it
  takes, side by side in this order. User and item features may be mixed. A dense or categorical
  feature is one column, a bag is `length` columns. The columns are cast to the input's type:
  float16, float, double, int32 or int64. The input is [n, columns], or [n] for a single column,
  and n must be dynamic: all candidates of all users of a batch arrive at once.
- `output`: its name; may be left out where the graph has one output only.
- `output_is`: `logit` or `probability`. The output is [n] or [n, 1]; or [n, 2], the probabilities
  of both classes, of which the last is that of a click.

What the model sees are the values as this repository encodes them: numbers after `log1p`, where
the schema says so, with 0 for missing; ids of its vocabularies, where 0 is missing and 1 unknown.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from google.protobuf.message import DecodeError
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from cascade.schema import Schema
from cascade.serving.runtime import Array

Source = Literal["user_dense", "user_ids", "item_dense", "item_ids"]
Rows = Mapping[str, Array]  # [n, F] each, by source

FORM = (
    '{"inputs": {INPUT: [FEATURE, ...], ...}, "output": OUTPUT, '
    '"output_is": "logit" or "probability"}'
)
# What ONNX 1.16 defines is what ONNX Runtime 1.19 reads; TopK of today's form is older than 11.
OLDEST_OPSET = 11
_, IR_VERSION, NEWEST_OPSET, NEWEST_ML_OPSET, _ = next(
    row for row in onnx.helper.VERSION_TABLE if row[0] == "1.16.0"
)
DTYPES = (
    ir.DataType.FLOAT16,
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.INT32,
    ir.DataType.INT64,
)
RUNTIME_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


class ForeignError(ValueError):
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


class Foreign:
    """The file, its mapping, and a session that runs it as it is: the reference of parity.

    Raises:
        ForeignError: says what of the file or of the mapping is at fault.
    """

    def __init__(self, path: Path, mapping: Path, schema: Schema) -> None:
        self.path, self.mapping = path, mapping
        self.name = path.name
        content = _read_mapping(mapping)
        model = load_model(path)
        self.inputs = self._read_inputs(model, content["inputs"], schema)
        self.output = self._read_output(model, content.get("output"))
        self.is_logit = content["output_is"] == "logit"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except RUNTIME_ERRORS as error:
            raise ForeignError(f"ONNX Runtime cannot load {path}: {error}") from error

    def outputs(self, rows: Rows) -> Array:
        """Run the file on encoded rows -> its output as it comes."""
        feed = {i.name: i.feed(rows) for i in self.inputs}
        try:
            found: Array = self._session.run([self.output], feed)[0]
        except RUNTIME_ERRORS as error:
            raise ForeignError(
                f"{self.name} cannot be run on {len(rows['user_ids'])} rows as the schema encodes "
                "them: is a table smaller than the schema's vocabulary, or the number of rows "
                f"written into the graph? ONNX Runtime says: {error}"
            ) from error
        return found

    def probabilities(self, rows: Rows) -> Array:
        """Encoded rows -> click probability, float32 [n]."""
        values = self.outputs(rows).astype(np.float32).reshape(len(rows["user_ids"]), -1)[:, -1]
        if not np.isfinite(values).all():
            raise ForeignError(f"{self.name} gives values that are not finite numbers")
        if self.is_logit:
            return (1 / (1 + np.exp(-values.astype(np.float64)))).astype(np.float32)
        if values.min(initial=0) < -1e-5 or values.max(initial=0) > 1 + 1e-5:
            raise ForeignError(
                f"{self.mapping}: output_is says probability, but {self.name} gives values from "
                f"{values.min():g} to {values.max():g}; say logit if that is what they are"
            )
        return values

    def check_rows(self, rows: Rows) -> bool:
        """Run some rows at once and one by one; tell whether the output is [n, 2]."""
        count = len(rows["user_ids"])
        together = self.outputs(rows)
        if not isinstance(together, np.ndarray) or together.shape not in (
            (count,),
            (count, 1),
            (count, 2),
        ):
            came = getattr(together, "shape", type(together).__name__)
            raise ForeignError(
                f"output {self.output!r} of {self.name} is {came} for {count} rows; expected "
                f"[{count}], [{count}, 1], or [{count}, 2] with the probabilities of both classes "
                "(skl2onnx: set the option zipmap=False)"
            )
        alone = [self.outputs({k: v[i : i + 1] for k, v in rows.items()}) for i in range(count)]
        if not np.allclose(together, np.concatenate(alone), rtol=1e-3, atol=1e-4):
            raise ForeignError(
                f"{self.name} gives a row another score when other rows stand beside it; the "
                "server batches users, so each row must be scored by itself. Was it exported in "
                "training mode, or does it normalise over the batch?"
            )
        return together.ndim == 2 and together.shape[1] == 2

    def _read_inputs(
        self, model: ir.Model, mapped: Mapping[str, Any], schema: Schema
    ) -> tuple[Input, ...]:
        values = {value.name: value for value in model_inputs(model)}
        missing, extra = values.keys() - mapped.keys(), mapped.keys() - values.keys()
        if missing or extra:
            raise ForeignError(
                f"{self.mapping} does not fit the inputs of {self.name}: "
                f"{sorted(map(str, missing)) or 'none'} of the graph without a mapping, "
                f"{sorted(extra) or 'none'} mapped but not in the graph, whose inputs are "
                f"{sorted(map(str, values))}"
            )
        known = schema_columns(schema)
        inputs = tuple(self._read_input(values[n], mapped[n], known) for n in mapped)
        if not any(c.source.startswith("item") for i in inputs for c in i.columns):
            raise ForeignError(
                f"{self.mapping} feeds {self.name} no item feature, so that every item would get "
                f"the same score; item features are {[f.name for f in schema.side('item')]}"
            )
        return inputs

    def _read_input(
        self, value: ir.Value, features: list[str], known: Mapping[str, tuple[Column, ...]]
    ) -> Input:
        where = f"input {value.name!r} of {self.name}"
        for feature in features:
            if feature not in known:
                close = difflib.get_close_matches(feature, known, 1, cutoff=0.4)
                hint = f"did you mean {close[0]!r}?" if close else f"it has {list(known)}"
                raise ForeignError(
                    f"{self.mapping}: {where} is fed by {feature!r}, which is no feature of the "
                    f"schema; {hint}"
                )
        columns = tuple(column for feature in features for column in known[feature])
        if value.dtype not in DTYPES:
            raise ForeignError(
                f"{where} takes {value.dtype or value.type}; expected one of "
                f"{[d.name for d in DTYPES]}: encoded values are numbers"
            )
        rank = _check_shape(where, value, len(columns), features)
        assert value.name is not None
        return Input(value.name, value.dtype, rank, columns)

    def _read_output(self, model: ir.Model, name: str | None) -> str:
        names = [str(value.name) for value in model.graph.outputs]
        if name is None and len(names) == 1:
            return names[0]
        if name not in names:
            raise ForeignError(
                f"{self.mapping}: output is {name!r}, but the outputs of {self.name} are {names}"
            )
        return name


def load_model(path: Path) -> ir.Model:
    """Read the graph, its external weights left where they are; check its versions."""
    if not path.is_file():
        raise ForeignError(f"{path} does not exist, or is not a file")
    try:
        model = ir.load(path, format="protobuf")
    except (DecodeError, ValueError) as error:
        raise ForeignError(f"{path} is not an ONNX file: {error}") from error
    if not model.graph.outputs:
        raise ForeignError(f"{path} is not an ONNX model: it holds no graph with an output")
    opsets = model.opset_imports
    if "ai.onnx" in opsets:  # the long name of the same domain
        opsets[""] = opsets.pop("ai.onnx")
    opset, ml = opsets.setdefault("", NEWEST_OPSET), opsets.get("ai.onnx.ml", 1)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET or ml > NEWEST_ML_OPSET:
        raise ForeignError(
            f"{path} has opset {opset}" + (f" and ai.onnx.ml {ml}" if ml > 1 else "") + ": from "
            f"{OLDEST_OPSET} to {NEWEST_OPSET} (ai.onnx.ml to {NEWEST_ML_OPSET}) are served, for "
            "ONNX Runtime 1.19 reads no newer ones. Export it with such an opset, or convert it "
            "with onnx.version_converter.convert_version"
        )
    return model


def model_inputs(model: ir.Model) -> list[ir.Value]:
    """What a caller must feed: older files list the weights among the inputs, too."""
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def schema_columns(schema: Schema) -> dict[str, tuple[Column, ...]]:
    """Where the encoded values of every feature lie."""
    found: dict[str, tuple[Column, ...]] = {}
    sides: Iterable[tuple[Literal["user", "item"], Source, Source]] = (
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


def _check_shape(where: str, value: ir.Value, width: int, features: list[str]) -> int:
    """-> the input's rank."""
    dims = [d if isinstance(d, int) else None for d in value.shape] if value.shape else [None, None]
    if len(dims) not in (1, 2):
        raise ForeignError(
            f"{where} has {len(dims)} dimensions, {value.shape}; expected [n] or [n, columns]"
        )
    if dims[0] is not None:
        raise ForeignError(
            f"{where} has a fixed batch dimension of {dims[0]}; it must be dynamic, for all "
            "candidates of all users of a batch come at once. PyTorch: torch.onnx.export(..., "
            f"dynamic_shapes={{{value.name!r}: {{0: 'rows'}}}}); skl2onnx: "
            "FloatTensorType([None, columns])"
        )
    takes = 1 if len(dims) == 1 else dims[1]
    if takes not in (None, width):
        raise ForeignError(
            f"{where} takes {takes} columns, but {features} have {width} (a bag has `length` of "
            "them)"
        )
    return len(dims)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ForeignError(f"{path} cannot be read as JSON: {error}; expected {FORM}") from error
    if not isinstance(content, dict) or not content.keys() <= {"inputs", "output", "output_is"}:
        raise ForeignError(f"{path} holds {content!r:.200}; expected {FORM}")
    inputs = content.get("inputs")
    if not isinstance(inputs, dict) or not all(
        isinstance(names, list) and names and all(isinstance(name, str) for name in names)
        for names in inputs.values()
    ):
        raise ForeignError(f"{path}: inputs is {inputs!r:.200}; expected {FORM}")
    if content.get("output_is") not in ("logit", "probability"):
        raise ForeignError(f"{path}: output_is is {content.get('output_is')!r}; expected {FORM}")
    return content
