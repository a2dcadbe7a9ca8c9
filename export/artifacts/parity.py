"""Compares every exported graph, reloaded from disk, with the eager model: ONNX, and TorchScript
and AOTInductor where those forms are exported."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from torch import nn

from cascade.artifact import AOTI_FILE, ONNX_FILE, TORCH_FILE, Array
from cascade.config import Device, Runtime, Serving
from cascade.errors import CascadeError
from cascade.runtime.load import load_graph
from cascade.schema import Schema
from export.artifacts.graphs import CandidateLogits, CandidateTasks, TopCandidates

LARGEST_DIFFERENCE = 1e-4
LARGEST_OF_TASKS = 1e-5  # of what a task says, relative above 1
LEAST_OVERLAP = 0.99
TIE = 1e-5  # logits nearer than this may change places: sums run in different orders
FILES: dict[Runtime, str] = {"onnx": ONNX_FILE, "torchscript": TORCH_FILE, "aoti": AOTI_FILE}

Cases = list[tuple[Array, ...]]
Call = Callable[..., list[Array]]


class ParityError(CascadeError):
    """An exported graph does not give the eager model's answers."""


@dataclass(frozen=True)
class Parity:
    """One graph at one batch size."""

    stage: str
    runtime: str
    batch: int
    max_abs: float  # largest difference of a number: of user vectors, of click logits
    # Share of the graph's choice that is as good as the eager model's K-th best, so that either of
    # two equal items may be chosen; 1 for a tower.
    overlap: float
    quantised: bool = False  # rounded on purpose: `guard` has judged it, parity is only reported
    limit: float = LARGEST_DIFFERENCE  # of `max_abs`

    @property
    def holds(self) -> bool:
        return self.quantised or (self.max_abs <= self.limit and self.overlap >= LEAST_OVERLAP)


def compare(
    stage: str,
    module: nn.Module,
    folder: Path,
    schema: Schema,
    cases: Cases,
    quantised: bool = False,
    device: Device = "cpu",
    forms: Collection[Runtime] = (*FILES,),
) -> list[Parity]:
    """Reload each of these graphs that a version folder has, and run the cases through it and the
    eager module. A package runs on the device that it is compiled for, the other forms on the
    CPU."""
    measure, limit = _tower, LARGEST_DIFFERENCE
    if isinstance(module, TopCandidates):
        measure = _scoring
    elif isinstance(module, CandidateTasks):
        measure, limit = _tasks, LARGEST_OF_TASKS
    found = []
    for runtime, file in FILES.items():
        if runtime not in forms or not (folder / file).exists():
            continue
        place = device if runtime == "aoti" else "cpu"
        _, graph = load_graph(folder, schema, Serving(runtime=runtime, device=place, threads=1))
        for case in cases:
            max_abs, overlap = measure(module, graph, case)
            how = (len(case[0]), max_abs, overlap, quantised, limit)
            found.append(Parity(stage, runtime, *how))
    return found


def report(parities: list[Parity]) -> str:
    """A table of all comparisons. Raises ParityError: some graph differs; names each."""
    rows = [(p.stage, p.runtime, p.batch, f"{p.max_abs:.2e}", f"{p.overlap:.4f}") for p in parities]
    header = ("stage", "runtime", "batch", "max abs", "overlap")
    table = tabulate(rows, header, tablefmt="plain", disable_numparse=True)
    wrong = [asdict(p) for p in parities if not p.holds]
    if wrong:
        raise ParityError(
            f"{table}\nexported graphs differ from the trained model by more than their limit, or "
            f"share less than {LEAST_OVERLAP:.0%} of its top K: {wrong}"
        )
    return table


def draw_candidates(batch: int, width: int, items: int, random: np.random.Generator) -> Array:
    """Distinct rows [B, K], pads at random places; the last users have few and none."""
    rows = np.full((batch, width), -1, np.int64)
    for b in range(batch):
        most = {batch - 1: 0, batch - 2: 3}.get(b, int(0.95 * width)) if b else width
        real = min(items, most)
        rows[b, random.choice(width, real, False)] = random.choice(items, real, False)
    return rows


def judge(
    answers: Array, candidates: Array, values: Array, names: Array, relative: bool = False
) -> tuple[float, float]:
    """Compare answers [B, K'], best first and filled up with -1, with what every candidate is worth
    -> `max_abs` and `overlap` of `Parity`; a tie may fall either way.

    Args:
        candidates: rows [B, K], -1 = pad; `values` [B, K] of these.
        names: what the stage calls each row of the catalogue, [N].
        relative: whether TIE is a share of the K-th best value.
    """
    difference, shared, wanted = 0.0, 0, 0
    for answer, rows, worth in zip(answers, candidates, values, strict=True):
        real = rows >= 0
        known = dict(zip(names[rows[real]].tolist(), worth[real].tolist(), strict=True))
        found, common = _judge_user(known, answer, relative)
        difference = float(np.maximum(difference, found))  # NaN, unlike max
        shared += common
        wanted += min(len(answer), len(known))
    return difference, shared / max(1, wanted)


def _judge_user(values: Mapping[int, float], ids: Array, relative: bool) -> tuple[float, int]:
    """The largest difference, place by place, from the K best values, and how many of the answer
    belong to these: infinity and 0 for an item that comes twice, or is no candidate."""
    best = np.sort([*values.values()])[::-1][: len(ids)]
    got = ids[: len(best)].tolist()
    if len({*got}) != len(got) or not {*got} <= values.keys() or (ids[len(best) :] >= 0).any():
        return float("inf"), 0
    own = np.array([values[i] for i in got])
    if not np.isfinite([*values.values()]).all():  # no order, and no difference that is a number
        return float("inf"), 0
    least = best.min(initial=np.inf)
    slack = TIE * abs(least) if relative and len(best) else TIE
    return float(np.abs(own - best).max(initial=0)), int((own >= least - slack).sum())


def _tower(module: nn.Module, graph: Call, case: tuple[Array, ...]) -> tuple[float, float]:
    with torch.inference_mode():
        expected = module(*map(torch.from_numpy, case)).numpy()
    return float(np.abs(graph(*case)[0] - expected).max()), 1.0


def of_tasks(found: Array, expected: Array, rows: Array) -> float:
    """The largest difference of tasks [B, K, T], relative above 1, of rows [B, K] that are no
    pads."""
    if found.shape != expected.shape:
        return float("inf")
    differences = np.abs(found - expected) / np.maximum(1, np.abs(expected))
    return float(differences[rows >= 0].max(initial=0))


def _tasks(module: nn.Module, graph: Call, case: tuple[Array, ...]) -> tuple[float, float]:
    with torch.inference_mode():
        expected = module(*map(torch.from_numpy, case)).numpy()
    return of_tasks(graph(*case)[0], expected, case[2]), 1.0


def _scoring(module: nn.Module, graph: Call, case: tuple[Array, ...]) -> tuple[float, float]:
    """Judge the graph's choice by the eager logits of all candidates."""
    assert isinstance(module, TopCandidates)
    arguments = [*map(torch.from_numpy, case)]
    with torch.inference_mode():
        logits = CandidateLogits.forward(module, *arguments).numpy()
        expected = module(*arguments)
    outputs, count = graph(*case), len(module.item_state)
    names = module.catalogue_ids.numpy()[:, 0] if module.with_ids else np.arange(count)
    difference, overlap = judge(outputs[0], case[2], logits, names)
    if module.with_ids:
        scores = float(np.abs(outputs[1] - expected[1].numpy()).max(initial=0))
        difference = float(np.maximum(difference, scores))
    return difference, overlap
