"""`python -m perf.roofline --repository DIR --device cpu|cuda`: how far from the hardware?

The floor under a stage's latency is the longer of two times: to read the bytes that it has to read,
and to compute the matrix products that it has to compute (Williams et al., "Roofline", CACM 2009).
Weights are left out: a batch reads them once, and they fit a cache. Exact retrieval is measured
whatever index the repository serves. The ratios are those of 32 users; on a GPU their keys begin
with `gpu_`.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import torch

from cascade.artifact import ONNX_FILE, Array, Description
from cascade.config import Serving, of_release
from cascade.errors import run
from cascade.files import write_json
from cascade.index.exact import ExactIndex
from cascade.release import newest_version, read_release
from cascade.runtime.devices import device_of
from cascade.runtime.load import load_graph
from cascade.server.threads import cores
from cascade.spec import CATALOGUE_IDS, RETRIEVE, STAGES, sizes_from
from cascade.spec import stage_path as path_of
from cascade.stages.load import load_stage
from export.releases.rewire import serving_of
from perf.harness import payload
from perf.harness.payload import Payload
from perf.harness.table import figures

# User-item pairs a second of one H200 in MLPerf Inference, DLRM-v2, offline.
MLPERF_DLRM_V2_H200_PAIRS_PER_S = 21.5e6
BATCHES, SEARCH = (1, 32), "exact search"
SEARCHED = {"cpu": 100_000, "cuda": 1_000_000}  # vectors
PRODUCTS = ("MatMul", "Gemm", "MatMulInteger")
WARM_UP, TIMED, LONGEST_US = 3, 20, 2e6
# By device: bytes of the copied tensor, rows of the multiplied one.
COPIED = {"cpu": 1 << 28, "cuda": 1 << 31}
MULTIPLIED = {"cpu": 1024, "cuda": 8192}
PRODUCT = """<ir_version: 10, opset_import: ["" : 20]>
product (float[n, n] x, float[n, n] weights) => (float[n, n] y) { y = MatMul(x, weights) }"""


class Device(NamedTuple):
    """What a device does at best: bytes read and written by a large copy, and floating-point
    operations of a large square matrix product by dtype; both in a second."""

    name: str
    bytes_per_s: float
    flops: dict[str, float]


class Work(NamedTuple):
    """What one batch takes."""

    read_bytes: int
    multiply_adds: int

    def floor_us(self, device: Device, dtype: str = "float32") -> float:
        """The longer of the two, as if they overlapped perfectly."""
        reading = self.read_bytes / device.bytes_per_s
        computing = 2 * self.multiply_adds / device.flops[dtype]
        return 1e6 * max(reading, computing)


def row(
    stage: str, users: int, took_us: float, pairs: float, work: Work | None, floor_us: float | None
) -> dict[str, Any]:
    """One stage at one batch: its median, arrays in and arrays out. A stage whose index decides
    what has to be read has no work and no floor."""
    return {
        **{"stage": stage, "users": users, "measured_us": took_us, "floor_us": floor_us},
        "over_floor": took_us / floor_us if floor_us else None,
        "pairs_per_s": pairs / took_us * 1e6,
        "work": work._asdict() if work else None,
    }


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
    """Copy bandwidth and matrix rates, the best of a few runs; on a CPU of torch and of ONNX
    Runtime, whose speeds depend on the processor."""
    source = torch.ones(COPIED[device.type] // 4, device=device)
    target = torch.empty_like(source)
    copy_us = min(times_us(lambda: target.copy_(source), device))
    rows, took_us = MULTIPLIED[device.type], {}
    for name in ("float32", "float16", "bfloat16"):
        matrix = torch.ones((rows, rows), dtype=getattr(torch, name), device=device)
        took_us[name] = min(times_us(partial(torch.mm, matrix, matrix), device))
    if device.type == "cpu":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        product = onnx.parser.parse_model(PRODUCT).SerializeToString()
        session = onnxruntime.InferenceSession(product, options)
        feed = dict.fromkeys(("x", "weights"), np.ones((rows, rows), np.float32))
        onnx_us = times_us(partial(session.run, None, feed), device)
        took_us["float32"] = min(took_us["float32"], *onnx_us)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    flops = {dtype: 2 * rows**3 / us * 1e6 for dtype, us in took_us.items()}
    return Device(name, 2 * source.nbytes / copy_us * 1e6, flops)


def work_of_search(users: int, items: int, width: int, item_bytes: int) -> Work:
    """Exact search: the whole matrix is read once for all users."""
    return Work(items * width * item_bytes, users * items * width)


def work_of_graph(folder: Path, inputs: tuple[Array, ...]) -> Work:
    """A version folder's graph over one batch. Rows, the last input of a scoring stage, are each
    read once from every mapped file but that of the ids."""
    description = Description.load(folder)
    state = sum(
        mapped.shape[1] * np.dtype(mapped.dtype).itemsize
        for name, mapped in description.mapped.items()
        if name != CATALOGUE_IDS
    )
    gathered = int((inputs[-1] >= 0).sum()) * state if state else 0
    return Work(gathered, _multiply_adds(folder, description, inputs))


def _multiply_adds(folder: Path, description: Description, inputs: tuple[Array, ...]) -> int:
    """Of the products, from the shapes that ONNX Runtime's profiler writes down:
    [..., m, k] x [..., k, n] -> [..., m, n] takes k multiply-adds for each of the last."""
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
    total = 0
    for node in (event["args"] for event in events if event.get("cat") == "Node"):
        if node.get("op_name") in PRODUCTS:
            (left,) = node["input_type_shape"][0].values()
            (made,) = node["output_type_shape"][0].values()
            total += math.prod(made) * left[-1]
    return total


def measure_search(
    device: torch.device, found: Device, items: int, width: int, k: int, recorded: bool
) -> list[dict[str, Any]]:
    """Exact retrieval over random unit vectors."""
    generator = torch.Generator(device).manual_seed(0)
    vectors = torch.empty((items, width), dtype=torch.float16, device=device)
    for part in torch.split(vectors, 1 << 16):
        drawn = torch.randn(part.shape, generator=generator, device=device)
        part.copy_(torch.nn.functional.normalize(drawn, dim=1))
    index = ExactIndex(vectors, recorded)
    dtype, rows = "float16" if device.type == "cuda" else "float32", []
    for users in BATCHES:
        queries = vectors[:users].float().cpu().numpy()
        took_us = median(times_us(partial(index.search, queries, k), device))
        work = work_of_search(users, items, width, vectors.element_size())
        floor_us = work.floor_us(found, dtype)
        rows.append(row(SEARCH, users, took_us, users * items, work, floor_us))
    return rows


def measure(
    repository: Path, serving: Serving, users: Payload, found: Device, items: int
) -> list[dict[str, Any]]:
    """Every stage as served, fed by the one before; exact retrieval over `items` vectors."""
    version = newest_version(repository)
    release = read_release(repository, version)
    folders = {name: repository / path_of(release["topology"], name, version) for name in STAGES}
    candidates = sizes_from(release["sizes"]).candidates
    _, product = of_release(release)
    stages = {
        n: load_stage(n, folder, serving, candidates, product=product)
        for n, folder in folders.items()
    }
    device, rows = device_of(serving), list[dict[str, Any]]()
    encoded: tuple[Array, ...] = ()
    for batch in BATCHES:
        inputs: tuple[Array, ...] = users.rows(0, batch)
        for name, stage in stages.items():
            took_us = median(times_us(partial(stage, *inputs), device))
            outputs = stage(*inputs)
            if name == RETRIEVE:
                encoded, outputs = outputs[:2], outputs[2:3]
                rows.append(row(name, batch, took_us, batch * release["items"], None, None))
            else:
                work = work_of_graph(folders[name], inputs)
                pairs, floor_us = int((inputs[-1] >= 0).sum()), work.floor_us(found)
                rows.append(row(name, batch, took_us, pairs, work, floor_us))
            inputs = (*encoded, outputs[-1])
    _, tower = load_graph(folders[RETRIEVE], None, Serving(threads=1))
    width, k = int(tower(*encoded)[0].shape[1]), min(items, candidates)
    return rows + measure_search(device, found, items, width, k, serving.cuda_graphs)


def summary(device: Device, rows: list[dict[str, Any]], gpu: bool) -> dict[str, Any]:
    """What goes into the JSON file."""
    found: dict[str, Any] = {}
    for line in (line for line in rows if line["users"] == BATCHES[-1]):
        name = ("gpu_" if gpu else "") + line["stage"].replace(SEARCH, "retrieval")
        found |= {f"{name}_over_floor": line["over_floor"]} if line["work"] else {}
        found |= {f"{name}_pairs_per_s": line["pairs_per_s"]} if line["stage"] in STAGES else {}
    found["mlperf_dlrm_v2_h200_pairs_per_s"] = MLPERF_DLRM_V2_H200_PAIRS_PER_S
    return {**found, "device": device._asdict(), "rows": rows}


def report(device: Device, rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = pd.json_normalize(rows).set_index("stage")
    cells = {
        "users": lines["users"].map(str),
        "measured µs": lines["measured_us"],
        "floor µs": lines["floor_us"],
        "ratio": lines["over_floor"],
        "MB": lines["work.read_bytes"] / 1e6,
        "M mult-adds": lines["work.multiply_adds"] / 1e6,
        "M pairs/s": lines["pairs_per_s"] / 1e6,
    }
    rates = ", ".join(f"{name} {rate / 1e12:.2f}" for name, rate in device.flops.items())
    copies = f"copies {device.bytes_per_s / 1e9:.1f} GB/s; TFLOP/s of products: {rates}"
    mlperf = f"MLPerf DLRM-v2, offline, one H200: {MLPERF_DLRM_V2_H200_PAIRS_PER_S / 1e6:.1f}"
    made = figures(pd.DataFrame(cells), "stage")
    return f"{device.name}: {copies}\n\n{made}\n\nFor comparison: {mlperf} M pairs/s"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m perf.roofline", description=__doc__)
    add = parser.add_argument
    add("--repository", type=Path, required=True, help="exported model repository")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--users", type=Path, help="users.jsonl (default: generated users)")
    add("--items", type=int, help="vectors of the exact search [100k, 1M on cuda]")
    add("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    users = payload.users(options.users, payload.layout_of(options.repository))
    serving = replace(serving_of(options.repository), device=options.device, threads=cores())
    found = measure_device(device_of(serving), serving.threads)
    items = options.items or SEARCHED[options.device]
    rows = measure(options.repository, serving, users, found, items)
    print(report(found, rows))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        made = summary(found, rows, options.device == "cuda")
        write_json(options.out, {**made, "searched_items": items})


if __name__ == "__main__":
    run(main, to_end=True)
