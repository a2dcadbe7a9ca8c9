"""What a team writes to disk: models in a form, tables, and the file that describes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from perf.own.team import (
    AGE_MEAN,
    AGE_STD,
    BRANDS,
    LENGTH,
    TAGS,
    ItemTower,
    Ranker,
    Team,
    UserTower,
)

Form = Literal["onnx", "torchscript", "pt2", "module", "vectors"]
FORMS: tuple[Form, ...] = get_args(Form)
GOLDEN_ROWS = 64
USER_INPUTS: dict[str, Any] = {
    "user": "user", "country": "country", "history": "history", "numbers": ["age", "visits"],
}  # fmt: skip
ITEM_INPUTS = {name: name for name in ("sku", "category", "brand", "tags", "price")}


def write(team: Team, form: Form, folder: Path, ids: str = "id") -> Path:
    """Write all that the form needs -> the file; `ids` is the column of the items' ids."""
    folder.mkdir(parents=True, exist_ok=True)
    _tables(team, folder)
    user, item = _towers(team)
    described: dict[str, Any] = {
        "name": "shop",
        "features": _features(),
        "items": {"file": "items.parquet", "id": ids},
        "users": {"file": "users.parquet"},
        "retrieve": {"metric": "inner product"},
        "golden": {"file": "golden.parquet", "item": ids, "score": "score"},
    }
    arguments = (team.user_rows(team.users[:4]), team.item_rows(team.items[:4]))
    models: dict[str, tuple[nn.Module, tuple[Tensor, ...], dict[str, Any]]] = {
        "user": (user, arguments[0], USER_INPUTS),
        "item": (item, arguments[1], ITEM_INPUTS),
        "prerank": (team.preranker, (*arguments[0], *arguments[1]), USER_INPUTS | ITEM_INPUTS),
        "rank": (team.ranker, (*arguments[0], *arguments[1]), USER_INPUTS | ITEM_INPUTS),
    }
    kind: Any = "onnx" if form == "vectors" else form
    for name, (module, rows, inputs) in models.items():
        entry = {**_saved(module, name, rows, kind, folder, team), "inputs": inputs}
        if name in ("user", "item"):
            described["retrieve"][name] = entry
        else:
            described[name] = {**entry, "output": "logit"}
    if form == "vectors":
        described["retrieve"] |= _vectors(team, folder)
    path = folder / "cascade.yaml"
    path.write_text(yaml.safe_dump(described, sort_keys=False, allow_unicode=True))
    return path


def _features() -> list[dict[str, Any]]:
    reserved = {"missing": 0, "unknown": 1}

    def known(name: str, side: str, kind: str = "categorical", file: str = "", **more: Any) -> Any:
        vocabulary = {"vocabulary": f"{file or name}.json"}
        return {"name": name, "side": side, "kind": kind, **vocabulary, **reserved, **more}

    return [
        known("user", "user"),
        known("country", "user"),
        known("history", "user", "sequence", "sku", length=LENGTH, pad="right"),
        {
            "name": "age", "side": "user", "kind": "dense", "transform": "standardise",
            "mean": AGE_MEAN, "std": AGE_STD, "missing": AGE_MEAN,
        },
        {"name": "visits", "side": "user", "kind": "dense", "transform": "log1p"},
        known("sku", "item"),
        known("category", "item"),
        {
            "name": "brand", "side": "item", "kind": "categorical",
            "hash": {"buckets": BRANDS, "function": "crc32", "offset": 1},
        },
        known("tags", "item", "bag", "tag", length=TAGS),
        {
            "name": "price", "side": "item", "kind": "dense", "transform": "log1p",
            "mean": 3, "std": 1.5,
        },
    ]  # fmt: skip


def _tables(team: Team, folder: Path) -> None:
    for name, values in team.dictionaries.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    pq.write_table(pa.Table.from_pylist(team.items), folder / "items.parquet")
    pq.write_table(pa.Table.from_pylist(team.users), folder / "users.parquet")
    random = np.random.default_rng(3)
    rows = []
    for _ in range(GOLDEN_ROWS):
        user = team.users[random.integers(len(team.users))]
        item = int(random.integers(len(team.items)))
        score = float(team.scores(team.ranker, user, [item])[0])
        rows.append(
            {**user, "sku": team.items[item]["sku"], "id": team.items[item]["id"], "score": score}
        )
    pq.write_table(pa.Table.from_pylist(rows), folder / "golden.parquet")


def _towers(team: Team) -> tuple[UserTower, ItemTower]:
    made = UserTower(team.sizes).eval(), ItemTower(team.sizes).eval()
    for tower in made:
        tower.load_state_dict(team.tower.state_dict())
    return made


def _saved(
    module: nn.Module, name: str, rows: tuple[Tensor, ...], form: Form, folder: Path, team: Team
) -> dict[str, Any]:
    """Save a model as its team would -> its entry in the file."""
    inputs = {"user": USER_INPUTS, "item": ITEM_INPUTS}.get(name, USER_INPUTS | ITEM_INPUTS)
    dynamic = tuple({0: torch.export.Dim("rows")} for _ in rows)
    if form == "onnx":
        torch.onnx.export(
            module, rows, str(folder / f"{name}.onnx"), dynamo=True, input_names=[*inputs],
            dynamic_shapes=dynamic, opset_version=18, verbose=False,
        )  # fmt: skip
        return {"onnx": f"{name}.onnx"}
    if form == "torchscript":
        traced = torch.jit.trace(module, rows, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, folder / f"{name}.pt")
        return {"torchscript": f"{name}.pt"}
    if form == "pt2":
        program = torch.export.export(module, rows, dynamic_shapes=dynamic, strict=False)
        torch.export.save(program, folder / f"{name}.pt2")
        return {"pt2": f"{name}.pt2"}
    state = {key: value.contiguous().clone() for key, value in module.state_dict().items()}
    save_file(state, folder / f"{name}.safetensors")
    hidden = {"prerank": [16], "rank": [64, 32]}.get(name)
    config: dict[str, Any] = {"sizes": team.sizes} | ({"hidden": hidden} if hidden else {})
    target = f"perf.own.team:{type(module).__name__}"
    return {"module": target, "weights": f"{name}.safetensors", "config": config}


def _vectors(team: Team, folder: Path) -> dict[str, Any]:
    """Ready item vectors, in an order of their own, and a FAISS index over them."""
    vectors = team.vectors()[1].numpy()
    np.save(folder / "items.npy", vectors)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    faiss.write_index(index, str(folder / "theirs.faiss"))
    return {"item": {"vectors": "items.npy"}, "index": "theirs.faiss"}


__all__ = ["FORMS", "Form", "Ranker", "write"]
