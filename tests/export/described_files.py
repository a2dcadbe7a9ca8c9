"""A small cascade of ONNX files and the file that describes it, for tests that change it."""

import json
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper

USERS, ITEMS, WIDTH = 20, 40, 4
INT, FLOAT = TensorProto.INT64, TensorProto.FLOAT


class Tower(torch.nn.Module):
    """The user tower as PyTorch: a bag of one member, whose pad is row 0."""

    def __init__(self) -> None:
        super().__init__()
        self.users = torch.nn.EmbeddingBag(USERS + 2, WIDTH, mode="sum", padding_idx=0)

    def forward(self, user: torch.Tensor) -> torch.Tensor:
        return self.users(user.reshape(-1, 1))


def write(folder: Path) -> dict:
    """Write tables, vocabularies and models -> what cascade.yaml holds."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"u{i}" for i in range(USERS)]
    skus = [f"s{i}" for i in range(ITEMS)]
    rows = {
        key: dict(zip(values, (2 + random.permutation(len(values))).tolist(), strict=True))
        for key, values in {"user": names, "sku": skus}.items()
    }
    for name, values in rows.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    users = {"user": names, "age": random.integers(18, 80, USERS).astype(float)}
    items = {"id": range(100, 100 + ITEMS), "sku": skus, "price": random.random(ITEMS)}
    pq.write_table(pa.table(users), folder / "users.parquet")
    pq.write_table(pa.table({k: [*v] for k, v in items.items()}), folder / "items.parquet")
    tables = {
        "users": random.normal(size=(USERS + 2, WIDTH)).astype(np.float32),
        "items": random.normal(size=(ITEMS + 2, WIDTH)).astype(np.float32),
    }
    user = [("Gather", ["users", "user"], "u")]
    item = [("Gather", ["items", "sku"], "i"), ("Mul", ["i", "price"], "priced")]
    save(folder / "user.onnx", user, "u", tables, user=INT)
    save(folder / "item.onnx", item, "priced", tables, sku=INT, price=FLOAT)
    pair = [
        *user, *item, ("Mul", ["u", "priced"], "product"), ("ReduceSum", ["product", "one"], "dot"),
        ("Mul", ["age", "small"], "aged"), ("Add", ["dot", "aged"], "logit"),
        ("Sigmoid", ["aged"], "engagement"),
    ]  # fmt: skip
    more = {**tables, "one": np.array([1]), "small": np.array([0.01], np.float32)}
    inputs = {"user": INT, "age": FLOAT, "sku": INT, "price": FLOAT}
    save(folder / "rank.onnx", pair, "logit", more, **inputs)
    save(folder / "both.onnx", pair, "logit engagement", more, **inputs)
    golden(folder, tables, rows, users, items)
    categorical = {"kind": "categorical", "missing": 0, "unknown": 1}
    scored = {name: [name] if name in ("age", "price") else name for name in inputs}
    return {
        "name": "small",
        "features": [
            {"name": "user", "side": "user", **categorical, "vocabulary": "user.json"},
            {"name": "age", "side": "user", "kind": "dense"},
            {"name": "sku", "side": "item", **categorical, "vocabulary": "sku.json"},
            {"name": "price", "side": "item", "kind": "dense"},
        ],
        "items": {"file": "items.parquet", "id": "id"},
        "users": {"file": "users.parquet"},
        "retrieve": {
            "metric": "inner product",
            "user": {"onnx": "user.onnx", "inputs": {"user": "user"}},
            "item": {"onnx": "item.onnx", "inputs": {"sku": "sku", "price": ["price"]}},
        },
        "prerank": "none",
        "rank": {"onnx": "rank.onnx", "inputs": scored, "output": "logit"},
        "golden": {"file": "golden.parquet", "item": "id", "score": "score"},
    }


def golden(folder, tables, rows, users, items) -> None:
    """What the team's own code gives for every user and an item of each."""
    found = []
    for place, name in enumerate(users["user"]):
        goods = (place * 7) % ITEMS
        vector = tables["items"][rows["sku"][items["sku"][goods]]]
        product = float(tables["users"][rows["user"][name]] @ vector)
        dot = product * float(items["price"][goods]) + 0.01 * users["age"][place]
        score = 1 / (1 + np.exp(-dot))
        found.append({"user": name, "age": users["age"][place], "id": 100 + goods, "score": score})
    pq.write_table(pa.Table.from_pylist(found), folder / "golden.parquet")


def save(path: Path, nodes, outputs: str, tensors, opset=17, **inputs: int) -> None:
    """A graph of nodes (kind, inputs, output); ids are [n], numbers [n, 1]."""
    made = [helper.make_node(kind, reads, [out]) for kind, reads, out in nodes]
    read = {name for node in made for name in node.input}
    shapes = {INT: ["n"], FLOAT: ["n", 1]}
    graph = helper.make_graph(
        made,
        "graph",
        [helper.make_tensor_value_info(name, kind, shapes[kind]) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, ["n", None]) for name in outputs.split()],
        [numpy_helper.from_array(value, name) for name, value in tensors.items() if name in read],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(model, path)


def dump(described: dict, folder: Path) -> Path:
    """Write cascade.yaml."""
    path = folder / "cascade.yaml"
    path.write_text(yaml.safe_dump(described, sort_keys=False))
    return path
