"""Runs the derived graphs beside the flat one, on all pairs of a few users and items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime

from cascade.artifact import Array
from export.foreign.split.assemble import ROWS
from export.foreign.split.derived import Derived
from export.foreign.split.values import ITEM, USER, Side
from export.foreign.split.writer import PREFIX

USERS, ITEMS = 3, 5
LARGEST_DIFFERENCE = 1e-4  # of the largest output, or of 1


def column(name: str, side: Side) -> str:
    """The name of one side's columns of an input that both sides feed."""
    return f"{PREFIX}{name}/{side}"


def difference(
    model: onnx.ModelProto,
    derived: Derived,
    sides: Mapping[str, Sequence[Side]],
    feeds: Callable[[int], Mapping[str, Array]],
    output: str,
) -> float:
    """The largest difference from the flat graph's output, as a share of the largest of that, or of
    1. Raises what ONNX Runtime raises."""
    users, items = dict(feeds(USERS)), dict(feeds(ITEMS))
    user, item = (grid.ravel() for grid in np.indices((USERS, ITEMS)))
    fed: dict[Side, dict[str, Array]] = {USER: {}, ITEM: {}}
    flat = {}
    for name, of_columns in sides.items():
        own = np.array([side == USER for side in of_columns])
        flat[name] = np.where(
            own if users[name].ndim > 1 else own[0], *(users[name][user], items[name][item])
        )
        for side, values in ((USER, users[name]), (ITEM, items[name])):
            mine = own if side == USER else ~own
            if mine.all():
                fed[side][name] = values
            elif mine.any():
                fed[side][column(name, side)] = values[:, mine]
    expected = _run(model, flat)[output]
    parts = {}
    if derived.items is not None:
        states = _run(derived.items, fed[ITEM])
        parts = {part.name: states[part.name][item] for part in derived.parts}
    rows = np.tile(np.arange(ITEMS), (USERS, 1))
    found = _run(derived.pairs, {**fed[USER], **parts, ROWS: rows})[derived.output]
    if found.shape != expected.shape:
        return float("inf")
    wide = expected.astype(np.float64)
    return float(np.abs(found - wide).max(initial=0) / max(1.0, np.abs(wide).max(initial=0)))


def _run(model: onnx.ModelProto, feed: Mapping[str, Array]) -> dict[str, Any]:
    """All outputs, by name; `feed` may have more than the inputs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    asked = {value.name: feed[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, asked), strict=True))
