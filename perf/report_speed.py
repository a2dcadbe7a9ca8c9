"""The part of the report about speed: what is claimed and found, drawn, and what did not pay.

A run of `perf.suite` leaves one line in perf/results/suite-DEVICE.jsonl, and its pictures beside
the others of the report. The figures are those of the line; the text holds none.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cascade.spec import RETRIEVE, stage_path
from perf import record
from perf.claims import verdicts
from perf.table import Line, number, table

PICTURES = {
    "compare/curve.png": "What a throughput costs, closed loop",
    "compare/percentiles-50.png": "Percentiles, open loop at half of each one's most",
    "waterfall/waterfall.png": "Where the time of one request goes",
    "scaling/items.png": "Cost against the catalogue",
    "scaling/candidates.png": "Cost against the candidates",
}
TRIED = Path(__file__).parent / "tried.md"


def keep(
    summary: Mapping[str, Any],
    environment: Mapping[str, Any],
    out: Path,
    tuned: Path,
    results: Path = record.RESULTS,
) -> None:
    """Add the line of a run to the results, and copy its pictures."""
    device = summary["device"]
    plots = results.parent / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    frontier = tuned / stage_path("fused", RETRIEVE, 1) / "frontier.png"
    for source in (*(out / name for name in PICTURES), frontier):
        if source.exists():
            shutil.copyfile(source, plots / _name(device, source))
    line = {"time": record.now(), **environment, "summary": dict(summary)}
    with (results / f"suite-{device}.jsonl").open("a") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")


def section(line: Line, report: Path) -> str:
    """The claims of one run, with the pictures that it left."""
    device, summary = line["summary"]["device"], line["summary"]
    parts = [
        f"## Speed, {summary['items']:,} items on {device}",
        f"Measured by `python -m perf.suite` at {line['time']}, commit "
        f"{(line['commit'] or 'unknown')[:12]}; index {summary.get('index_kind', 'unknown')}.",
        verdicts(summary),
    ]
    pictures = {**PICTURES, "frontier.png": "The kinds of index: recall against time"}
    for name, title in pictures.items():
        picture = _name(device, Path(name))
        if (report.parent / "plots" / picture).exists():
            parts.append(f"![{title}](plots/{picture})")
    return "\n\n".join([*parts, TRIED.read_text().strip()])


def profiles(lines: Sequence[Line]) -> str:
    """What `python -m perf.profile` saw, a column for each label; the latest line of each."""
    latest = {line["label"]: line for line in lines}
    names = list(dict.fromkeys(name for line in latest.values() for name in line["parts_us"]))
    rows = [
        [name, *(number(line["parts_us"].get(name)) for line in latest.values())] for name in names
    ]
    rows.append(["requests/s", *(number(line["throughput"]) for line in latest.values())])
    header = ["µs of a stub's time per request", *latest]
    return "\n\n".join(
        [
            "## What a stub is busy with",
            "Seen by py-spy (`python -m perf.profile`), the server kept busy; the stages are the "
            "same, the adapter around them differs.",
            table(header, rows),
        ]
    )


def _name(device: str, source: Path) -> str:
    return f"suite-{device}-{source.name}"
