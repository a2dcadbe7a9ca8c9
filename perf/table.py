"""Lines of results as Markdown tables, aligned so that a terminal shows them just as well."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Line = Mapping[str, Any]

LATENCIES = {
    "p5_ms": "p5 ms",
    "p50_ms": "p50 ms",
    "p95_ms": "p95 ms",
    "p99_ms": "p99 ms",
    "p99_9_ms": "p99.9 ms",
    "mean_ms": "mean ms",
    "max_ms": "max ms",
}
STAGE_TIMES = {
    "queue_us": "queue µs",
    "input_us": "input µs",
    "infer_us": "infer µs",
    "output_us": "output µs",
}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: first column to the left, figures to the right."""
    cells = [list(header), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(row: Sequence[str]) -> str:
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "| " + " | ".join([first, *rest]) + " |"

    return "\n".join(map(line, [cells[0], rule, *cells[1:]]))


def latency_table(lines: Iterable[Line]) -> str:
    """One row per run, with whatever is to be held against it in the last column."""
    header = ["load", "users/s", *LATENCIES.values(), "p99 by window", "requests", "marks"]
    return table(header, [_latency_row(line) for line in lines])


def _latency_row(line: Line) -> list[str]:
    spread = line.get("p99_range_ms")
    return [
        load(line),
        number(line["throughput"]) if line["requests"] else "–",
        *(number(line.get(key)) for key in LATENCIES),
        f"{number(spread[0])} to {number(spread[1])}" if spread else "–",
        str(line["requests"]),
        marks(line),
    ]


def stage_table(lines: Iterable[Line]) -> str:
    """One row per run and member: mean times per request, and how well it batched."""
    header = ["load", "stage", *STAGE_TIMES.values(), "users", "executions", "mean batch", "marks"]
    return table(header, [row for line in lines for row in _stage_rows(line)])


def _stage_rows(line: Line) -> list[list[str]]:
    return [
        [
            load(line),
            name,
            *(number(stage[key]) for key in STAGE_TIMES),
            str(stage["inference_count"]),
            str(stage["execution_count"]),
            number(stage["mean_batch"]),
            marks(line),
        ]
        for name, stage in line["stages"].items()
    ]


def load(line: Line) -> str:
    """What was asked, and how."""
    if line["model"] == "in-process":
        return f"{line['value']:g} process{'' if line['value'] == 1 else 'es'}"
    if line["mode"] == "rate":
        return f"rate {line['value']:g}/s"
    return f"concurrency {line['value']:g}"


def marks(line: Line) -> str:
    """Why a figure is not to be trusted; empty if there is no reason."""
    found = []
    if line["error"]:
        found.append(f"**failed** ({line['failed']}): {line['error']}")
    elif not line["stable"]:
        found.append("**unstable**")
    if line["delayed"]:
        found.append(f"**delayed** ({number(line['delayed_percent'])} %)")
    return ", ".join(found)


def number(value: float | None) -> str:
    """Three significant digits, never as a power of ten; a dash where there is nothing."""
    if value is None:
        return "–"
    size = abs(value)
    return f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2}f}"
