"""Ready vectors that the file names, and the index over them."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from cascade.artifact import Array
from cascade.located import Node
from export.described import tables


def read(node: Node, expected: pa.Array | None = None) -> tuple[pa.Array, Array]:
    """`vectors: FILE.npy` with `ids: FILE`, or `vectors: FILE.parquet` with the columns `id` and
    `vector` -> ids [n], float32 [n, D]. With the ids of the items as `expected`, the ids are of
    their type; without `ids`, the rows are theirs. Raises LocatedError."""
    node.only("vectors", "ids", "id", "vector", "feature")
    source = node.take("vectors", lambda n: n)
    path = source.file_path()
    if path.suffix == ".npy":
        found = _npy(source)
        if found.ndim != 2:
            raise source.error(f"{path.name} has the shape {found.shape}; expected [n, D]")
        ids_node = node.take("ids", lambda n: n, None)
        if ids_node is not None:
            ids = _as_items(ids_node, *_ids(ids_node), expected)
        elif expected is not None:
            ids = expected
        else:
            raise node.error("`ids` is missing: the file with the id of each row of the vectors")
    elif path.suffix == ".parquet":
        table = tables.read(source)
        id_name, name = (node.take(key, Node.text, key) for key in ("id", "vector"))
        ids = _as_items(source, id_name, tables.column(source, table, id_name), expected)
        lists = tables.column(source, table, name).combine_chunks()
        try:
            found = (
                np.stack(lists.to_numpy(zero_copy_only=False)) if len(lists) else np.zeros((0, 0))
            )
        except (ValueError, pa.ArrowInvalid) as error:
            raise source.error(f"column {name} holds no vectors of one width: {error}") from error
    else:
        raise source.error(f"{path.name} came; expected vectors as .npy or .parquet")
    if len(ids) != len(found):
        raise source.error(
            f"{len(found)} vectors and {len(ids)} ids came; each row has one of both"
        )
    if found.dtype.kind not in "fiu" or found.ndim != 2 or not found.size:
        raise source.error(
            f"{path.name} holds {found.dtype} {[*found.shape]}; expected numbers [n, D]"
        )
    found = np.ascontiguousarray(found, np.float32)
    if not np.isfinite(found).all():
        row = int(np.argmin(np.isfinite(found).all(axis=1)))
        raise source.error(f"the vector of {ids[row]} (row {row}) has values that are not finite")
    return ids, found


def _as_items(node: Node, name: str, ids: pa.ChunkedArray, expected: pa.Array | None) -> pa.Array:
    return ids.combine_chunks() if expected is None else tables.known_ids(node, name, ids, expected)


def own_index(node: Node, vectors: Array, metric: str) -> Any:
    """The team's FAISS index over the vectors [N, D], in their order. Raises LocatedError: it does
    not hold them."""
    path = node.file_path()
    if not path.is_file():
        raise node.error(f"there is no file {path}")
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise node.error(f"FAISS cannot read {path.name}: {f'{error}'.splitlines()[-1]}") from error
    if not hasattr(index, "ntotal") or (index.ntotal, index.d) != vectors.shape:
        raise node.error(
            f"{path.name} holds {index.ntotal} vectors of width {index.d}, and there are "
            f"{vectors.shape[0]} of width {vectors.shape[1]}"
        )
    kinds = {faiss.METRIC_INNER_PRODUCT: ("inner product", "cosine"), faiss.METRIC_L2: ("l2",)}
    known = kinds.get(index.metric_type, ())
    if metric not in known:
        raise node.error(
            f"{path.name} orders by {' or '.join(known) or 'another metric'}, and `metric` says "
            f"{metric}"
        )
    some = np.random.default_rng(0).permutation(len(vectors))[:256]
    _, found = index.search(vectors[some], min(10, len(vectors)))
    hit = float((found == some[:, None]).any(axis=1).mean())
    if metric != "inner product" and hit < LEAST_HITS:
        raise node.error(
            f"only {hit:.0%} of the vectors find themselves among their ten nearest in "
            f"{path.name}: is it built over these vectors, in this order?"
        )
    if metric == "inner product":
        _check_order(node, index, vectors, some, found)
    return index


LEAST_HITS = 0.8


def _check_order(node: Node, index: Any, vectors: Array, some: Array, found: Array) -> None:
    """By inner product another vector may be nearer than oneself: the best are compared instead."""
    del index
    scores = vectors[some] @ vectors.T if len(vectors) * len(some) < 1 << 26 else None
    if scores is None:
        some, found = some[:16], found[:16]
        scores = vectors[some] @ vectors.T
    best = np.argpartition(-scores, min(9, scores.shape[1] - 1), axis=1)[:, : found.shape[1]]
    shared = [len({*a} & {*b}) / len(b) for a, b in zip(found.tolist(), best.tolist(), strict=True)]
    if np.mean(shared) < LEAST_HITS / 2:
        raise node.error(
            f"{node.file_path().name} finds {np.mean(shared):.0%} of the ten best by the vectors: "
            "is it built over these vectors, in this order?"
        )


def _npy(node: Node) -> Array:
    path = node.file_path()
    if not path.is_file():
        raise node.error(f"there is no file {path}")
    try:
        found: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise node.error(f"{path.name} is no .npy file of numbers: {error}") from error
    return found


def _ids(node: Node) -> tuple[str, pa.ChunkedArray]:
    """The name of the column of ids, as errors call it, and the column."""
    path = node.file_path()
    if path.suffix == ".npy":
        ids = _npy(node)
        if ids.dtype.kind not in "iuU" or ids.ndim != 1:
            came = f"{ids.dtype} {[*ids.shape]}"
            raise node.error(f"{path.name} holds {came}; expected integers or strings [n]")
        kind = {"i": pa.int64(), "u": pa.uint64(), "U": pa.large_string()}[ids.dtype.kind]
        return "of ids", pa.chunked_array([pa.array(ids.tolist(), kind)])
    if path.suffix in (".parquet", ".csv"):
        table = tables.read(node, None)
        if table.num_columns != 1:
            raise node.error(f"{path.name} has {table.num_columns} columns; expected one of ids")
        return table.column_names[0], table.column(0)
    if path.suffix == ".txt" and path.is_file():
        try:
            lines = path.read_text("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise node.error(f"{path.name} is not UTF-8: {error}") from error
        return "of ids", pa.chunked_array([pa.array(lines, pa.large_string())])
    raise node.error(f"{path} came; expected ids as .npy, .txt, .parquet or .csv")
