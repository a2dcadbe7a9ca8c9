"""Compares every exported graph, reloaded from disk, with the eager model.

Eager = ONNX, and = TorchScript and = AOTInductor where those forms are exported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cascade.artifact import AOTI_FILE, ONNX_FILE, TORCH_FILE, Array
from cascade.config import Device, Runtime, Serving
from cascade.errors import CascadeError
from cascade.runtime.load import load_graph
from cascade.schema import Schema
from export.artifacts.graphs import CandidateLogits, TopCandidates

LARGEST_DIFFERENCE = 1e-4
LEAST_OVERLAP = 0.99
TIE = 1e-5  # logits nearer than this may change places: sums run in different orders
FILES: dict[Runtime, str] = {"onnx": ONNX_FILE, "torchscript": TORCH_FILE, "aoti": AOTI_FILE}

Cases = list[tuple[Array, ...]]


class ParityError(CascadeError):
    """An exported graph does not give the eager model's answers."""


@dataclass(frozen=True)
class Parity:
    """One graph at one batch size.

    Args:
        max_abs: largest difference of a number: of user vectors, of click logits.
        overlap: share of the graph's choice that is as good as the eager model's K-th best, so
            that of equal items either may be chosen; 1 for a tower.
        quantised: the graph's weights are rounded on purpose: `guard` has judged it, and
            here it is only reported.
    """

    stage: str
    runtime: str
    batch: int
    max_abs: float
    overlap: float
    quantised: bool = False

    @property
    def holds(self) -> bool:
        return self.quantised or (
            self.max_abs <= LARGEST_DIFFERENCE and self.overlap >= LEAST_OVERLAP
        )


def compare(
    stage: str,
    module: nn.Module,
    folder: Path,
    schema: Schema,
    cases: Cases,
    quantised: bool = False,
    device: Device = "cpu",
) -> list[Parity]:
    """Reload each graph of a version folder and run the cases through it and the eager module.

    Args:
        device: where a package runs, which is made for one kind of device; the rest runs on the
            CPU, as the eager module does.
    """
    measure = _scoring if isinstance(module, TopCandidates) else _tower
    found = []
    for runtime, file in FILES.items():
        if not (folder / file).exists():
            continue
        place = device if runtime == "aoti" else "cpu"
        _, graph = load_graph(folder, schema, Serving(runtime=runtime, device=place, threads=1))
        for case in cases:
            max_abs, overlap = measure(module, graph, case)
            found.append(Parity(stage, runtime, len(case[0]), max_abs, overlap, quantised))
    return found


def report(parities: list[Parity]) -> str:
    """A table, and an error after it where something differs.

    Raises:
        ParityError: names every graph that differs.
    """
    lines = [f"{'stage':10}{'runtime':14}{'batch':>6}{'max abs':>12}{'overlap':>10}"]
    for p in parities:
        lines.append(f"{p.stage:10}{p.runtime:14}{p.batch:6}{p.max_abs:12.2e}{p.overlap:10.4f}")
    table = "\n".join(lines)
    wrong = [asdict(p) for p in parities if not p.holds]
    if wrong:
        raise ParityError(
            f"{table}\nexported graphs differ from the trained model by more than "
            f"{LARGEST_DIFFERENCE:g}, or share less than {LEAST_OVERLAP:.0%} of its top K: {wrong}"
        )
    return table


def _tower(
    module: nn.Module, graph: Callable[..., list[Array]], case: tuple[Array, ...]
) -> tuple[float, float]:
    with torch.inference_mode():
        expected = module(*map(torch.from_numpy, case)).numpy()
    return float(np.abs(graph(*case)[0] - expected).max()), 1.0


def _scoring(
    module: nn.Module, graph: Callable[..., list[Array]], case: tuple[Array, ...]
) -> tuple[float, float]:
    """Judge the graph's choice, place by place, by the eager logits: a tie may fall either way."""
    assert isinstance(module, TopCandidates)
    dense, ids, rows = map(torch.from_numpy, case)
    with torch.inference_mode():
        logits = CandidateLogits.forward(module, dense, ids, rows).numpy()
        expected = [t.numpy() for t in _as_tuple(module(dense, ids, rows))]
    names = module.catalogue_ids.numpy()[:, 0][case[2]] if module.with_ids else case[2]
    outputs = graph(*case)
    differences, shared = [0.0], 0
    for b in range(len(logits)):
        real = case[2][b] >= 0
        value = dict(zip(names[b][real].tolist(), logits[b][real].tolist(), strict=True))
        got, wanted = (x[0][b][x[0][b] >= 0].tolist() for x in (outputs, expected))
        if len(got) != len(wanted) or len(set(got)) != len(got) or not set(got) <= set(value):
            return float("inf"), 0.0
        found, best = (np.array([value[i] for i in ids]) for ids in (got, wanted))
        differences.append(float(np.abs(found - best).max(initial=0)))
        shared += int((found >= best.min(initial=np.inf) - TIE).sum())
    if module.with_ids:
        differences.append(float(np.abs(outputs[1] - expected[1]).max(initial=0)))
    return max(differences), shared / max(1, int((expected[0] >= 0).sum()))


def _as_tuple(value: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
