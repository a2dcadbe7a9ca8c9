"""`python -m perf.report`: perf/report.md and its plots, from the lines of perf/results alone.

Every figure in the report is read off a line; the text around them holds none.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from perf import report_speed
from perf.plots import latency_plot, stages_plot, throughput_plot
from perf.record import RESULTS, ROOT, RecordError, read
from perf.table import Line, latency_table, load, marks, number, stage_table, table

HOW_TO_READ = """\
Concurrency keeps so many requests in flight (closed loop). A rate sends them at Poisson times
whatever comes back (open loop), which is what independent users do; the rates are shares of the
highest throughput measured before. Percentiles come from the time of every single request. The
high ones rest on few requests: `p99 by window` shows how far the p99 of the windows differs.

Stage times are means per request from the server's own counters. A request that shares a batch
counts the whole batch's time. Users ÷ executions is the mean batch. The counters cover the whole
run, the client's figures its last windows; where the server is overloaded the two differ.

**unstable**: throughput or latency of the last windows differed by more than the tolerance.
**delayed**: the client could not send on time, so the load was less than the one named.
**failed**: the server refused or failed requests; there is no latency to report."""


@dataclass(frozen=True)
class Sweep:
    """The lines of one `python -m perf`, in the order in which they were measured."""

    lines: tuple[Line, ...]

    @property
    def first(self) -> Line:
        return self.lines[0]

    @property
    def configuration(self) -> str:
        return str(self.first["configuration"])

    @property
    def name(self) -> str:
        """What the report compares: the configuration, asked for so many users at a time."""
        batch = self.first["batch"]
        return self.configuration if batch == 1 else f"{self.configuration}-batch-{batch}"

    @property
    def in_process(self) -> bool:
        return bool(self.first["model"] == "in-process")

    @property
    def effort(self) -> str:
        return str(self.first["windows"].get("effort", "full"))

    @property
    def fastest(self) -> Line | None:
        """The closed-loop run of highest throughput; a marked one only if there is no other."""
        runs = [r for r in self.lines if r["mode"] == "concurrency" and r["requests"]]
        return max(
            [r for r in runs if not marks(r)] or runs, key=lambda r: r["throughput"], default=None
        )

    def at(self, mode: str, value: float) -> Line | None:
        """The run at that load, if it was answered."""
        return next(
            (r for r in self.lines if (r["mode"], r["value"]) == (mode, value) and r["requests"]),
            None,
        )


def sweeps(lines: Sequence[Line]) -> list[Sweep]:
    """Group lines by configuration and start, oldest first."""
    groups: dict[tuple[str, str, int], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["sweep"], line["configuration"], line["batch"]), []).append(line)
    return [Sweep(tuple(groups[key])) for key in sorted(groups)]


def latest(found: Sequence[Sweep]) -> dict[str, Sweep]:
    """By name the sweep to report: the latest full one, or the latest quick one."""
    chosen: dict[str, Sweep] = {}
    for sweep in found:
        before = chosen.get(sweep.name)
        if before is None or sweep.effort == "full" or before.effort != "full":
            chosen[sweep.name] = sweep
    return chosen


def bound_of(sweep: Sweep, found: Sequence[Sweep]) -> Line | None:
    """The latest in-process run that may be compared: same machine, batch, device and runtime (the
    last two are what `in-process-cpu` and `ensemble-cpu` end in)."""
    comparable = [
        other
        for other in found
        if other.in_process
        and other.first["hardware"] == sweep.first["hardware"]
        and other.first["batch"] == sweep.first["batch"]
        and sweep.configuration.endswith(other.configuration.removeprefix("in-process"))
    ]
    return comparable[-1].fastest if comparable else None


def write_report(results: Sequence[Path], report: Path) -> None:
    """Write the report and, in the folder `plots` beside it, its pictures.

    Raises:
        RecordError: there is no line, or one that cannot be read.
    """
    # Other programs leave lines of another kind there; theirs are drawn where they were made.
    everything = [line for path in results for line in read(path)]
    lines = [line for line in everything if "windows" in line and "contender" not in line]
    profiles = [line for line in everything if "parts_us" in line and "label" in line]
    suites = {line["summary"]["device"]: line for line in everything if "summary" in line}
    if not lines:
        raise RecordError("there are no results yet; measure with `python -m perf` first")
    found = sweeps(lines)
    chosen = latest(found)
    served = [sweep for sweep in chosen.values() if not sweep.in_process]
    parts = [
        "# Latency report",
        "Written by `python -m perf.report` from the lines in "
        + ", ".join(f"`{path.name}`" for path in results)
        + ".",
        *(["## Summary", _summary(served, found)] if served else []),
        *(report_speed.section(line, report) for line in suites.values()),
        *([report_speed.profiles(profiles)] if profiles else []),
        "## Latency, sweep by sweep",
        HOW_TO_READ,
        *(_section(s, bound_of(s, found), report.parent / "plots") for s in served),
        *(_in_process_section(sweep) for sweep in chosen.values() if sweep.in_process),
        "## All sweeps",
        _history(found),
    ]
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text("\n\n".join(parts) + "\n")


def _summary(served: Sequence[Sweep], found: Sequence[Sweep]) -> str:
    header = ["configuration", "highest users/s", "at", "p50 ms there", "p99 ms there"]
    header += ["p50 ms alone", "p99 ms alone", "in-process users/s", "share of it", "marks"]
    rows = []
    for sweep in served:
        best, alone = sweep.fastest, sweep.at("concurrency", 1)
        bound = bound_of(sweep, found)
        share = best["throughput"] / bound["throughput"] if best and bound else None
        rows.append(
            [
                sweep.name,
                *(_cells(best, "throughput")),
                load(best) if best else "–",
                *_cells(best, "p50_ms", "p99_ms"),
                *_cells(alone, "p50_ms", "p99_ms"),
                *_cells(bound, "throughput"),
                "–" if share is None else f"{100 * share:.0f} %",
                _summary_marks(best, bound),
            ]
        )
    return (
        table(header, rows)
        + "\n\n`alone` is one request in flight. `in-process` is the same code on the same machine "
        "without a server, one process per core: what the server is measured against."
    )


def _summary_marks(best: Line | None, bound: Line | None) -> str:
    found = [marks(best) if best else "**failed**"]
    if bound and marks(bound):
        found.append(f"in-process {marks(bound)}")
    return ", ".join(filter(None, found))


def _cells(line: Line | None, *keys: str) -> list[str]:
    return [number(line.get(key) if line else None) for key in keys]


def _section(sweep: Sweep, bound: Line | None, folder: Path) -> str:
    name, lines = sweep.name, sweep.lines
    title = f"{name}: {_machine(sweep.first['hardware'])}"
    answered = [line for line in lines if line["requests"]]
    pictures = []
    if any(line["mode"] == "concurrency" for line in answered):
        latency_plot(lines, f"Latency, {title}", folder / f"{name}-latency.png")
        pictures.append(f"![Latency against concurrency](plots/{name}-latency.png)")
    if answered:
        limit = bound["throughput"] if bound else None
        throughput_plot(lines, f"Throughput, {title}", folder / f"{name}-throughput.png", limit)
        stages_plot(lines, f"Time by stage, {title}", folder / f"{name}-stages.png")
        pictures.append(f"![Throughput against latency](plots/{name}-throughput.png)")
        pictures.append(f"![Time by stage](plots/{name}-stages.png)")
    parts = [f"## {name}", _conditions(sweep), latency_table(lines), *pictures[:2]]
    return "\n\n".join([*parts, "### Where the time goes", stage_table(lines), *pictures[2:]])


def _in_process_section(sweep: Sweep) -> str:
    return "\n\n".join(
        [
            f"## {sweep.name}",
            "The bound: the same stages called directly, one process per core, without a server.",
            _conditions(sweep),
            latency_table(sweep.lines),
        ]
    )


def _conditions(sweep: Sweep) -> str:
    first = sweep.first
    windows, payload = first["windows"], first["payload"]
    facts: Mapping[str, str] = {
        "measured": f"{first['time']} to {sweep.lines[-1]['time']}",
        "commit": _commit(first),
        "configuration hash": (first["config_hash"] or "unknown")[:16],
        "machine": _machine(first["hardware"]),
        "versions": ", ".join(f"{name} {version}" for name, version in first["versions"].items()),
        "users": f"{payload['rows']} from {payload['source']}, {first['batch']} per request",
        "windows": ", ".join(f"{key} {_plain(value)}" for key, value in windows.items()),
        "load average at the end of each run": ", ".join(
            number(line["load_average"]) for line in sweep.lines
        ),
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _history(found: Sequence[Sweep]) -> str:
    header = ["measured", "configuration", "commit", "effort", "runs", "marked"]
    header += ["highest users/s", "p50 ms there", "p99 ms there", "machine"]
    rows = [
        [
            sweep.first["time"],
            sweep.name,
            _commit(sweep.first),
            sweep.effort,
            str(len(sweep.lines)),
            str(sum(bool(marks(line)) for line in sweep.lines)),
            *_cells(sweep.fastest, "throughput", "p50_ms", "p99_ms"),
            _machine(sweep.first["hardware"]),
        ]
        for sweep in found
    ]
    return table(header, rows)


def _commit(line: Line) -> str:
    return (line["commit"] or "unknown")[:12] + (" with changes" if line["dirty"] else "")


def _machine(hardware: Line) -> str:
    gpu = f", {hardware['gpu']}" if hardware["gpu"] else ""
    cores = f"{hardware['cores']} core{'' if hardware['cores'] == 1 else 's'}"
    return f"{hardware['cpu']}, {cores}, {hardware['memory_gib']:g} GiB{gpu}"


def main(arguments: list[str] | None = None) -> int:
    """Write the report; 2 when there is nothing to report."""
    parser = argparse.ArgumentParser(prog="python -m perf.report", description=__doc__)
    parser.add_argument("results", type=Path, nargs="*", help="default: perf/results/*.jsonl")
    parser.add_argument("--out", type=Path, default=ROOT / "perf" / "report.md")
    options = parser.parse_args(arguments)
    try:
        write_report(options.results or sorted(RESULTS.glob("*.jsonl")), options.out)
    except (RecordError, FileNotFoundError) as error:
        print(f"perf.report: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
