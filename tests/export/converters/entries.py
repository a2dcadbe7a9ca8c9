"""Entries of a cascade.yaml with a converter, over the features of the fixtures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import nn

from cascade.located import load
from export.described import converters, features
from export.described.forms import Form

FIXTURES = Path(__file__).with_name("fixtures")
IDS = ["user", "shop", "item", "tags"]
NUMBERS = ["n0", "n1", "n2"]
INPUTS = {"dense": NUMBERS, "ids": IDS}
SIZES = {"user": 9, "shop": 7, "item": 11, "tags": 8}
FEATURES: list[dict[str, Any]] = [
    {"name": "user", "side": "user", "kind": "categorical", "integer": {"size": 9}, "missing": 0},
    {"name": "shop", "side": "item", "kind": "categorical", "integer": {"size": 7}},
    {"name": "item", "side": "item", "kind": "categorical", "integer": {"size": 11}},
    {
        "name": "tags", "side": "item", "kind": "bag", "integer": {"size": 8}, "length": 3,
        "missing": 0, "pad": "right",
    },
    {"name": "n0", "side": "user", "kind": "dense"},
    {"name": "n1", "side": "item", "kind": "dense"},
    {"name": "n2", "side": "item", "kind": "dense"},
]  # fmt: skip


def rows() -> dict[str, Any]:
    """dense [24, 3], ids [24, 6], of which the last three are tags; logits by model."""
    with np.load(FIXTURES / "rows.npz") as found:
        return dict(found)


def form(folder: Path, entry: dict[str, Any], sides: tuple[Any, ...] = ("user", "item")) -> Form:
    """The entry as `rank` of a file in `folder`."""
    path = folder / "cascade.yaml"
    path.write_text(yaml.safe_dump({"features": FEATURES, "rank": {"inputs": INPUTS} | entry}))
    root = load(path).mapping()
    return Form(root["rank"], features.read(root["features"], "test", False), sides)


def converted(folder: Path, entry: dict[str, Any]) -> nn.Module:
    """The module of an entry."""
    found = form(folder, entry)
    read = {name: one.features for name, one in found.inputs.items()}
    return converters.converted(found.node, read, found.features.schema)


def arguments(entry: dict[str, Any], count: int | None = None) -> dict[str, Any]:
    """What the module of an entry takes of the first rows."""
    found = rows()
    return {name: found[name][:count] for name in converters.INPUTS if name in entry["inputs"]}
