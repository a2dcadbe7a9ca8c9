"""What a comparison says in the end: figures from all of its runs, defined in one place.

| key | what it is |
|---|---|
| `best`, `best_protocol` | topology and protocol of most requests/s at the highest concurrency |
| `vs_fastapi_C` | requests/s of the best over FastAPI's, C in flight |
| `ensemble_vs_fastapi_C` | those of the three-hop ensemble by its better protocol over FastAPI's |
| `pytriton_vs_fastapi_C` | those of PyTriton's own serving over FastAPI's |
| `p50_vs_fastapi_1` | p50 of the best over FastAPI's, 1 in flight |
| `vs_bound` | most requests/s of the best at any concurrency over the bound's, a user at a time |
| `vs_bound_batched` | the same over the bound at the batch that suits it best, `bound_batch` |
| `vs_flat` | most requests/s over the flat export's, by HTTP, both in the release's topology |
| `tuned_vs_split` | the bound of the release over that of the plain split float32 export |
| `p50_ms_half`, `p99_ms_half` | best topology over HTTP, open loop at half of its most |
| `p99_over_p50_half` | one by the other |
| `late`, `late_percent` | requests of these runs that the generator sent over 1 ms late |
| `failed` | requests of all contenders that were refused, cut off or not answered, but for |
| `failed_beyond_half` | those of open loops at more than half, which a busy machine may not bear |
| `generator_us` | CPU time of the generator per request, the server doing nothing |

Requests/s and latencies are medians over the rounds. `spread` holds for every ratio the lowest and
the highest that one round alone gives. An open loop's latency counts from when a request was due.
What was not measured is absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from cascade.spec import TOPOLOGIES

Line = Mapping[str, Any]
Ratio = Callable[["Runs"], float | None]
BOUND, PLAIN_BOUND, FLAT, FASTAPI, PYTRITON = "bound", "bound_plain", "flat", "fastapi", "pytriton"
HALF = 0.5


class Runs:
    """The lines of one comparison, or of some rounds of it."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self.lines = [line for line in lines if line["requests"]]

    def pick(self, **wanted: Any) -> list[Line]:
        return [line for line in self.lines if all(line[k] == v for k, v in wanted.items())]

    def values(self, **wanted: Any) -> list[float]:
        """Concurrencies at which such runs were made, lowest first."""
        return sorted({line["value"] for line in self.pick(**{**wanted, "mode": "concurrency"})})

    def mid(self, key: str, **wanted: Any) -> float | None:
        """The median over the rounds of such runs."""
        found = [line[key] for line in self.pick(**wanted)]
        return median(found) if found else None

    def rate(self, name: str, protocol: str, value: float) -> float | None:
        """Requests per second of a contender in a closed loop."""
        wanted = {"contender": name, "protocol": protocol, "mode": "concurrency"}
        return self.mid("throughput", value=value, **wanted)

    def most(self, name: str, protocol: str) -> float | None:
        """The highest of them at any concurrency."""
        rates = (self.rate(name, protocol, c) for c in self.values(contender=name))
        return max(filter(None, rates), default=None)

    def better(self, name: str, value: float) -> float | None:
        """Requests per second over the better protocol."""
        rates = (self.rate(name, protocol, value) for protocol in ("http", "grpc"))
        return max(filter(None, rates), default=None)

    def over_flat(self) -> float | None:
        """Most requests per second over HTTP of the topology that the flat export has, over it."""
        flat = self.pick(contender=FLAT)
        return (
            _over(self.most(flat[0]["topology"], "http"), self.most(FLAT, "http")) if flat else None
        )

    def bound(self, name: str, batch: int = 1) -> float | None:
        """Users per second without a server."""
        return self.mid("throughput", contender=name, batch=batch)

    def batches(self) -> dict[int, float]:
        """The bound's users per second by batch."""
        batches = sorted({line["batch"] for line in self.pick(contender=BOUND)})
        return {batch: self.bound(BOUND, batch) or 0.0 for batch in batches}

    def best(self) -> tuple[str, str] | None:
        """Topology and protocol of most requests per second at the highest concurrency."""
        served = [line for line in self.pick(mode="concurrency") if line["contender"] in TOPOLOGIES]
        if not served:
            return None
        top = max(line["value"] for line in served)
        ways = sorted({(line["contender"], line["protocol"]) for line in served})
        return max(ways, key=lambda way: self.rate(way[0], way[1], top) or 0.0)


def key_figures(lines: Sequence[Line]) -> dict[str, Any]:
    """The table above, from the lines of one comparison."""
    runs = Runs(lines)
    best = runs.best()
    beyond = sum(line["failed"] for line in lines if (line["share"] or 0) > HALF)
    failed = sum(line["failed"] for line in lines) - beyond
    found: dict[str, Any] = {"failed": failed, "failed_beyond_half": beyond}
    if best:
        found |= {"best": best[0], "best_protocol": best[1], **_half(runs, best[0])}
    if batches := runs.batches():
        found["bound_batch"] = max(batches, key=lambda batch: batches[batch])
    ratios = _ratios(best, runs.values(contender=FASTAPI), found.get("bound_batch", 1))
    spread = {}
    rounds = [Runs(runs.pick(round=number)) for number in sorted({r["round"] for r in runs.lines})]
    for key, ratio in ratios.items():
        value = ratio(runs)
        if value is None:
            continue
        found[key] = round(value, 4)
        each = [value for one in rounds if (value := ratio(one)) is not None]
        spread[key] = [round(min(each), 4), round(max(each), 4)] if each else []
    return {**found, "spread": spread}


def _ratios(
    best: tuple[str, str] | None, concurrencies: Sequence[float], batch: int
) -> dict[str, Ratio]:
    """Every ratio as a function of some rounds."""
    ratios: dict[str, Ratio] = {
        "tuned_vs_split": lambda r: _over(r.bound(BOUND), r.bound(PLAIN_BOUND)),
        "vs_flat": Runs.over_flat,
    }
    for c in concurrencies:
        for name in ("ensemble", PYTRITON):
            ratios[f"{name}_vs_fastapi_{c:g}"] = lambda r, c=c, name=name: _over(  # type: ignore[misc]
                r.better(name, c), r.rate(FASTAPI, "http", c)
            )
    if best is None:
        return ratios
    name, protocol = best
    for c in concurrencies:
        ratios[f"vs_fastapi_{c:g}"] = lambda r, c=c: _over(  # type: ignore[misc]
            r.rate(*best, c), r.rate(FASTAPI, "http", c)
        )
    alone = {"mode": "concurrency", "value": 1}
    return {
        **ratios,
        "p50_vs_fastapi_1": lambda r: _over(
            r.mid("p50_ms", contender=name, protocol=protocol, **alone),
            r.mid("p50_ms", contender=FASTAPI, **alone),
        ),
        "vs_bound": lambda r: _over(r.most(*best), r.bound(BOUND)),
        "vs_bound_batched": lambda r: _over(r.most(*best), r.bound(BOUND, batch)),
    }


def _half(runs: Runs, name: str) -> dict[str, Any]:
    half = {"contender": name, "mode": "rate", "share": HALF}
    lines = runs.pick(**half)
    p50, p99 = runs.mid("p50_ms", **half), runs.mid("p99_ms", **half)
    if not lines or p50 is None or p99 is None:
        return {}
    late, sent = sum(r["late"] for r in lines), sum(r["sent"] for r in lines)
    return {
        "p50_ms_half": round(p50, 4),
        "p99_ms_half": round(p99, 4),
        "p99_over_p50_half": round(p99 / p50, 4),
        "late": late,
        "late_percent": round(100 * late / sent, 4),
    }


def _over(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None
