"""The lines of a comparison as tables: medians over the rounds, and from where to where they go."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from perf.compare_keys import Line, Runs
from perf.table import number, table


def closed_table(lines: Sequence[Line]) -> str:
    """Requests per second and latency in the closed loop, and without a server."""
    header = ["closed loop", "in flight", "requests/s", "from – to", "p50 ms", "p99 ms", "failed"]
    rows = []
    for way in _ways(lines, "concurrency"):
        name, protocol, batch = way
        who = {"contender": name, "protocol": protocol, "batch": batch, "mode": "concurrency"}
        for value in Runs(lines).values(**who):
            rows.append([_label(way), f"{value:g}", *_figures(lines, value=value, **who)])
    return table(header, rows)


def open_table(lines: Sequence[Line]) -> str:
    """Latency in the open loop at shares of each one's most."""
    header = ["open loop", "share", "rate", "requests/s", "from – to", "p50 ms", "p99 ms", "failed"]
    header.append("late")
    rows = []
    for way in _ways(lines, "rate"):
        who = {"contender": way[0], "protocol": way[1], "mode": "rate"}
        for share in sorted({line["share"] for line in Runs(lines).pick(**who)}):
            found = Runs(lines).pick(share=share, **who)
            rate, late = median(r["value"] for r in found), sum(r["late"] for r in found)
            cells = [f"{share:.0%}", number(rate), *_figures(lines, share=share, **who), str(late)]
            rows.append([_label(way), *cells])
    return table(header, rows)


def cores_table(lines: Sequence[Line]) -> str:
    """How many cores each kind of process was busy on, in the closed loop at most in flight."""
    served = [line for line in Runs(lines).lines if line["cores_busy"] and not line["share"]]
    top = max((line["value"] for line in served), default=0)
    served = [line for line in served if line["value"] == top]
    kinds = sorted({kind for line in served for kind in line["cores_busy"]})
    rows = []
    for way in _ways(served, "concurrency"):
        found = [r for r in served if (r["contender"], r["protocol"]) == way[:2]]
        busy = [median(r["cores_busy"].get(kind, 0.0) for r in found) for kind in kinds]
        rows.append([_label(way), *map(number, busy)])
    return table([f"cores busy, {top:g} in flight", *kinds], rows)


Way = tuple[str, str, int]


def _ways(lines: Sequence[Line], mode: str) -> list[Way]:
    return sorted({(r["contender"], r["protocol"], r["batch"]) for r in lines if r["mode"] == mode})


def _label(way: Way) -> str:
    name, protocol, batch = way
    return f"{name}, {protocol}" + (f", batch {batch}" if batch > 1 else "")


def _figures(lines: Sequence[Line], **wanted: object) -> list[str]:
    found = Runs(lines).pick(**wanted)
    rates = [line["throughput"] for line in found]
    return [
        number(median(rates)),
        f"{number(min(rates))} – {number(max(rates))}",
        number(median(line["p50_ms"] for line in found)),
        number(median(line["p99_ms"] for line in found)),
        str(sum(line["failed"] for line in found)),
    ]
