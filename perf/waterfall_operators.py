"""What the operators of a scoring graph take, by group, from ONNX Runtime's profiler.

Profiling slows a session down, so it has one of its own in this process, and the server's runs
unwatched. The groups' shares are what is kept of it; the time they are shares of is the server's.
What ONNX Runtime spends around its operators is so spread over them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cascade.artifact import ONNX_FILE, Array, Description
from cascade.config import Serving
from cascade.release import newest_version, read_release
from cascade.runtime.onnx import choose_providers, session_options
from cascade.spec import PRERANK, RANK, RETRIEVE, STAGES, stage_path
from cascade.stages.load import load_stage
from perf.payload import Payload

GROUPS = ("gather", "matmul", "cast", "topk", "other")
BATCHES = 100  # at most: the profile of each is some ten kilobytes
Shares = dict[str, float]


def group_of(operator: str) -> str:
    """Where an operator of ONNX or of ONNX Runtime's fusions belongs."""
    if operator.startswith(("Gather", "QGather", "SparseGather")):
        return "gather"
    if operator == "TopK":
        return "topk"
    if "MatMul" in operator or "Gemm" in operator:
        return "matmul"
    if operator == "Cast" or "QuantizeLinear" in operator:
        return "cast"
    return "other"


class WatchedGraph:
    """model.onnx with ONNX Runtime's profiler on."""

    def __init__(self, folder: Path, serving: Serving, scratch: Path) -> None:
        import onnxruntime

        self.description = Description.load(folder)
        options = session_options(onnxruntime, serving)
        options.enable_profiling = True
        options.profile_file_prefix = str(scratch / self.description.stage)
        providers = choose_providers(onnxruntime, folder, self.description, serving)
        self._session = onnxruntime.InferenceSession(str(folder / ONNX_FILE), options, providers)
        self._names = [i.name for i in self._session.get_inputs()]
        self.runs = 0

    def __call__(self, *inputs: Array) -> list[Array]:
        """Run one batch, cut as it is served. Rows, the last input, in catalogue order."""
        feed = dict(zip(self.description.inputs, inputs, strict=True))
        step = 1 if self.description.one_by_one else len(inputs[0])
        self.runs += 1
        parts = [
            self._session.run(
                list(self.description.outputs),
                {name: feed[name][start : start + step] for name in self._names},
            )
            for start in range(0, len(inputs[0]), step)
        ]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def operators_us(self) -> dict[str, float]:
        """Microseconds per batch, by group. Ends the profiling."""
        events = json.loads(Path(self._session.end_profiling()).read_text())
        return grouped(events, self.runs)


def grouped(events: Sequence[Mapping[str, Any]], batches: int) -> dict[str, float]:
    """A profile's events -> microseconds per batch, by group.

    Each node counts with its median, less that of the cheapest. While a node's clock runs, the
    profiler writes down its shapes, some microseconds for each. A graph's cheapest node, such as
    a Shape, does next to nothing else, and so shows how many.
    """
    nodes: dict[str, list[int]] = {}
    operators: dict[str, str] = {}
    for event in events:
        if event.get("cat") == "Node" and "op_name" in event["args"]:
            nodes.setdefault(event["name"], []).append(event["dur"])
            operators[event["name"]] = event["args"]["op_name"]
    medians = {name: float(np.median(found)) for name, found in nodes.items()}
    watching_us = min(medians.values(), default=0.0)
    total: dict[str, float] = {}
    for name, median in medians.items():
        group, runs = group_of(operators[name]), len(nodes[name]) / batches
        total[group] = total.get(group, 0.0) + (median - watching_us) * runs
    return {group: total[group] for group in GROUPS if group in total}


def shares(
    repository: Path, serving: Serving, users: Payload, batch: int, requests: int
) -> dict[str, Shares]:
    """Of prerank and rank, each group's share.

    Args:
        serving: as the server runs the stages; the runtime has to be onnx.
        requests: how many batches to run, up to a hundred.
    """
    version = newest_version(repository)
    release = read_release(repository, version)
    folders = {s: repository / stage_path(release["topology"], s, version) for s in STAGES}
    retrieve = load_stage(RETRIEVE, folders[RETRIEVE], serving, release["sizes"]["candidates"])
    cut = min(batch, serving.users_per_run or batch)
    with tempfile.TemporaryDirectory(prefix="operators-") as scratch:
        watched = {s: WatchedGraph(folders[s], serving, Path(scratch)) for s in (PRERANK, RANK)}
        for raw in _batches(users, cut, min(requests, BATCHES)):
            user_dense, user_ids, rows = retrieve(*raw)
            for graph in watched.values():
                rows = graph(user_dense, user_ids, np.sort(rows, axis=1))[0]  # as `stages.Score`
        taken = {stage: graph.operators_us() for stage, graph in watched.items()}
    return {
        stage: {group: value / sum(groups.values()) for group, value in groups.items()}
        for stage, groups in taken.items()
        if any(groups.values())
    }


def _batches(users: Payload, size: int, count: int) -> Iterator[tuple[Array, Array]]:
    for number in range(count):
        rows = (np.arange(size) + number * size) % len(users)
        yield users.dense[rows], users.categorical[rows]


def split(names_us: dict[str, float], found: dict[str, Shares]) -> dict[str, float]:
    """Intervals with each scoring stage replaced by its groups, scaled to the measured stage."""
    made: dict[str, float] = {}
    for name, value in names_us.items():
        if name in found:
            made |= {f"{name}.{g}": value * found[name][g] for g in _ordered(found[name])}
        else:
            made[name] = value
    return made


def _ordered(found: Shares) -> Sequence[str]:
    return [group for group in GROUPS if group in found]
