"""`python -m perf.floor --repository DIR --device cpu|cuda`: how far each stage is from the least
time that the device needs for its bytes and its multiply-adds.

Prints a table, and writes it with `--out` as JSON. Exact retrieval is measured over `--items`
vectors of the tower's width, whatever index the repository serves. The ratios are those of 32
users; on a GPU their keys begin with `gpu_`.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cascade.artifact import Array, ArtifactError
from cascade.config import Serving
from cascade.index.exact import ExactIndex
from cascade.pbtxt import settings
from cascade.release import newest_version, read_release
from cascade.runtime.devices import device_of
from cascade.runtime.load import load_graph
from cascade.server.threads import cores
from cascade.spec import PRERANK, RANK, RETRIEVE, sizes_from, stage_path
from cascade.stages.load import load_stage
from perf import payload, work
from perf.bound import configs
from perf.payload import Features, PayloadError
from perf.speed import measure_device, median_us
from perf.work import Device, Work

# User-item pairs a second of one H200 in MLPerf Inference, DLRM-v2, offline.
MLPERF_DLRM_V2_H200_PAIRS_PER_S = 21.5e6
BATCHES = (1, 32)
SEARCH = "exact search"
SEARCHED = {"cpu": 100_000, "cuda": 1_000_000}  # vectors


@dataclass(frozen=True)
class Row:
    """One stage at one batch.

    Args:
        measured_us: median, arrays in and arrays out.
        floor_us: `Work.floor_us`; None where nobody can say what has to be read.
        pairs_per_s: user-item pairs.
    """

    stage: str
    users: int
    measured_us: float
    floor_us: float | None
    read_bytes: int | None
    multiply_adds: int | None
    pairs_per_s: float

    @property
    def over_floor(self) -> float | None:
        return self.measured_us / self.floor_us if self.floor_us else None


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
        needed = work.of_search(users, items, width, vectors.element_size())
        rows.append(_row(SEARCH, users, took_us, needed, found, dtype, users * items))
    return rows


def measure_faiss(device: torch.device, items: int, width: int, k: int) -> float | None:
    """Microseconds of FAISS's own exact search for 32 users on the GPU; None without one."""
    import faiss

    if device.type != "cuda" or not getattr(faiss, "get_num_gpus", lambda: 0)():
        return None
    settings = faiss.GpuIndexFlatConfig()
    settings.useFloat16, settings.device = True, device.index or 0
    index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), width, settings)
    random = np.random.default_rng(0)
    for start in range(0, items, 1 << 16):
        index.add(random.standard_normal((min(1 << 16, items - start), width), np.float32))
    queries = random.standard_normal((BATCHES[-1], width), np.float32)
    return median_us(lambda: index.search(queries, k), device)


def measure_stages(
    repository: Path, serving: Serving, users: payload.Payload, found: Device
) -> tuple[list[Row], int]:
    """Every stage as it is served, fed with what the one before found; and the tower's width."""
    version = newest_version(repository)
    release = read_release(repository, version)
    sizes, topology = sizes_from(release["sizes"]), release["topology"]
    device, rows, width = device_of(serving), [], 0
    folders = {
        name: repository / stage_path(topology, name, version) for name in (RETRIEVE, PRERANK, RANK)
    }
    stages = {
        name: load_stage(name, folder, serving, sizes.candidates)
        for name, folder in folders.items()
    }
    for batch in BATCHES:
        some = np.arange(batch) % len(users)
        inputs: tuple[Array, ...] = (users.dense[some], users.categorical[some])
        encoded: tuple[Array, ...] = ()
        for name, stage in stages.items():
            took_us, outputs = median_us(partial(stage, *inputs), device), stage(*inputs)
            if name == RETRIEVE:
                encoded = outputs[:2]
                width = _width(folders[name], encoded)
                pairs = batch * int(release["items"])
                rows.append(Row(name, batch, took_us, None, None, None, pairs / took_us * 1e6))
            else:
                needed = work.of_graph(folders[name], inputs)
                pairs = int((inputs[-1] >= 0).sum())
                rows.append(_row(name, batch, took_us, needed, found, "float32", pairs))
            inputs = (*encoded, outputs[-1])
    return rows, width


def _width(folder: Path, encoded: tuple[Array, ...]) -> int:
    """Of the user tower's vectors."""
    _, tower = load_graph(folder, None, Serving(threads=1))
    return int(tower(*encoded)[0].shape[1])


def _row(
    stage: str, users: int, took_us: float, needed: Work, found: Device, dtype: str, pairs: int
) -> Row:
    floor_us, rate = needed.floor_us(found, dtype), pairs / took_us * 1e6
    return Row(stage, users, took_us, floor_us, needed.read_bytes, needed.multiply_adds, rate)


def summary(device: Device, rows: list[Row], faiss_us: float | None, gpu: bool) -> dict[str, Any]:
    """What goes into the JSON file."""
    prefix, last = "gpu_" if gpu else "", BATCHES[-1]
    ratios = {
        f"{prefix}{name}_over_floor": row.over_floor
        for name, stage in (("retrieval", SEARCH), (PRERANK, PRERANK), (RANK, RANK))
        for row in rows
        if (row.stage, row.users) == (stage, last)
    }
    pairs = {
        f"{prefix}{row.stage}_pairs_per_s": row.pairs_per_s
        for row in rows
        if row.users == last and row.stage in (PRERANK, RANK)
    }
    return {
        **ratios,
        **pairs,
        "mlperf_dlrm_v2_h200_pairs_per_s": MLPERF_DLRM_V2_H200_PAIRS_PER_S,
        "faiss_gpu_search_us": faiss_us,
        "device": asdict(device),
        "rows": [{**asdict(row), "over_floor": row.over_floor} for row in rows],
    }


def report(device: Device, rows: list[Row], faiss_us: float | None) -> str:
    """The table."""
    rates = ", ".join(f"{name} {rate / 1e12:.2f}" for name, rate in device.flops.items())
    lines = [
        f"{device.name}: copies {device.bytes_per_s / 1e9:.1f} GB/s; TFLOP/s of products: {rates}",
        f"{'stage':14}{'users':>6}{'measured us':>13}{'floor us':>11}{'ratio':>8}{'MB':>9}"
        f"{'M mult-adds':>13}{'M pairs/s':>11}",
    ]
    for r in rows:
        text = f"{r.stage:14}{r.users:6}{r.measured_us:13.0f}"
        if r.floor_us is None or r.read_bytes is None or r.multiply_adds is None:
            text += f"{'-':>11}{'-':>8}{'-':>9}{'-':>13}"
        else:
            text += f"{r.floor_us:11.1f}{r.over_floor:8.1f}{r.read_bytes / 1e6:9.2f}"
            text += f"{r.multiply_adds / 1e6:13.1f}"
        lines.append(f"{text}{r.pairs_per_s / 1e6:11.2f}")
    if faiss_us is not None:
        lines.append(f"FAISS on the GPU, exact, {BATCHES[-1]} users: {faiss_us:.0f} us")
    lines.append(
        f"beside them: MLPerf DLRM-v2, offline, one H200: "
        f"{MLPERF_DLRM_V2_H200_PAIRS_PER_S / 1e6:.1f} M pairs/s"
    )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line. 2 when there is nothing to measure."""
    options = _parser().parse_args(arguments)
    try:
        config, stages = configs(options.repository)
        features = Features.of(config)
        users = (
            payload.load(options.users, features) if options.users else payload.generated(features)
        )
        serving = replace(
            settings(stages[0]).serving,
            device=options.device,
            threads=options.threads or cores(),
            cuda_graphs=options.cuda_graphs,
            half=options.half,
            **({"runtime": options.runtime} if options.runtime else {}),
        )
        device = device_of(serving)
        found = measure_device(device, serving.threads)
        rows, width = measure_stages(options.repository, serving, users, found)
    except (ArtifactError, PayloadError) as error:
        print(f"perf.floor: {error}", file=sys.stderr)
        return 2
    release = read_release(options.repository, newest_version(options.repository))
    items = options.items or SEARCHED[options.device]
    k = min(items, sizes_from(release["sizes"]).candidates)
    rows += measure_search(device, found, items, width, k, options.cuda_graphs)
    faiss_us = measure_faiss(device, items, width, k)
    print(report(found, rows, faiss_us))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        made = summary(found, rows, faiss_us, options.device == "cuda")
        made["searched_items"] = items
        options.out.write_text(json.dumps(made, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m perf.floor", description=__doc__)
    parser.add_argument("--repository", type=Path, required=True, help="exported model repository")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--users", type=Path, help="users.jsonl (default: generated users)")
    parser.add_argument("--items", type=int, help="vectors of the exact search [100k, 1M on cuda]")
    parser.add_argument("--runtime", help="runs the graphs (default: as exported)")
    parser.add_argument("--threads", type=int, help="compute threads (default: all cores)")
    parser.add_argument("--cuda-graphs", action="store_true", help="replay recorded batches")
    parser.add_argument("--half", action="store_true", help="let TensorRT compute in float16")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
