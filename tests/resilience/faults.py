"""Faults: killed processes, overload, a stop under load, malformed requests, TLS."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cascade.client.recommender import DEADLINE_S
from cascade.server.cleanup import remove_orphans
from perf.artifacts import Artifacts
from perf.payload import Payload
from perf.table import number, table
from tests.resilience import encrypted, fuzz, overload, shutdown, stub_kills
from tests.resilience.stock import Stock

USERS = 256


def run(work: Path, stock: Stock) -> dict[str, float]:
    """Do all of it -> figures. Where the stock is thorough, every stage is killed several times,
    and 100,000 malformed requests are sent."""
    fused, ensemble, thorough = stock.fused, stock.ensemble, stock.thorough
    users = _some(fused)
    kills = stub_kills.measure(ensemble, users, work, rounds=5 if thorough else 1)
    crowd = overload.measure(fused.repository, users, work, seconds=60 if thorough else 3)
    seconds = float("inf") if thorough else stock.seconds
    storm = fuzz.measure(ensemble, users, work, 100_000, seconds)
    stop = shutdown.measure(ensemble, users, work)
    tls_ok = encrypted.measure(ensemble, fused.users_file, work)
    remove_orphans()
    rows = [
        *((f"{m} killed: s until all is well", number(s)) for m, s in kills.items()),
        ("answers/s of 16 in flight", number(crowd.capacity)),
        ("overload: accepted, refused", _counts(crowd.accepted, crowd.refused)),
        ("overload: lost", _counts(crowd.lost.total())),
        *((f"overload: lost with status {s}", _counts(n)) for s, n in crowd.lost.items()),
        ("overload: p99 of accepted, ms", number(1000 * crowd.accepted_p99_s)),
        ("overload: p50 of refused, ms", number(1000 * crowd.refused_p50_s)),
        ("overload: s until full speed", number(crowd.recovery_s)),
        ("overload: growth, MB", number(crowd.growth_mb)),
        ("malformed requests", str(storm.requests)),
        ("processes that ended", str(storm.crashes)),
        ("good beside them: all, refused, wrong", _counts(storm.good, storm.refused, storm.wrong)),
        ("growth, MB", number(storm.growth_mb)),
        ("stop under load: under way, lost", _counts(stop.under_way, len(stop.lost))),
        ("stop under load: s", number(stop.seconds)),
        ("stop under load: exit code, left over", _counts(stop.code, stop.left)),
        ("mutual TLS", "yes" if tls_ok else "no"),
    ]
    print(table(["faults", "found"], rows))
    return {
        "stub_recovery_s_max": max(kills.values()),
        "overload_lost": float(crowd.lost.total()),
        "overload_accepted_p99_ratio": crowd.accepted_p99_s / DEADLINE_S,
        "overload_recovery_s": crowd.recovery_s,
        "fuzz_requests": float(storm.requests),
        "fuzz_crashes": float(storm.crashes + storm.wrong),
        "fuzz_rss_growth_mb": storm.growth_mb,
        "sigterm_lost": float(len(stop.lost)),
        "tls_ok": float(tls_ok),
    }


def _some(artifacts: Artifacts) -> Payload:
    users = artifacts.users()
    return replace(users, dense=users.dense[:USERS], categorical=users.categorical[:USERS])


def _counts(*values: int) -> str:
    return ", ".join(f"{value:,}" for value in values)
