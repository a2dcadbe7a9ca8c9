"""The work that a stage cannot avoid: the bytes it has to read and the multiply-adds of its matrix
products. What a device needs for them at best is the floor under the stage's latency.

Weights are left out: a batch reads them once, and they fit a cache. A floor without them is lower,
and so still one.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cascade.artifact import ONNX_FILE, Array, Description

PRODUCTS = ("MatMul", "Gemm", "MatMulInteger")
LOOKED_UP_LAST = "catalogue_ids"  # for what is kept alone


@dataclass(frozen=True)
class Device:
    """What a device was measured to do.

    Args:
        bytes_per_s: of a large copy, counting what is read and what is written.
        flops: floating-point operations a second of a large square matrix product, by dtype.
    """

    name: str
    bytes_per_s: float
    flops: dict[str, float]


@dataclass(frozen=True)
class Work:
    """Of one batch."""

    read_bytes: int
    multiply_adds: int

    def floor_us(self, device: Device, dtype: str = "float32") -> float:
        """The longer of the two, as if they overlapped perfectly."""
        reading = self.read_bytes / device.bytes_per_s
        computing = 2 * self.multiply_adds / device.flops[dtype]
        return 1e6 * max(reading, computing)


def of_search(users: int, items: int, width: int, item_bytes: int) -> Work:
    """Exact search: the whole matrix is read once for all users."""
    return Work(items * width * item_bytes, users * items * width)


def of_graph(folder: Path, inputs: tuple[Array, ...]) -> Work:
    """A version folder's graph over one batch. Rows, the last input of a scoring stage, are each
    read once from every mapped file.

    The products are counted where they happen: ONNX Runtime writes down the shapes of what it ran.
    """
    description = Description.load(folder)
    state = sum(
        mapped.shape[1] * np.dtype(mapped.dtype).itemsize
        for name, mapped in description.mapped.items()
        if name != LOOKED_UP_LAST
    )
    gathered = int((inputs[-1] >= 0).sum()) * state if state else 0
    return Work(gathered, _multiply_adds(folder, description, inputs))


def _multiply_adds(folder: Path, description: Description, inputs: tuple[Array, ...]) -> int:
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="work-") as scratch:
        options = onnxruntime.SessionOptions()
        # Fused products hide how they lie; constants that are folded are no work of a request.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "profile")
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            str(folder / ONNX_FILE), options, providers=["CPUExecutionProvider"]
        )
        named = dict(zip(description.inputs, inputs, strict=True))
        session.run(None, {i.name: named[i.name] for i in session.get_inputs()})
        events = json.loads(Path(session.end_profiling()).read_text())
    return sum(
        _product(event["args"])
        for event in events
        if event.get("cat") == "Node" and event["args"].get("op_name") in PRODUCTS
    )


def _product(event: dict[str, Any]) -> int:
    """[..., m, k] x [..., k, n] -> [..., m, n] takes k multiply-adds for each of the last."""
    (left,) = event["input_type_shape"][0].values()
    (made,) = event["output_type_shape"][0].values()
    return int(math.prod(made)) * int(left[-1])
