"""`DLRM_Net` of facebookresearch/dlrm in NumPy, from the paper (Naumov et al. 2019) and the options
that the program documents: the package is not on PyPI, so that its own code cannot run here. The
keys are those of its checkpoints."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def state(rows: list[int], width: int, bottom: list[int], top: list[int]) -> dict[str, Array]:
    """Drawn weights: `rows` of each table, `bottom` from the numbers to `width`, `top` to 1."""
    random = np.random.default_rng(0)
    found = {f"emb_l.{i}.weight": random.normal(size=(n, width)) for i, n in enumerate(rows)}
    for name, widths in (("bot_l", bottom), ("top_l", top)):
        for i, (before, after) in enumerate(pairwise(widths)):  # an activation stands between
            found[f"{name}.{2 * i}.weight"] = random.normal(size=(after, before)) / before**0.5
            found[f"{name}.{2 * i}.bias"] = random.normal(size=after) * 0.1
    return {key: value.astype(np.float32) for key, value in found.items()}


def logits(
    weights: dict[str, Array], dense: Array, members: list[list[list[int]]],
    interaction: str = "dot", itself: bool = False, sigmoid_bot: int = -1,
) -> Array:  # fmt: skip
    """The input of the last sigmoid [n]; `members` are the ids of each table's bag, row by row."""
    x = _net(weights, "bot_l", dense, sigmoid_bot, last=True)
    bags = [
        np.stack([weights[f"emb_l.{i}.weight"][ids].sum(0) for ids in rows])
        for i, rows in enumerate(members)
    ]
    vectors = [x, *bags]
    if interaction == "cat":
        return _net(weights, "top_l", np.concatenate(vectors, 1), -1, last=False)[:, 0]
    dots = [
        (vectors[i] * vectors[j]).sum(1)  # the lower triangle, row by row
        for i in range(len(vectors))
        for j in range(i + 1 if itself else i)
    ]
    return _net(weights, "top_l", np.concatenate((x, np.stack(dots, 1)), 1), -1, last=False)[:, 0]


def _net(weights: dict[str, Array], name: str, x: Array, sigmoid: int, last: bool) -> Array:
    count = sum(key.startswith(name) and key.endswith("weight") for key in weights)
    for i in range(count):
        x = x @ weights[f"{name}.{2 * i}.weight"].T + weights[f"{name}.{2 * i}.bias"]
        if i == sigmoid:
            x = 1 / (1 + np.exp(-x))
        elif last or i < count - 1:
            x = np.maximum(x, 0)
    return x
