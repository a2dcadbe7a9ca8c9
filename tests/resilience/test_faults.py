"""Faults under load: malformed requests, killed processes, overload, a stop, TLS."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cascade.client import Recommender, Retry, Tls, Unavailable
from cascade.client.recommender import DEADLINE_S
from cascade.server import workers
from cascade.spec import STAGES
from perf.harness.artifacts import Artifacts
from perf.harness.payload import Payload
from perf.harness.table import number
from tests.certificates import make_certificates
from tests.resilience.claims import Record
from tests.resilience.fuzz import fuzz
from tests.resilience.overload import overload
from tests.resilience.shutdown import shut_down
from tests.resilience.traffic import OK, Outcome, traffic
from tests.served import Served, serve

USERS = 256
MALFORMED = 100_000
CALM_S = 2.0  # without a failure: then the fault is over
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def users(fused: Artifacts) -> Payload:
    drawn = fused.users()
    return replace(drawn, dense=drawn.dense[:USERS], categorical=drawn.categorical[:USERS])


@pytest.fixture(scope="module")
def served(ensemble: Path, workplace: Path) -> Iterator[Served]:
    """A process per stage."""
    # A request that server 2.51 drops counts as under way until the end: do not wait for it.
    with serve(ensemble, workplace / "ensemble.log", "--exit-timeout-s=2") as running:
        yield running


def test_malformed_requests_do_no_harm(
    served: Served, users: Payload, thorough: bool, seconds: float, record: Record
) -> None:
    found = fuzz(served, users, MALFORMED, float("inf") if thorough else seconds)
    rows = [
        ["malformed requests", f"{found.requests:,}"],
        ["processes that ended", str(found.crashes)],
        ["good beside them: all, refused, wrong", _counts(found.good, found.refused, found.wrong)],
        ["growth, MB", number(found.growth_mb)],
    ]
    record.table(["malformed requests", "found"], rows)
    record(
        fuzz_requests=float(found.requests),
        fuzz_crashes=float(found.crashes + found.wrong),
        fuzz_rss_growth_mb=found.growth_mb,
    )


def test_a_killed_stage_answers_again_soon(
    served: Served, users: Payload, thorough: bool, record: Record
) -> None:
    """SIGKILL for the process of each stage, one after the other."""
    longest_s = dict.fromkeys(STAGES, 0.0)
    with traffic(served.url, users) as outcomes:
        time.sleep(CALM_S)  # the supervisor gets to know the processes
        for stage in STAGES * (5 if thorough else 1):
            victim = next(stub for stub in workers.alive(served.name) if stub.model == stage)
            killed_s = time.monotonic()
            os.kill(victim.pid, signal.SIGKILL)
            recovery_s = _wait_until_calm(outcomes, killed_s)
            longest_s[stage] = max(longest_s[stage], recovery_s)
    rows = [[stage, number(seconds)] for stage, seconds in longest_s.items()]
    record.table(["stage killed", "s to the last failure"], rows)
    record(stub_recovery_s_max=max(longest_s.values()))


def _wait_until_calm(outcomes: list[Outcome], killed_s: float) -> float:
    """Seconds from the kill to the last request that it failed."""
    while time.monotonic() < killed_s + PATIENCE_S:
        time.sleep(0.1)
        done = [o for o in outcomes if o.done_s > killed_s]
        last_s = max((o.done_s for o in done if o.error != OK), default=killed_s)
        if any(o.error == OK and o.done_s > last_s + CALM_S for o in done):
            return last_s - killed_s
    raise AssertionError(f"requests still fail {PATIENCE_S:g} s after the kill")


def test_an_overload_is_refused_not_lost(
    fused: Artifacts, users: Payload, work: Path, thorough: bool, record: Record
) -> None:
    with serve(fused.repository, work / "overload.log") as served:
        found = overload(served, users, seconds=60 if thorough else 2)
    rows = [
        ["answers/s of 16 in flight", number(found.capacity)],
        ["accepted, refused, lost", _counts(found.accepted, found.refused, found.lost.total())],
        *([f"lost with status {s}", f"{n:,}"] for s, n in found.lost.items()),
        ["p99 of accepted, ms", number(1000 * found.accepted_p99_s)],
        ["p50 of refused, ms", number(1000 * found.refused_p50_s)],
        ["s until full speed", number(found.recovery_s)],
        ["growth, MB", number(found.growth_mb)],
    ]
    record.table(["overload", "found"], rows)
    record(
        overload_lost=float(found.lost.total()),
        overload_accepted_p99_ratio=found.accepted_p99_s / DEADLINE_S,
        overload_recovery_s=found.recovery_s,
    )


def test_a_stop_under_load_loses_nothing(
    ensemble: Path, users: Payload, work: Path, record: Record
) -> None:
    found = shut_down(ensemble, users, work)
    rows = [
        ["in flight, lost", _counts(found.in_flight, len(found.lost))],
        ["s", number(found.seconds)],
        ["exit code, left over", _counts(found.code, found.left)],
    ]
    record.table(["stop under load", "found"], rows)
    record(sigterm_lost=float(len(found.lost)))
    assert (found.code, found.left) == (0, 0)


def test_mutual_tls(ensemble: Path, fused: Artifacts, work: Path, record: Record) -> None:
    """The launcher's own probe and canary go the same way."""
    make_certificates(work)
    user = json.loads(fused.users_file.open().readline())
    flags = {"cert": "server.pem", "key": "server.key", "client-ca": "ca.pem"}
    arguments = [f"--tls-{flag}={work / name}" for flag, name in flags.items()]
    ca, key, cert = (work / name for name in ("ca.pem", "client.key", "client.pem"))
    with serve(ensemble, work / "encrypted.log", *arguments) as served:
        answered = [
            _is_answered(served.url, user, tls) for tls in (Tls(ca, key, cert), Tls(ca), None)
        ]
    record(tls_ok=float(answered == [True, False, False]))
    assert answered == [True, False, False]


def _is_answered(url: str, user: dict[str, Any], tls: Tls | None) -> bool:
    with Recommender(url, deadline_s=10, tls=tls, retry=Retry(tries=2, first_s=0.01)) as client:
        try:
            return len(client.recommend(user).item_ids) > 0
        except Unavailable:
            return False


def _counts(*values: int) -> str:
    return ", ".join(f"{value:,}" for value in values)
