"""Takes a third-party model apart for a stage: computes the state of every item, and writes the
graph that computes it, so that a refreshed catalogue can be computed, too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import EncodeError
from onnx import TensorProto, helper, numpy_helper
from tqdm import tqdm

from cascade.artifact import Array, Mapped
from cascade.spec import ITEM_STATE, Precision
from export.artifacts.stage_files import CHUNK, ITEMS_FILE, write_mapped
from export.context import Catalogue
from export.foreign.inputs import Input
from export.foreign.onnx_model import RUNTIME_ERRORS, Foreign, draw_users, flat_rows
from export.foreign.split import ITEM, USER, Derived, NotSplit, Part, Side, column, derive

STATE_IDS = "item_state_ids"
STATES = {ITEM_STATE: "float32", STATE_IDS: "int64"}
CATALOGUE = "catalogue/"  # before the names of the encoded tensors that the items' graph takes
SOURCES = {
    f"{side}_{kind}": dtype
    for side in ("user", "item")
    for kind, dtype in (("dense", TensorProto.FLOAT), ("ids", TensorProto.INT64))
}
# A float64 is rounded to a float32; the parity of the stage judges that, too.
STORED: dict[int, str] = {
    **dict.fromkeys((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE), ITEM_STATE),
    **dict.fromkeys((TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL), STATE_IDS),
}


def take_apart(foreign: Foreign, items: Catalogue, candidates: int) -> Derived:
    """The model for so many candidates per user. Raises NotSplit: it cannot be taken apart; says
    why."""

    def feeds(count: int) -> dict[str, Array]:
        random = np.random.default_rng(count)
        users = draw_users(foreign.schema, count, random)
        rows = flat_rows(*users, items, random.integers(len(items), size=count))
        return {i.name: i.feed(rows) for i in foreign.inputs}

    sides = {i.name: [side_of(c.source) for c in i.columns] for i in foreign.inputs}
    try:
        model = onnx.load(foreign.path)
        found = derive(model, sides, feeds, foreign.output, candidates)
    except (EncodeError, ValueError, *RUNTIME_ERRORS) as error:
        raise NotSplit(f"it cannot be looked into: {error}") from error
    for part in found.parts:
        if part.dtype not in STORED:
            kind = helper.tensor_dtype_to_string(part.dtype)
            raise NotSplit(f"items have a state of {kind}, which is not stored")
    if not found.parts:
        raise NotSplit("nothing in it depends on the item alone")
    return found


def side_of(source: str) -> Side:
    """The side of an encoded tensor."""
    return USER if source.startswith("user") else ITEM


def part_input(i: Input, side: Side) -> tuple[str, Input]:
    """One side's columns of an input, and the name that they have in the derived graphs."""
    columns = tuple(c for c in i.columns if side_of(c.source) == side)
    name = i.name if len(columns) == len(i.columns) else column(i.name, side)
    return name, Input(name, i.dtype, i.rank, columns)


def stored(parts: tuple[Part, ...], state: str) -> list[Part]:
    """The parts that lie side by side in a state, in order."""
    return [part for part in parts if STORED[part.dtype] == state]


def over_catalogue(graph: onnx.ModelProto, inputs: list[Input]) -> onnx.ModelProto:
    """The items' graph with the encoded tensors of a catalogue as its inputs."""
    own = [replace(one, name=name) for name, one in (part_input(i, ITEM) for i in inputs)]
    return over_encoded(graph, own, CATALOGUE)


def over_encoded(graph: onnx.ModelProto, inputs: list[Input], prefix: str) -> onnx.ModelProto:
    """A graph with encoded tensors as its inputs, whose names get the prefix."""
    asked = {value.name for value in graph.graph.input}
    nodes, tensors, sources = [], [], set()
    for i in inputs:
        if (name := i.name) not in asked:
            continue
        parts: list[str] = []
        for source, columns in groupby(i.columns, key=lambda column: column.source):
            places = f"{name}/columns_{len(parts)}"
            positions = np.array([column.position for column in columns])
            tensors.append(numpy_helper.from_array(positions, places))
            chosen, part = f"{places}/chosen", f"{places}/cast"
            nodes.append(helper.make_node("Gather", [prefix + source, places], [chosen], axis=1))
            nodes.append(helper.make_node("Cast", [chosen], [part], to=int(i.dtype)))
            parts.append(part)
            sources.add(source)
        whole = name if i.rank == 2 else f"{name}/matrix"
        nodes.append(helper.make_node("Concat", parts, [whole], axis=1))
        if i.rank == 1:
            tensors.append(numpy_helper.from_array(np.array([-1]), f"{name}/flat"))
            nodes.append(helper.make_node("Reshape", [whole, f"{name}/flat"], [name]))
    found = onnx.ModelProto()
    found.CopyFrom(graph)
    del found.graph.input[:], found.graph.node[:]
    found.graph.node.extend([*nodes, *graph.graph.node])
    found.graph.initializer.extend(tensors)
    found.graph.input.extend(
        helper.make_tensor_value_info(prefix + source, SOURCES[source], [None, None])
        for source in sorted(sources)
    )
    return found


class ItemStates:
    """The items' graph: computes the states of a catalogue, chunk by chunk."""

    def __init__(self, graph: onnx.ModelProto | Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        model = str(graph) if isinstance(graph, Path) else graph.SerializeToString()
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(model, options, providers=providers)
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs: dict[str, list[str]] = {state: [] for state in STATES}
        for value in self._session.get_outputs():
            state = STATE_IDS if "int" in value.type or "bool" in value.type else ITEM_STATE
            self._outputs[state].append(value.name)

    def chunks(self, items: Catalogue, state: str) -> Iterator[Array]:
        """The rows of one state, [n, V] each."""
        names = self._outputs[state]
        for start in tqdm(range(0, len(items), CHUNK), f"{state} of items", leave=False):
            rows = slice(start, start + CHUNK)
            encoded = {"item_dense": items.dense[rows], "item_ids": items.ids[rows]}
            feed = {CATALOGUE + name: value for name, value in encoded.items()}
            found = self._session.run(names, {name: feed[name] for name in self._inputs})
            count = len(items.item_ids[rows])
            yield np.concatenate([part.reshape(count, -1) for part in found], axis=1)


def write_states(
    derived: Derived,
    foreign: Foreign,
    items: Catalogue,
    folder: Path,
    precision: Precision = "float32",
) -> dict[str, Mapped]:
    """Write the items' graph, and the state of every item in mapped files; numbers that are no ids
    in that precision."""
    assert derived.items is not None
    model = over_catalogue(derived.items, foreign.inputs)
    onnx.save(model, folder / ITEMS_FILE)
    graph, found = ItemStates(model), {}
    for state, dtype in {**STATES, ITEM_STATE: precision}.items():
        if width := sum(part.size for part in stored(derived.parts, state)):
            chunks = graph.chunks(items, state)
            found[state] = write_mapped(folder, state, chunks, dtype, (len(items), width))
    return found
