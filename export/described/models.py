"""A model of the file as one flat ONNX graph with one output, and the proof that it is the same. Of
several outputs that one has a column each, and the formula in `score` is the release's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch

from cascade.artifact import Array
from cascade.located import Node
from cascade.schema import Side
from export.described import outputs
from export.described.features import Features
from export.described.forms import Form, flatten
from export.foreign.inputs import ForeignError, InputMap, Rows, schema_columns
from export.foreign.onnx_model import RUNTIME_ERRORS, Foreign
from export.foreign.weights import not_finite

LARGEST_DIFFERENCE = (
    1e-5  # between a module and the graph that was traced from it, relative above 1
)
PROVED_AT = (2, 3, 64)  # rows


def write(form: Form, features: Features, rows: Rows, path: Path) -> Foreign:
    """Write path and path.json, the model over encoded rows -> a session that runs it. `rows` are
    encoded rows of real users and items, 64 or more. Raises LocatedError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    module = form.write_onnx(_arguments(form, features, rows, 2), path)
    session = _session(form, path)
    _check_inputs(form, path, session)
    if module is not None:
        _prove(form, module, features, rows, session)
    names = [str(value.name) for value in session.get_outputs()]

    def run() -> list[Array]:
        return _run(form, session, _arguments(form, features, rows, 3))

    output, meaning, tasks = outputs.give_one(form, names, run, path)
    named = {name: one.features for name, one in form.inputs.items()}
    side: Side = "item" if "item" in form.sides else "user"
    mapping = InputMap(form.node.file, named, output, meaning, side, tasks)
    mapping.save(path.with_suffix(".json"))
    try:
        found = Foreign(path, mapping, features.schema)
    except ForeignError as error:
        raise form.node.error(str(error)) from error
    found.formula = outputs.formula_of(form, tasks) if tasks else None
    return found


def _arguments(form: Form, features: Features, rows: Rows, count: int) -> dict[str, Array]:
    """The arguments of the team's model for the first rows, by name."""
    known = schema_columns(features.schema)
    found = {}
    for name, one in form.inputs.items():
        columns = [column for feature in one.features for column in known[feature]]
        values = np.stack([rows[c.source][:count, c.position] for c in columns], axis=1)
        values = values.astype(one.dtype)
        found[name] = values[:, 0] if one.flat else values
    return found


def _session(form: Form, path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except RUNTIME_ERRORS as error:
        reason = " ".join(f"{error}".split())
        if unknown := re.search(r"No Op registered for (\w+)|(\S+) is not a registered", reason):
            raise form.node.error(
                f"{form.name} uses the operator {unknown[1] or unknown[2]}, which ONNX does not "
                "define: export it with the standard ones"
            ) from error
        raise form.node.error(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {form.name}: {reason[-200:]}"
        ) from error


def _check_inputs(form: Form, path: Path, session: Any) -> None:
    """Every input of the graph is fed, and read; every weight is finite."""
    asked = [value.name for value in session.get_inputs()]
    node = form.node.mapping()["inputs"]
    if missing := [name for name in asked if name not in form.inputs]:
        raise node.error(
            f"{form.name} also takes {', '.join(missing)}; say which features feed it, of the "
            f"inputs {', '.join(asked)}"
        )
    if found := not_finite(ir.load(path)):
        raise form.node.error(
            f"the weights {found[0]} of {form.name} have values that are not finite numbers, first "
            f"in row {found[1]}"
        )
    model = onnx.load(path, load_external_data=False)
    read = {name for n in _nodes(model.graph) for name in n.input}
    for name, one in node.mapping().items():
        if name not in asked or name not in read:
            raise one.error(
                f"{form.name} does not read its input {name}"
                + ("" if name in asked else f"; its inputs are {', '.join(asked)}")
                + ". Leave it out of `inputs`, or export the model that reads it"
            )


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Of a graph, and of the graphs in its nodes."""
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            found += [inner for g in (attribute.g, *attribute.graphs) for inner in _nodes(g)]
    return found


def _run(form: Form, session: Any, arguments: dict[str, Array]) -> list[Array]:
    feed = {}
    for value in session.get_inputs():
        array = arguments[value.name]
        feed[value.name] = array.astype(_NUMPY.get(value.type, array.dtype), copy=False)
        if len(value.shape) == 1:
            feed[value.name] = feed[value.name].reshape(-1)
        elif array.ndim == 1:
            feed[value.name] = feed[value.name].reshape(-1, 1)
    try:
        return list(session.run(None, feed))
    except RUNTIME_ERRORS as error:
        raise form.node.error(
            f"{form.name} cannot be run on rows of the tables: {f'{error}'.splitlines()[0]}. Is a "
            "table smaller than its vocabulary, or a number of rows written into the graph?"
        ) from error


_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


def _prove(form: Form, module: Any, features: Features, rows: Rows, session: Any) -> None:
    """The graph gives what the module gives."""
    for count in PROVED_AT:
        arguments = _arguments(form, features, rows, count)
        with torch.no_grad():  # a TorchScript may not see inference tensors
            expected = flatten(module(*(torch.from_numpy(value) for value in arguments.values())))
        for own, found in zip(expected, _run(form, session, arguments), strict=True):
            wanted = own.float().numpy()
            if wanted.shape != found.shape:
                raise form.node.error(
                    f"{form.name} gives {wanted.shape} for {count} rows, and its graph "
                    f"{found.shape}: a number of rows is written into it"
                )
            difference = np.abs(wanted - found) / np.maximum(1, np.abs(wanted))
            if not difference.max(initial=0) <= LARGEST_DIFFERENCE:
                raise form.node.error(
                    f"{form.name} and its ONNX graph differ by {difference.max():.2g} at {count} "
                    "rows. Does it draw random numbers, or is it in training mode?"
                )


def check_ids(foreign: Foreign, features: Features, rows: Rows, node: Node) -> None:
    """Run the model over every id that a feature can have, one feature after the other; the rest of
    the row is that of a real user and item. Raises LocatedError: names the first id that fails."""
    used = {name for names in foreign.mapping.features.values() for name in names}
    for feature in features.schema.features:
        if feature.name not in used or feature.kind == "dense":
            continue
        ids = _possible(features, feature.name)
        column = schema_columns(features.schema)[feature.name][0]
        low, high = 0, len(ids)
        if _runs(foreign, rows, column, ids):
            continue
        while high - low > 1:  # the first id from which on it fails
            middle = (low + high) // 2
            low, high = (
                (middle, high) if _runs(foreign, rows, column, ids[:middle]) else (low, middle)
            )
        raise features.nodes[feature.name].error(
            f"the vocabulary has the id {ids[low]}, which {node.path} ({foreign.path.name}) cannot "
            "look up: its table is smaller. Is it the vocabulary that the model was trained with?"
        )


def _possible(features: Features, name: str) -> Array:
    feature = next(f for f in features.schema.features if f.name == name)
    if feature.encoding == "vocabulary":
        known = features.encoder.vocabulary(feature).values()
        found = np.unique([*known, feature.missing_id, feature.unknown_id])
    else:
        found = np.arange(feature.cardinality)
    real: Array = found[found >= 0].astype(np.int64)
    return real


def _runs(foreign: Foreign, rows: Rows, column: Any, ids: Array) -> bool:
    for start in range(0, len(ids), 65_536):
        some = ids[start : start + 65_536]
        repeated = {name: np.repeat(value[:1], len(some), axis=0) for name, value in rows.items()}
        repeated[column.source][:, column.position] = some
        try:
            foreign.run(repeated)
        except ForeignError:
            return False
    return True
