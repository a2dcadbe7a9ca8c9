"""Markdown tables of figures and claims, aligned so that a terminal shows them just as well."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from perf.harness.measurement import PERCENTILES
from perf.harness.record import Line

LATENCIES = (*PERCENTILES, "mean_ms", "max_ms")
STAGE_TIMES = ("queue_us", "input_us", "infer_us", "output_us")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """First column to the left, figures to the right."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    align = ["left", *["right"] * (len(header) - 1)]
    text: str = tabulate(
        [list(header), *cells], "firstrow", "pipe", colalign=align, disable_numparse=True
    )
    return text


def number(value: float | None) -> str:
    """Three significant digits, never as a power of ten; a dash for None."""
    if value is None or value != value:
        return "–"
    size = abs(value)
    return f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2}f}"


def latency_table(lines: Sequence[Line]) -> str:
    """One row per run, with what limits its trust in the last column."""
    header = ["load", "users/s", *map(_spaced, LATENCIES), "p99 by window", "requests", "marks"]
    rows = []
    for line in lines:
        window = [number(ms) for ms in line.get("p99_range_ms") or (None, None)]
        figures = [number(line.get(key)) for key in ("throughput", *LATENCIES)]
        rows.append([load(line), *figures, " to ".join(window), str(line["requests"])])
        rows[-1].append(_marks(line))
    return table(header, rows)


def stage_table(lines: Sequence[Line]) -> str:
    """One row per run and member: mean times per request, and how well it batched."""
    header = ["load", "stage", *map(_spaced, STAGE_TIMES), "users", "executions", "mean batch"]
    rows = [
        [
            *(load(line), name, *(number(stage[key]) for key in STAGE_TIMES)),
            *(str(stage["inference_count"]), str(stage["execution_count"])),
            number(stage["mean_batch"]),
        ]
        for line in lines
        for name, stage in line["stages"].items()
    ]
    return table(header, rows)


def _spaced(key: str) -> str:
    """`p99_9_ms` -> `p99.9 ms`, `queue_us` -> `queue µs`."""
    name, _, unit = key.rpartition("_")
    return f"{name.replace('_', '.')} {unit.replace('us', 'µs')}"


def load(line: Line) -> str:
    """What the clients did."""
    unit = "/s" if line["mode"] == "rate" else ""
    return f"{line['mode']} {line['value']:g}{unit}"


def _marks(line: Line) -> str:
    """Why a figure is not to be trusted; empty if there is no reason."""
    found = []
    if line["error"]:
        found.append(f"**failed** ({line['failed']}): {line['error']}")
    elif not line["stable"]:
        found.append("**unstable**")
    if line["delayed_percent"]:
        found.append(f"**delayed** ({number(line['delayed_percent'])} %)")
    return ", ".join(found)


@dataclass(frozen=True)
class Claim:
    """What a key of a summary is to be, and what it says."""

    key: str
    relation: str
    value: float
    meaning: str

    def holds(self, found: float) -> bool:
        compare = {">=": operator.ge, "<=": operator.le, "=": operator.eq}[self.relation]
        return bool(compare(found, self.value))


def verdicts(summary: Mapping[str, Any], claims: Sequence[Claim]) -> str:
    """Each claim beside what was found."""
    rows = [
        [
            claim.meaning,
            claim.key,
            f"{claim.relation} {claim.value:g}",
            f"{summary[claim.key]:.3g}",
            "yes" if claim.holds(summary[claim.key]) else "**no**",
        ]
        for claim in claims
        if claim.key in summary
    ]
    return table(["claim", "key", "target", "found", "holds"], rows)
