"""What a comparison says in the end: figures, tables and plots from the lines of all its runs.

| key | what it is |
|---|---|
| `best` | topology of most requests/s at the highest concurrency |
| `vs_fastapi_C` | requests/s of the best over FastAPI's, C in flight |
| `ensemble_vs_fastapi_C` | those of the three-hop ensemble over FastAPI's |
| `p50_vs_fastapi_1` | p50 of the best over FastAPI's, 1 in flight |
| `vs_bound` | most requests/s of the best at any concurrency over those in process, one user each |
| `vs_bound_batched` | the same over those in process at their best batch size, `bound_batch` |
| `vs_flat` | most requests/s over the flat export's, both in the release's topology |
| `tuned_vs_split` | the release over the plain split float32 export, both in process |
| `p50_ms_half`, `p99_ms_half` | best topology, open loop at half of its most |
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

import pandas as pd

from cascade.files import write_json
from cascade.spec import TOPOLOGIES
from perf.harness.record import Line
from perf.harness.table import number, picture, table

BOUND, PLAIN_BOUND, FLAT, FASTAPI = "bound", "bound_plain", "flat", "fastapi"
HALF = 0.5
COLUMNS = [
    *("contender", "batch", "topology", "mode", "value", "share", "round", "throughput", "p50_ms"),
    *("p99_ms", "requests", "failed", "late", "sent", "generator_us"),
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


def most(runs: pd.DataFrame, name: str) -> float:
    """Highest requests per second of a server at any concurrency; NaN without a run."""
    closed = pick(runs, mode="concurrency", contender=name)
    return float(closed.groupby("value")["throughput"].median().max())


def key_figures(lines: Iterable[Line]) -> dict[str, Any]:
    """The table above, from the lines of one comparison."""
    lines = list(lines)
    runs, beyond = frame(lines), sum(r["failed"] for r in lines if (r["share"] or 0) > HALF)
    failed = sum(line["failed"] for line in lines) - beyond
    found: dict[str, Any] = {"failed": failed, "failed_beyond_half": beyond}
    if best := _best(runs):
        found |= {"best": best, **_half(runs, best)}
    bound = pick(runs, contender=BOUND).groupby("batch")["throughput"].median()
    if len(bound):
        found["bound_batch"] = int(bound.idxmax())
    if len(cost := runs["generator_us"].dropna()):
        found["generator_us"] = round(float(cost.median()), 1)
    batch, spread = found.get("bound_batch", 1), {}
    rounds = [_ratios(one, best, batch) for _, one in runs.groupby("round")]
    for key, value in _ratios(runs, best, batch).items():
        found[key] = round(value, 4)
        each = [one[key] for one in rounds if key in one]
        spread[key] = [round(min(each), 4), round(max(each), 4)] if each else []
    return {**found, "spread": spread}


def _best(runs: pd.DataFrame) -> str | None:
    """The topology of most requests per second at the highest concurrency."""
    closed = pick(runs, mode="concurrency")
    served = closed[closed["contender"].isin(list(TOPOLOGIES))]
    top = pick(served, value=served["value"].max())
    return str(top.groupby("contender")["throughput"].median().idxmax()) if len(top) else None


def _ratios(runs: pd.DataFrame, best: str | None, batch: int) -> dict[str, float]:
    """Every ratio of some rounds; those of runs that were not made are left out."""
    closed = pick(runs, mode="concurrency")

    def middle(name: str | None, key: str = "throughput", **wanted: Any) -> float:
        return float(pick(closed, contender=name, **wanted)[key].median())

    found = {"tuned_vs_split": middle(BOUND, batch=1) / middle(PLAIN_BOUND)}
    if len(flat := pick(closed, contender=FLAT)):
        found["vs_flat"] = most(runs, flat["topology"].iloc[0]) / most(runs, FLAT)
    for value in sorted(set(pick(closed, contender=FASTAPI)["value"])):
        other = middle(FASTAPI, value=value)
        found[f"ensemble_vs_fastapi_{value:g}"] = middle("ensemble", value=value) / other
        found[f"vs_fastapi_{value:g}"] = middle(best, value=value) / other
    if best:
        p50_ms = [middle(name, "p50_ms", value=1) for name in (best, FASTAPI)]
        found["p50_vs_fastapi_1"] = p50_ms[0] / p50_ms[1]
        found["vs_bound"] = most(runs, best) / middle(BOUND, batch=1)
        found["vs_bound_batched"] = most(runs, best) / middle(BOUND, batch=batch)
    return {key: value for key, value in found.items() if value == value}


def _half(runs: pd.DataFrame, name: str) -> dict[str, Any]:
    half = pick(runs, contender=name, mode="rate", share=HALF)
    if not len(half):
        return {}
    p50, p99 = half[["p50_ms", "p99_ms"]].median()
    late, sent = half[["late", "sent"]].sum()
    found = {"p50_ms_half": p50, "p99_ms_half": p99, "p99_over_p50_half": p99 / p50}
    found["late_percent"] = 100 * late / sent
    return {"late": int(late), **{key: round(float(value), 4) for key, value in found.items()}}


def loop_table(lines: Iterable[Line], mode: str) -> str:
    """Requests per second and latency, the runs in process among those of the closed loop."""
    by = {"concurrency": "value", "rate": "share"}[mode]
    titles = {"concurrency": ["closed loop", "in flight"], "rate": ["open loop", "share of most"]}
    header = [*titles[mode], "requests/s", "from – to", "p50 ms", "p99 ms", "failed"]
    rows, grouped = [], pick(frame(lines), mode=mode).groupby(["contender", "batch", by])
    for (name, batch, at), runs in grouped:
        title = f"{name}, batch {batch}" if batch > 1 else name
        rates, failed = runs["throughput"], str(runs["failed"].sum())
        figures = [number(rates.median()), f"{number(rates.min())} – {number(rates.max())}"]
        figures += [number(runs[key].median()) for key in ("p50_ms", "p99_ms")]
        rows.append([title, f"{at:g}", *figures, failed])
    return table(header, rows)


def curve_plot(lines: Iterable[Line], path: Path) -> None:
    """p50 against requests per second in the closed loop."""
    runs = pick(frame(lines), mode="concurrency")
    with picture(path, "What a throughput costs, closed loop") as axes:
        for name, some in runs[~runs["contender"].isin([BOUND, PLAIN_BOUND])].groupby("contender"):
            points = some.groupby("value")[["throughput", "p50_ms"]].median()
            axes.plot(points["throughput"], points["p50_ms"], "o-", label=name)
        if len(bound := pick(runs, contender=BOUND, batch=1)):
            axes.axvline(bound["throughput"].median(), color="#555", ls=":", label="no server")
        axes.set_yscale("log")
        axes.set(xlabel="requests per second", ylabel="p50, ms", xlim=(0, None))


def write(lines: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    """Print the tables; write compare.json, the runs and the plot -> the key figures."""
    figures = key_figures(lines)
    write_json(out / "compare.json", figures)
    (out / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(loop_table(lines, "concurrency"), loop_table(lines, "rate"), sep="\n\n")
    print(f"\n{json.dumps(figures, indent=1)}")
    curve_plot(lines, out / "curve.png")
    return figures
