"""A retriever that was trained elsewhere: a user tower, and an item tower or ready item vectors.

The index searches by inner products. Under cosine both vectors are scaled to length 1; under L2 the
user's vector gets a 1 and the item's -|v|^2 / 2 as a last number, so that the largest inner product
is the smallest distance. An index file of the team's own is searched as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import faiss
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from tqdm import tqdm

from cascade.artifact import Array, Description, read_json
from cascade.files import sha256, write_json
from cascade.models.scorer import Scorer
from cascade.schema import Schema
from cascade.spec import RETRIEVE
from cascade.training import checkpoint
from export import whole
from export.artifacts.onnx_file import EXTERNAL_BYTES, OPSET, WEIGHTS_FILE
from export.artifacts.stage_files import CHUNK, item_states
from export.context import FOREIGN_RETRIEVER as FILE
from export.context import Catalogue
from export.foreign.apart import over_encoded
from export.foreign.inputs import ForeignError, InputMap
from export.foreign.onnx_model import Foreign
from export.foreign.split.assemble import nodes_of

Metric = Literal["inner product", "cosine", "l2"]
METRICS: tuple[Metric, ...] = get_args(Metric)
USER, ITEM = "user.onnx", "item.onnx"
VECTORS, KEYS, INDEX = "vectors.npy", "vector_keys.npy", "index.faiss"
PREFIX = "tower/"


class ForeignRetriever(Scorer):
    """The folder `retrieve` of a described cascade. Raises ForeignError: it does not fit."""

    def __init__(self, folder: Path, schema: Schema) -> None:
        super().__init__(schema)
        self.folder = folder
        content = read_json(folder / FILE, dict)
        self.metric: Metric = content["metric"]
        self.own_index = folder / INDEX if (folder / INDEX).exists() else None
        self.tower = _session(folder / USER, schema)
        self.item_tower = _session(folder / ITEM, schema) if (folder / ITEM).exists() else None
        self.item_width = self.user_width = content["width"] + (self.metric == "l2")
        if self.own_index and self.metric == "l2":
            self.item_width = self.user_width = content["width"]

    @property
    def facts(self) -> dict[str, Any]:
        """What release.json says about it."""
        return {"retriever": self.tower.path.name, "metric": self.metric}

    def user(self, dense: Tensor, ids: Tensor) -> Tensor:
        rows = {"user_dense": dense.numpy(), "user_ids": ids.numpy()}
        found = self.tower.run(rows).astype(np.float32).reshape(len(ids), -1)
        return torch.from_numpy(self._user(found))

    def item(self, dense: Tensor, ids: Tensor) -> Tensor:
        raise ForeignError("the item vectors are those of a catalogue: see item_vectors")

    def cross(self, user: Tensor, item: Tensor) -> Tensor:
        return torch.matmul(item, user.unsqueeze(-1)).squeeze(-1)

    def item_vectors(self, items: Catalogue) -> Iterator[Array]:
        """The vectors of a catalogue, chunk by chunk: float32 [n, D]. Raises ForeignError: an item
        has none, or one that is not finite."""
        stored = None if self.item_tower else self._stored(items.item_ids)
        for start in tqdm(range(0, len(items), CHUNK), "item vectors", leave=False):
            rows = slice(start, start + CHUNK)
            count = len(items.item_ids[rows])
            if stored is not None:
                vectors = np.asarray(self._vectors[stored[rows]], np.float32)
            else:
                assert self.item_tower
                encoded = {"item_dense": items.dense[rows], "item_ids": items.ids[rows]}
                vectors = self.item_tower.run(encoded).astype(np.float32).reshape(count, -1)
            yield self._item(vectors, items.item_ids[rows])

    def write(self, folder: Path) -> Tower:
        """Write the user tower of a version folder, model.onnx and stage.json -> what to compare it
        with."""
        model = _over_users(self.tower, self.metric, bool(self.own_index))
        model.metadata_props.add(key="stage", value=RETRIEVE)
        model.metadata_props.add(key="schema_hash", value=self.schema.hash)
        (folder / WEIGHTS_FILE).unlink(missing_ok=True)
        onnx.save(
            model, str(folder / "model.onnx"), save_as_external_data=True, location=WEIGHTS_FILE,
            size_threshold=EXTERNAL_BYTES,
        )  # fmt: skip
        onnx.checker.check_model(str(folder / "model.onnx"))
        inputs = ("user_dense", "user_ids")
        Description(RETRIEVE, self.schema.hash, inputs, ("user_vector",), mapped={}).save(folder)
        return Tower(self)

    def _stored(self, item_ids: Array) -> Array:
        """The rows of the ready vectors that belong to items."""
        self._vectors = np.load(self.folder / VECTORS, mmap_mode="r")
        keys = np.load(self.folder / KEYS)
        order = np.argsort(keys)
        places = order[np.searchsorted(keys[order], item_ids).clip(max=len(keys) - 1)]
        if (keys[places] != item_ids).any():
            missing = int((keys[places] != item_ids).sum())
            raise ForeignError(
                f"{missing} items have no vector among the ready ones: describe the cascade with "
                "the new vectors, and publish it"
            )
        return places

    def _user(self, vectors: Array) -> Array:
        if self.metric == "cosine":
            return _unit(vectors)
        if self.metric == "l2" and not self.own_index:
            return np.concatenate((vectors, np.ones((len(vectors), 1), np.float32)), axis=1)
        return vectors

    def _item(self, vectors: Array, item_ids: Array) -> Array:
        if not np.isfinite(vectors).all():
            row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
            raise ForeignError(
                f"the vector of item {item_ids[row]} has values that are not finite numbers"
            )
        if self.metric == "cosine":
            lengths = np.linalg.norm(vectors, axis=1)
            if not lengths.all():
                raise ForeignError(
                    f"the vector of item {item_ids[int(np.argmin(lengths))]} has length 0, which "
                    "has no cosine: leave the item out, or search by inner product"
                )
            return _unit(vectors)
        if self.metric == "l2" and not self.own_index:
            squares = (vectors.astype(np.float64) ** 2).sum(axis=1, keepdims=True)
            return np.concatenate((vectors, (-squares / 2).astype(np.float32)), axis=1)
        return vectors


class Tower(nn.Module):
    """What the graph of the user tower is compared with: the team's file, run as it came."""

    def __init__(self, retriever: ForeignRetriever) -> None:
        super().__init__()
        self.retriever = retriever

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        return self.retriever.user(dense, ids)


def item_vectors(retriever: Scorer, items: Catalogue) -> Iterator[Array]:
    """The vectors of a catalogue by any retriever, chunk by chunk: float32 [n, D]. Raises
    ArtifactError, ForeignError: a number is not finite."""
    if isinstance(retriever, ForeignRetriever):
        yield from retriever.item_vectors(items)
        return
    start = 0
    for vectors in item_states(retriever, items, RETRIEVE):
        yield whole.check_states(vectors, start, "item vectors", "float32")
        start += len(vectors)


def open_retriever(checkpoints: Path, schema: Schema) -> Scorer:
    """The retriever of a folder of checkpoints, from elsewhere or of training. Raises
    CheckpointError, ForeignError, SchemaError."""
    folder = checkpoints / RETRIEVE
    if (folder / FILE).exists():
        return ForeignRetriever(folder, schema)
    return checkpoint.load(folder, schema)


def save(folder: Path, metric: Metric, width: int) -> None:
    """Write what `ForeignRetriever` reads beside the towers."""
    files = [path for path in sorted(folder.iterdir()) if path.name != FILE]
    digests = {path.name: sha256(path)[:16] for path in files}
    write_json(folder / FILE, {"metric": metric, "width": width, "files": digests})


def table_tower(table: Array, path: Path) -> None:
    """Write a tower that looks ready user vectors [U, D] up by the encoded id `user` [n]."""
    node = helper.make_node("Gather", ["table", "user"], ["vector"], axis=0)
    graph = helper.make_graph(
        [node],
        "user vectors",
        [helper.make_tensor_value_info("user", TensorProto.INT64, ["rows"])],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["rows", table.shape[1]])],
        [numpy_helper.from_array(np.ascontiguousarray(table, np.float32), "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    data = f"{path.name}.data"
    path.with_name(data).unlink(missing_ok=True)
    onnx.save(
        model, str(path), save_as_external_data=True, location=data, size_threshold=EXTERNAL_BYTES
    )


def metric_of(index: Any) -> Metric | None:
    """The metric by which a FAISS index orders; None for one that is not searched by."""
    kinds: dict[int, Metric] = {faiss.METRIC_INNER_PRODUCT: "inner product", faiss.METRIC_L2: "l2"}
    return kinds.get(index.metric_type)


def _session(path: Path, schema: Schema) -> Foreign:
    mapping = InputMap.load(path.with_suffix(".json"))
    side: Any = "user" if path.name == USER else "item"
    return Foreign(
        path, InputMap(path, mapping.features, mapping.output, mapping.meaning, side), schema
    )


def _unit(vectors: Array) -> Array:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, np.float32(1e-12))


def _add_prefix(graph: onnx.GraphProto) -> None:
    """Put the prefix before every name of the graph, in place; the graphs in its nodes keep their
    own names, and read the new ones from outside."""
    names = [value.name for value in (*graph.input, *graph.output, *graph.initializer)]
    names += [name for node in graph.node for name in node.output]
    new = {name: PREFIX + name for name in names if name}
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = new[value.name]
    for node in graph.node:
        node.output[:] = [new.get(name, name) for name in node.output]
        for inner in nodes_of(node):
            inner.input[:] = [new.get(name, name) for name in inner.input]
            for attribute in inner.attribute:
                for value in attribute.g.output:
                    value.name = new.get(value.name, value.name)


def _over_users(tower: Foreign, metric: Metric, own_index: bool) -> onnx.ModelProto:
    """The tower over the encoded tensors of users, its vector as the index searches by it."""
    model = onnx.load(tower.path)
    del model.graph.value_info[:]
    _add_prefix(model.graph)
    inputs = [replace(i, name=PREFIX + i.name) for i in tower.inputs]
    model = over_encoded(model, inputs, "")
    graph, vector = model.graph, PREFIX + tower.output
    flat, cast = f"{PREFIX}vectors", f"{PREFIX}float"
    graph.initializer.append(numpy_helper.from_array(np.array([0, -1]), f"{PREFIX}shape"))
    add = graph.node.append
    add(helper.make_node("Cast", [vector], [cast], to=TensorProto.FLOAT))
    add(helper.make_node("Reshape", [cast, f"{PREFIX}shape"], [flat]))
    last = flat
    if metric == "cosine":
        last = f"{PREFIX}unit"
        add(helper.make_node("LpNormalization", [flat], [last], axis=1, p=2))
    elif metric == "l2" and not own_index:
        last, one = f"{PREFIX}with_one", f"{PREFIX}one"
        pads = f"{PREFIX}pads"
        graph.initializer.append(numpy_helper.from_array(np.array([0, 0, 0, 1]), pads))
        graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), one))
        add(helper.make_node("Pad", [flat, pads, one], [last]))
    add(helper.make_node("Identity", [last], ["user_vector"]))
    del graph.output[:]
    width = ["batch", None]
    graph.output.append(helper.make_tensor_value_info("user_vector", TensorProto.FLOAT, width))
    asked = {value.name for value in graph.input}
    for name, kind in (("user_dense", TensorProto.FLOAT), ("user_ids", TensorProto.INT64)):
        if name not in asked:  # every stage gets both
            graph.input.append(helper.make_tensor_value_info(name, kind, ["batch", None]))
    return model
