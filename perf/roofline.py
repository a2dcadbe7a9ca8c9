"""`python -m perf.roofline --repository DIR --device cpu|cuda`: how far from the hardware?

The floor under a stage's latency is the longer of two times: to read the bytes that it has to read,
and to compute the matrix products that it has to compute (Williams et al., "Roofline", CACM 2009).
Weights are left out: a batch reads them once, and they fit a cache.

Prints a table, and writes it with `--out` as JSON. Exact retrieval is measured over `--items`
vectors of the tower's width, whatever index the repository serves. The ratios are those of 32
users; on a GPU their keys begin with `gpu_`.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from cascade.artifact import ONNX_FILE, Array, Description
from cascade.config import Serving
from cascade.errors import run
from cascade.index.exact import ExactIndex
from cascade.release import newest_version, read_release
from cascade.runtime.devices import device_of
from cascade.runtime.load import load_graph
from cascade.server.threads import cores
from cascade.spec import CATALOGUE_IDS, PRERANK, RANK, RETRIEVE, STAGES, sizes_from
from cascade.spec import stage_path as path_of
from cascade.stages.load import load_stage
from perf.harness import payload
from perf.harness.device import Device, measure_device, median_us
from perf.harness.in_process import serving_of
from perf.harness.payload import Payload
from perf.harness.table import number, table

# User-item pairs a second of one H200 in MLPerf Inference, DLRM-v2, offline.
MLPERF_DLRM_V2_H200_PAIRS_PER_S = 21.5e6
BATCHES, SEARCH = (1, 32), "exact search"
SEARCHED = {"cpu": 100_000, "cuda": 1_000_000}  # vectors
PRODUCTS = ("MatMul", "Gemm", "MatMulInteger")


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


@dataclass(frozen=True)
class Row:
    """One stage at one batch.

    Args:
        measured_us: median, arrays in and arrays out.
        pairs_per_s: user-item pairs.
        work, floor_us: None for a stage whose index decides what has to be read.
    """

    stage: str
    users: int
    measured_us: float
    pairs_per_s: float
    work: Work | None = None
    floor_us: float | None = None

    @property
    def over_floor(self) -> float | None:
        return self.measured_us / self.floor_us if self.floor_us else None


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
    """Of the products, from the shapes that ONNX Runtime's profiler writes down."""
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
    nodes = [event["args"] for event in events if event.get("cat") == "Node"]
    return sum(_product(node) for node in nodes if node.get("op_name") in PRODUCTS)


def _product(node: dict[str, Any]) -> int:
    """[..., m, k] x [..., k, n] -> [..., m, n] takes k multiply-adds for each of the last."""
    (left,) = node["input_type_shape"][0].values()
    (made,) = node["output_type_shape"][0].values()
    return int(math.prod(made)) * int(left[-1])


def measure_search(
    device: torch.device, found: Device, items: int, width: int, k: int, recorded: bool
) -> list[Row]:
    """Exact retrieval over random unit vectors."""
    generator = torch.Generator(device).manual_seed(0)
    vectors = torch.empty((items, width), dtype=torch.float16, device=device)
    for start in range(0, items, 1 << 16):
        part = vectors[start : start + (1 << 16)]
        drawn = torch.randn(part.shape, generator=generator, device=device)
        part.copy_(torch.nn.functional.normalize(drawn, dim=1))
    index = ExactIndex(vectors, recorded)
    dtype, rows = "float16" if device.type == "cuda" else "float32", []
    for users in BATCHES:
        queries = vectors[:users].float().cpu().numpy()
        took_us = median_us(partial(index.search, queries, k), device)
        work = work_of_search(users, items, width, vectors.element_size())
        rate = users * items / took_us * 1e6
        rows.append(Row(SEARCH, users, took_us, rate, work, work.floor_us(found, dtype)))
    return rows


def measure_stages(
    repository: Path, serving: Serving, users: Payload, found: Device
) -> tuple[list[Row], int]:
    """Every stage as it is served, with the output of the one before; and the tower's width."""
    version = newest_version(repository)
    release = read_release(repository, version)
    folders = {name: repository / path_of(release["topology"], name, version) for name in STAGES}
    candidates = sizes_from(release["sizes"]).candidates
    stages = {n: load_stage(n, folder, serving, candidates) for n, folder in folders.items()}
    device, rows = device_of(serving), list[Row]()
    encoded: tuple[Array, ...] = ()
    for batch in BATCHES:
        inputs: tuple[Array, ...] = users.rows(0, batch)
        for name, stage in stages.items():
            took_us = median_us(partial(stage, *inputs), device)
            outputs = stage(*inputs)
            if name == RETRIEVE:
                encoded = outputs[:2]
                rows.append(Row(name, batch, took_us, batch * release["items"] / took_us * 1e6))
            else:
                rate = int((inputs[-1] >= 0).sum()) / took_us * 1e6
                work = work_of_graph(folders[name], inputs)
                rows.append(Row(name, batch, took_us, rate, work, work.floor_us(found)))
            inputs = (*encoded, outputs[-1])
    _, tower = load_graph(folders[RETRIEVE], None, Serving(threads=1))
    return rows, int(tower(*encoded)[0].shape[1])


def summary(device: Device, rows: list[Row], gpu: bool) -> dict[str, Any]:
    """What goes into the JSON file."""
    prefix, last = "gpu_" if gpu else "", [row for row in rows if row.users == BATCHES[-1]]
    names = {SEARCH: "retrieval", PRERANK: PRERANK, RANK: RANK}
    ratios = {f"{prefix}{names[r.stage]}_over_floor": r.over_floor for r in last if r.work}
    pairs = {f"{prefix}{r.stage}_pairs_per_s": r.pairs_per_s for r in last if r.stage in STAGES}
    return {
        **ratios,
        **pairs,
        "mlperf_dlrm_v2_h200_pairs_per_s": MLPERF_DLRM_V2_H200_PAIRS_PER_S,
        "device": asdict(device),
        "rows": [{**asdict(row), "over_floor": row.over_floor} for row in rows],
    }


def report(device: Device, rows: list[Row]) -> str:
    """The table."""
    rates = ", ".join(f"{name} {rate / 1e12:.2f}" for name, rate in device.flops.items())
    header = ["stage", "users", "measured µs", "floor µs", "ratio", "MB", "M mult-adds"]
    cells = [
        [
            *(row.stage, str(row.users), number(row.measured_us), number(row.floor_us)),
            number(row.over_floor),
            number(row.work.read_bytes / 1e6 if row.work else None),
            number(row.work.multiply_adds / 1e6 if row.work else None),
            number(row.pairs_per_s / 1e6),
        ]
        for row in rows
    ]
    copies = f"copies {device.bytes_per_s / 1e9:.1f} GB/s; TFLOP/s of products: {rates}"
    mlperf = f"{MLPERF_DLRM_V2_H200_PAIRS_PER_S / 1e6:.1f} M pairs/s"
    return "\n\n".join(
        [
            f"{device.name}: {copies}",
            table([*header, "M pairs/s"], cells),
            f"For comparison: MLPerf DLRM-v2, offline, one H200: {mlperf}",
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = _parser().parse_args(arguments)
    users = payload.users(options.users, payload.layout_of(options.repository))
    changes = {"device": options.device, "threads": options.threads or cores()}
    changes |= {"cuda_graphs": options.cuda_graphs, "half": options.half}
    changes |= {"runtime": options.runtime} if options.runtime else {}
    serving = replace(serving_of(options.repository), **changes)
    device = device_of(serving)
    found = measure_device(device, serving.threads)
    rows, width = measure_stages(options.repository, serving, users, found)
    release = read_release(options.repository, newest_version(options.repository))
    items = options.items or SEARCHED[options.device]
    k = min(items, sizes_from(release["sizes"]).candidates)
    rows += measure_search(device, found, items, width, k, options.cuda_graphs)
    print(report(found, rows))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        made = {**summary(found, rows, options.device == "cuda"), "searched_items": items}
        options.out.write_text(json.dumps(made, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m perf.roofline", description=__doc__)
    add = parser.add_argument
    add("--repository", type=Path, required=True, help="exported model repository")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--users", type=Path, help="users.jsonl (default: generated users)")
    add("--items", type=int, help="vectors of the exact search [100k, 1M on cuda]")
    add("--runtime", help="runs the graphs (default: as exported)")
    add("--threads", type=int, help="compute threads (default: all cores)")
    add("--cuda-graphs", action="store_true", help="replay recorded batches")
    add("--half", action="store_true", help="let TensorRT compute in float16")
    add("--out", type=Path, help="JSON file to write")
    return parser


if __name__ == "__main__":
    run(main)
