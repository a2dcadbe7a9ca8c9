"""What a comparison says in the end: figures, tables and plots from the lines of all its runs.

| key | what it is |
|---|---|
| `best`, `best_protocol` | topology and protocol of most requests/s at the highest concurrency |
| `vs_fastapi_C` | requests/s of the best over FastAPI's, C in flight |
| `ensemble_vs_fastapi_C` | those of the three-hop ensemble by its better protocol over FastAPI's |
| `p50_vs_fastapi_1` | p50 of the best over FastAPI's, 1 in flight |
| `vs_bound` | most requests/s of the best at any concurrency over those in process, one user each |
| `vs_bound_batched` | the same over those in process at their best batch size, `bound_batch` |
| `vs_flat` | most requests/s over the flat export's, by HTTP, both in the release's topology |
| `tuned_vs_split` | the release over the plain split float32 export, both in process |
| `p50_ms_half`, `p99_ms_half` | best topology over HTTP, open loop at half of its most |
| `p99_over_p50_half` | one by the other |
| `late`, `late_percent` | requests of these runs that the generator sent over 1 ms late |
| `failed` | requests of all contenders that were refused, cut off or not answered, except |
| `failed_beyond_half` | those of open loops at more than half: a busy machine may fall behind |
| `generator_us` | median CPU time of the load generator per request |

Requests/s and latencies are medians over the rounds. `spread` holds for every ratio the lowest and
the highest that one round alone gives. An open loop's latency counts from when a request was due.
What was not measured is absent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cascade.spec import TOPOLOGIES
from perf.harness.figures import picture
from perf.harness.record import Line
from perf.harness.table import number, table

BOUND, PLAIN_BOUND, FLAT, FASTAPI = "bound", "bound_plain", "flat", "fastapi"
HALF = 0.5
WAY = ["contender", "protocol", "batch"]
COLUMNS = [
    *(*WAY, "topology", "mode", "value", "share", "round", "throughput", "p50_ms", "p99_ms"),
    *("requests", "failed", "late", "sent", "generator_us"),
]


def frame(lines: Iterable[Line]) -> pd.DataFrame:
    """The runs that got an answer."""
    runs = pd.DataFrame(lines, columns=COLUMNS)
    return runs[runs["requests"] > 0]


def pick(runs: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The runs with these values."""
    for key, value in wanted.items():
        runs = runs[runs[key] == value]
    return runs


def most(runs: pd.DataFrame, name: str, protocol: str) -> float:
    """Highest requests per second of a contender at any concurrency; NaN without a run."""
    closed = pick(runs, mode="concurrency", contender=name, protocol=protocol)
    return float(closed.groupby("value")["throughput"].median().max())


def key_figures(lines: Iterable[Line]) -> dict[str, Any]:
    """The table above, from the lines of one comparison."""
    lines = list(lines)
    runs, beyond = frame(lines), sum(r["failed"] for r in lines if (r["share"] or 0) > HALF)
    found: dict[str, Any] = {
        "failed": sum(line["failed"] for line in lines) - beyond,
        "failed_beyond_half": beyond,
    }
    if best := _best(runs):
        found |= {"best": best[0], "best_protocol": best[1], **_half(runs, best[0])}
    bound = pick(runs, contender=BOUND).groupby("batch")["throughput"].median()
    if len(bound):
        found["bound_batch"] = int(bound.idxmax())
    if len(cost := pick(runs, protocol="http")["generator_us"].dropna()):
        found["generator_us"] = round(float(cost.median()), 1)
    batch, spread = found.get("bound_batch", 1), {}
    rounds = [_ratios(one, best, batch) for _, one in runs.groupby("round")]
    for key, value in _ratios(runs, best, batch).items():
        found[key] = round(value, 4)
        each = [one[key] for one in rounds if key in one]
        spread[key] = [round(min(each), 4), round(max(each), 4)] if each else []
    return {**found, "spread": spread}


def _best(runs: pd.DataFrame) -> tuple[str, str] | None:
    """Topology and protocol of most requests per second at the highest concurrency."""
    closed = pick(runs, mode="concurrency")
    served = closed[closed["contender"].isin(list(TOPOLOGIES))]
    top = served[served["value"] == served["value"].max()]
    rates = top.groupby(["contender", "protocol"])["throughput"].median()
    return rates.idxmax() if len(rates) else None


def _ratios(runs: pd.DataFrame, best: tuple[str, str] | None, batch: int) -> dict[str, float]:
    """Every ratio of some rounds; those of runs that were not made are left out."""
    closed = pick(runs, mode="concurrency")

    def middle(key: str, **wanted: Any) -> float:
        return float(pick(closed, **wanted)[key].median())

    def bound(name: str, batch: int = 1) -> float:
        return middle("throughput", contender=name, batch=batch)

    flat = pick(closed, contender=FLAT)
    found = {"tuned_vs_split": bound(BOUND) / bound(PLAIN_BOUND)}
    if len(flat):
        found["vs_flat"] = most(runs, flat["topology"].iloc[0], "http") / most(runs, FLAT, "http")
    for value in sorted(set(pick(closed, contender=FASTAPI)["value"])):
        at = closed[closed["value"] == value]
        rates = at.groupby(["contender", "protocol"])["throughput"].median()
        over = rates / rates[FASTAPI, "http"]
        found[f"ensemble_vs_fastapi_{value:g}"] = float(
            over[over.index.get_level_values(0) == "ensemble"].max()
        )
        found[f"vs_fastapi_{value:g}"] = float(over.get(best, np.nan))
    if best:
        alone = {"value": 1, "contender": best[0], "protocol": best[1]}
        found["p50_vs_fastapi_1"] = middle("p50_ms", **alone) / middle(
            "p50_ms", value=1, contender=FASTAPI
        )
        found["vs_bound"] = most(runs, *best) / bound(BOUND)
        found["vs_bound_batched"] = most(runs, *best) / bound(BOUND, batch)
    return {key: value for key, value in found.items() if value == value}


def _half(runs: pd.DataFrame, name: str) -> dict[str, Any]:
    half = pick(runs, contender=name, mode="rate", share=HALF)
    if not len(half):
        return {}
    p50, p99 = half["p50_ms"].median(), half["p99_ms"].median()
    late, sent = int(half["late"].sum()), int(half["sent"].sum())
    return {
        "p50_ms_half": round(float(p50), 4),
        "p99_ms_half": round(float(p99), 4),
        "p99_over_p50_half": round(float(p99 / p50), 4),
        "late": late,
        "late_percent": round(100 * late / sent, 4),
    }


def closed_table(lines: Iterable[Line]) -> str:
    """Requests per second and latency in the closed loop, and without a server."""
    header = ["closed loop", "in flight", "requests/s", "from – to", "p50 ms", "p99 ms", "failed"]
    groups = pick(frame(lines), mode="concurrency").groupby([*WAY, "value"])
    return table(header, [[_label(key), f"{key[3]:g}", *_figures(one)] for key, one in groups])


def open_table(lines: Iterable[Line]) -> str:
    """Latency in the open loop at shares of each one's most."""
    header = ["open loop", "share", "rate", "requests/s", "from – to", "p50 ms", "p99 ms", "failed"]
    groups = pick(frame(lines), mode="rate").groupby([*WAY, "share"])
    rows = [
        [_label(key), f"{key[3]:.0%}", number(one["value"].median()), *_figures(one)]
        for key, one in groups
    ]
    return table(header, rows)


def _label(way: Any) -> str:
    name, protocol, batch, *_ = way
    return f"{name}, {protocol}" + (f", batch {batch}" if batch > 1 else "")


def _figures(runs: pd.DataFrame) -> list[str]:
    rates = runs["throughput"]
    return [
        number(rates.median()),
        f"{number(rates.min())} – {number(rates.max())}",
        *(number(runs[key].median()) for key in ("p50_ms", "p99_ms")),
        str(runs["failed"].sum()),
    ]


def curve_plot(lines: Iterable[Line], path: Path) -> None:
    """p50 against requests per second in the closed loop."""
    runs = pick(frame(lines), mode="concurrency")
    with picture(path, "What a throughput costs, closed loop") as axes:
        for way, some in runs[runs["protocol"] != "in-process"].groupby(WAY):
            points = some.groupby("value")[["throughput", "p50_ms"]].median()
            style = "o--" if way[1] == "grpc" else "o-"
            axes.plot(points["throughput"], points["p50_ms"], style, label=_label(way))
        if len(bound := pick(runs, contender=BOUND, batch=1)):
            axes.axvline(bound["throughput"].median(), color="#555", ls=":", label="no server")
        axes.set_yscale("log")
        axes.set(xlabel="requests per second", ylabel="p50, ms", xlim=(0, None))


def write(lines: Iterable[Line], figures: Line, out: Path) -> None:
    """Print the tables; write compare.json, the runs and the plot."""
    lines = list(lines)
    (out / "compare.json").write_text(json.dumps(figures, indent=1) + "\n")
    (out / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for made in (closed_table, open_table):
        print(made(lines), end="\n\n")
    print(json.dumps(figures, indent=1))
    curve_plot(lines, out / "curve.png")
