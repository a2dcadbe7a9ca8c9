"""`python -m perf.report`: perf/report.md and its plots, from the lines of perf/results alone.

With `--fill FILE …` it puts the outputs of the commands into documents instead: what stands between
`<!-- demo -->` and `<!-- /demo -->` becomes the demo's last screen, `tests` the closing line of the
tests, `results` and `resilience` the tables of claims.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from matplotlib.axes import Axes

from cascade.errors import CascadeError, run
from cascade.files import file_name
from perf.harness import table
from perf.harness.record import RESULTS, ROOT, Line, RecordError, read
from perf.harness.table import STAGE_TIMES, Claim, figures, picture, verdicts

CLAIMS = (
    Claim("vs_fastapi_16", ">=", 1.25, "best Triton topology over FastAPI, 16 in flight"),
    Claim("vs_fastapi_32", ">=", 1.25, "the same, 32 in flight"),
    Claim("p50_vs_fastapi_1", "<=", 1.1, "median latency over FastAPI's, 1 in flight"),
    Claim("vs_bound", ">=", 0.8, "best Triton topology over the same stages without a server"),
    Claim("vs_flat", ">=", 3, "over flat float32 graphs in the same topology"),
    Claim("tuned_vs_split", ">=", 1.5, "tuned over plain split float32 stages, without a server"),
    Claim("ensemble_vs_fastapi_32", ">=", 1, "three-hop ensemble over FastAPI, 32 in flight"),
    Claim("p99_over_p50_half", "<=", 2.5, "open loop at half of the maximum"),
    Claim("p99_ms_half", "<=", 10, "the same, in milliseconds"),
    Claim("failed", "=", 0, "requests that failed"),
    Claim("late", "=", 0, "requests that the generator sent late"),
    Claim("index_speedup", ">=", 25, "tuned index over exact search on one core"),
    Claim("index_recall", ">=", 0.95, "its recall at the candidates"),
    Claim("pss_two_over_one", "<=", 1.25, "memory of two instances over one, large tables"),
    Claim("paper_p99_ratio", "<=", 1.5, "p99 with large tables over small ones"),
    Claim("growth_exponent_items", "<=", 0.5, "cost against the catalogue"),
    Claim("growth_exponent_candidates", "<=", 1, "cost against the candidates"),
    Claim("waterfall_share", ">=", 0.95, "share of a request's time that is accounted for"),
    Claim("gpu_retrieval_over_floor", "<=", 2, "exact retrieval for 32 users over its floor"),
    Claim("gpu_p99_ms_half", "<=", 5, "whole cascade on the GPU at half of its maximum"),
)
PICTURES = {
    "compare/curve.png": "What a throughput costs, closed loop",
    "waterfall/waterfall.png": "Where the time of one request goes",
    "scaling/items.png": "Cost against the catalogue",
    "scaling/candidates.png": "Cost against the candidates",
}
INTRODUCTION = """\
# Performance report

`make perf` measures; `python -m perf.report` writes this file from the newest lines in
`perf/results`. Targets are our own; missed targets are marked **no**."""
HOW_TO_READ = """\
Concurrency keeps so many requests in flight (closed loop). A rate sends them at Poisson times,
answered or not (open loop), which is what independent users do; the rates are shares of the highest
throughput measured before. Percentiles come from the time of every single request. The high ones
rest on few requests: `p99 by window` shows how far the p99 of the windows differs.

Stage times are means per request from the server's own counters. Each request of a batch counts the
whole batch's time.

**unstable**: throughput or latency of the last windows differed by more than the tolerance.
**delayed**: the client could not send on time, so the load was less than the one named.
**failed**: the server refused or failed requests; there is no latency to report."""


def write_report(results: Sequence[Path], report: Path) -> None:
    """Write the report, and its pictures into `plots` beside it. Raises RecordError."""
    lines = [line for path in results for line in read(path)]
    if not lines:
        raise RecordError("there are no results yet; measure with `python -m perf` first")
    parts, plots = [INTRODUCTION], report.parent / "plots"
    parts += [_suite(line, plots) for line in lines if "summary" in line]
    for name, some in groupby(sorted(lines, key=_name), _name):
        parts += _section(name, [*some], plots)
    report.parent.mkdir(parents=True, exist_ok=True)
    tried = (ROOT / "perf" / "tried.md").read_text().strip()
    report.write_text("\n\n".join([*parts, tried]) + "\n")


def _name(line: Line) -> str:
    """The configuration; with the users of a request for a sweep of more than one."""
    batch = line.get("batch", 1) if "mode" in line else 1
    return str(line["configuration"]) + (f"-batch-{batch}" if batch != 1 else "")


def _suite(line: Line, plots: Path) -> str:
    """The claims of one run, with the pictures that it left."""
    summary, name = line["summary"], line["configuration"]
    title = f"## Claims, {summary['items']:,} items on {summary['device']}"
    parts = [title, _conditions(line), verdicts(summary, CLAIMS)]
    for path, title in {**PICTURES, "frontier.png": "Index kinds: recall against time"}.items():
        file = f"{name}-{Path(path).name}"
        if (plots / file).exists():
            parts.append(f"![{title}](plots/{file})")
    return "\n\n".join(parts)


def _section(name: str, lines: list[Line], plots: Path) -> list[str]:
    """The lines of one configuration; what wrote them shows in their keys."""
    first = lines[0]
    if "mode" in first:
        return [f"## {name}", _conditions(first), *_sweep(name, lines, plots)]
    if "parts_us" in first:
        title = "µs by interval"
        frame = pd.DataFrame({f"{line['batch']} user(s)": line["parts_us"] for line in lines})
    elif "against" in first:
        title, frame = "medians by size", pd.DataFrame(lines).set_index("size")
        frame = frame.select_dtypes("number").drop(columns="load_average", errors="ignore")
    elif "figures" in first:
        title = "`perf.compare_report` says what"
        values = {k: v for k, v in first["figures"].items() if isinstance(v, int | float)}
        frame = pd.DataFrame({"value": values})
    else:
        return []
    return [f"## {name}: {title}", _conditions(first), figures(frame)]


def _sweep(name: str, lines: list[Line], plots: Path) -> list[str]:
    parts = [HOW_TO_READ, table.latency_table(lines)]
    runs = pd.DataFrame([line for line in lines if line["requests"]])
    for title, kind, draw in (
        ("Throughput against latency", "throughput", _curves),
        ("Time by stage", "stages", _stages),
    ):
        if len(runs):
            file = file_name(f"{name}-{kind}", ".png")
            with picture(plots / file, f"{title}, {name}") as axes:
                draw(runs, axes)
            parts.append(f"![{title}](plots/{quote(file)})")
    return [*parts, table.stage_table(lines)]


def _curves(runs: pd.DataFrame, axes: Axes) -> None:
    """What latency a throughput costs: closed loop and Poisson rates."""
    for mode, some in runs.groupby("mode"):
        for key, style in (("p50_ms", "o-"), ("p99_ms", "s--")):
            axes.plot(some["throughput"], some[key], style, label=f"{key[:3]}, {mode}")
    for _, closed in runs[runs["mode"] == "concurrency"].iterrows():
        axes.annotate(f"{closed['value']:g}", (closed["throughput"], closed["p99_ms"]))
    axes.set(yscale="log", xlim=(0, None), ylabel="latency, ms")
    axes.set_xlabel("users per second (at each point: requests in flight)")


def _stages(runs: pd.DataFrame, axes: Axes) -> None:
    """The mean latency by stage, waiting and computing, and the rest: network and client."""
    rows: dict[str, dict[str, float]] = {}
    for _, line in runs.iterrows():
        row = rows[table.load(line)] = {}
        for stage, times in line["stages"].items():
            row[f"{stage}, waiting"] = times["queue_us"] / 1000
            row[stage] = sum(times[key] for key in STAGE_TIMES[1:]) / 1000
        row["network, client"] = max(0.0, line["mean_ms"] - sum(row.values()))
    pd.DataFrame(rows).T.plot.bar(stacked=True, ax=axes, ylabel="ms", rot=30, cmap="tab20")


def _conditions(line: Line) -> str:
    hardware, commit = line["hardware"], (line["commit"] or "unknown")[:12]
    machine = f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']:g} GiB"
    gpu = f", {hardware['gpu']}" if hardware["gpu"] else ""
    dirty = " with changes" if line["dirty"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in line["versions"].items())
    return f"{line['time']}, commit {commit}{dirty}; {machine}{gpu}; {versions}."


SOURCES = {
    "demo": "build/demo/output.txt",
    "tests": "build/test.txt",
    "results": "perf/report.md",
    "resilience": "build/resilience/claims.md",
}


def _block(name: str) -> str:
    """What a document says in a block: from the output of a make target."""
    path = SOURCES[name]
    if not (ROOT / path).exists():
        raise CascadeError(f"{path} is missing: run the make target that writes it first")
    text = (ROOT / path).read_text().strip()
    if name == "demo":  # its last screen
        screen = text.rpartition("\n==> ")[2]
        return f"```\n$ make demo\n…\n{screen}\n```"
    if name == "tests":  # their closing line
        return f"```\n$ make test\n{text.splitlines()[-1].strip('= ')}\n```"
    tables = re.findall(r"(?m)(?:^\| claim.*\n(?:^\|.*\n?)+)", text)
    if not tables:
        raise CascadeError(f"{path} holds no table of claims: run the whole command first")
    return str(tables[-1].strip())


def fill(text: str) -> str:
    """A document with its blocks replaced."""
    for name in SOURCES:
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if found := block.search(text):
            text = f"{text[: found.end(1)]}{_block(name)}\n{text[found.start(2) :]}"
    return text


def main(arguments: list[str] | None = None) -> None:
    """Write the report, or fill documents."""
    parser = argparse.ArgumentParser(prog="python -m perf.report", description=__doc__)
    add = parser.add_argument
    add("results", type=Path, nargs="*", help="files of lines (default: perf/results/*.jsonl)")
    add("--out", type=Path, default=ROOT / "perf" / "report.md")
    add("--fill", type=Path, nargs="+", metavar="FILE", help="documents to fill")
    options = parser.parse_args(arguments)
    for path in options.fill or ():
        path.write_text(fill(path.read_text()))
    if not options.fill:
        write_report(options.results or sorted(RESULTS.glob("*.jsonl")), options.out)
        print(f"wrote {options.out}")


if __name__ == "__main__":
    run(main, to_end=True)
