"""What a device can do at best: bytes copied and numbers multiplied in a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

DTYPES = ("float32", "float16", "bfloat16")
WARM_UP, TIMED, LONGEST_US = 3, 20, 2e6
# By device: bytes of the copied tensor, rows of the multiplied one.
COPIED = {"cpu": 1 << 28, "cuda": 1 << 31}
MULTIPLIED = {"cpu": 1024, "cuda": 8192}


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


def times_us(call: Callable[[], Any], device: torch.device) -> list[float]:
    """Some calls, the device's work included; fewer of a slow one."""
    times: list[float] = []
    while len(times) < WARM_UP + 1 or (len(times) < TIMED and sum(times) < LONGEST_US):
        start = time.perf_counter_ns()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append((time.perf_counter_ns() - start) / 1e3)
    return times[WARM_UP:]


def measure_device(device: torch.device, threads: int) -> Device:
    """Copy bandwidth and matrix rates, the best of a few runs.

    On a CPU the float32 rate is the better of torch's and of ONNX Runtime's: which of their
    libraries is the faster one depends on the processor.
    """
    source = torch.ones(COPIED[device.type] // 4, device=device)
    target = torch.empty_like(source)
    copy_us = min(times_us(lambda: target.copy_(source), device))
    rows, flops = MULTIPLIED[device.type], {}
    for name in DTYPES:
        matrix = torch.ones((rows, rows), dtype=getattr(torch, name), device=device)
        took_us = min(times_us(partial(torch.mm, matrix, matrix), device))
        flops[name] = 2 * rows**3 / took_us * 1e6
    if device.type == "cpu":
        flops["float32"] = max(flops["float32"], _onnx_flops(rows, threads))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return Device(name, 2 * source.nbytes / copy_us * 1e6, flops)


def _onnx_flops(rows: int, threads: int) -> float:
    """Operations a second of a float32 product in ONNX Runtime, one side of it known before."""
    weights = numpy_helper.from_array(np.ones((rows, rows), np.float32), "weights")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [rows, rows]) for n in ("x", "y")]
    node = helper.make_node("MatMul", ["x", "weights"], ["y"])
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {"x": np.ones((rows, rows), np.float32)}
    took_us = min(times_us(partial(session.run, None, feed), torch.device("cpu")))
    return 2 * rows**3 / took_us * 1e6


def median_us(call: Callable[[], Any], device: torch.device) -> float:
    """What a call takes; other work on the machine may be in it."""
    return float(np.median(times_us(call, device)))
