"""What the suite claims about the server, and the record of what it found."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from perf.harness import record
from perf.harness.table import Claim, table, verdicts

RESILIENCE = (
    Claim("release_failed", "=", 0, "requests that failed while releases came and went"),
    Claim("release_mixed", "=", 0, "answers that are of no release's pipeline"),
    Claim("switch_ms_max", "<=", 50, "longest switch, in milliseconds"),
    Claim("release_p99_ratio", "<=", 2, "p99 while publishing over p99 before"),
    Claim("publisher_kills_survived", "=", 1, "share of killed publishers that cost nothing"),
    Claim("stub_recovery_s_max", "<=", 5, "until a killed stage answers again, in seconds"),
    Claim("refresh_s", "<=", 15, "until a new item can be retrieved, in seconds"),
    Claim("refresh_ratio", "<=", 0.1, "the same over the time of a full export"),
    Claim("store_p50_ratio", "<=", 1.15, "p50 by user id over p50 with features, embedded store"),
    Claim("redis_p50_ratio", "<=", 1.4, "the same with Redis"),
    Claim("redis_down_failed", "=", 0, "requests that failed while Redis was gone"),
    Claim("filters_wrong", "=", 0, "filtered answers that are not the filtered full order"),
    Claim("exclude_p50_ratio", "<=", 1.2, "p50 with 500 excluded ids over p50 without"),
    Claim("overload_lost", "=", 0, "requests that an overload lost: neither answered nor refused"),
    Claim("overload_accepted_p99_ratio", "<=", 1, "p99 of accepted requests over their deadline"),
    Claim("overload_recovery_s", "<=", 2, "until full speed is back after an overload"),
    Claim("fuzz_crashes", "=", 0, "crashes under malformed requests"),
    Claim("fuzz_rss_growth_mb", "<=", 50, "memory that they leave behind"),
    Claim("soak_failed", "=", 0, "requests that failed at half load while releases came"),
    Claim("soak_growth_mb", "<=", 50, "memory that grew meanwhile"),
    Claim("costly_ms_per_user", "<=", 100, "of the most costly request, in milliseconds a user"),
    Claim("costly_growth_mb", "<=", 256, "memory that values of 64 MiB and such leave behind"),
    Claim("faults_tried", ">=", 40, "faults of the fault table"),
    Claim("faults_lost", "=", 0, "releases, users and requests that they cost"),
    Claim("faults_silent", "=", 0, "of them, those that nothing tells of"),
    Claim("sigterm_lost", "=", 0, "requests in flight that a stop lost"),
)
EXACT = "="  # the relation of what must not be lost or wrong; times and memory have limits
RESULTS_FILE = "resilience-cpu.jsonl"


class Record:
    """The figures of a run, and the tables that explain them.

    A test calls the record with its figures, which fails the test where one misses its claim: an
    exact claim always, a limit in a thorough run alone. In a short run on a busy machine a limit
    says little, so the table of claims marks it and the test passes.
    """

    def __init__(self, thorough: bool = False) -> None:
        self.thorough = thorough
        self.figures: dict[str, float] = {}
        self.seconds: Counter[str] = Counter()  # by case
        self.tables: list[str] = []

    def __call__(self, **figures: float) -> None:
        self.figures |= figures
        missed = [
            f"{claim.meaning}: {claim.key} is {figures[claim.key]:.3g}, "
            f"claimed {claim.relation} {claim.value:g}"
            for claim in RESILIENCE
            if claim.key in figures and not claim.holds(figures[claim.key])
            if claim.relation == EXACT or self.thorough
        ]
        assert not missed, "; ".join(missed)

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Keep a table for the end of the run."""
        self.tables.append(table(header, rows))

    @property
    def complete(self) -> bool:
        """Whether every claim has been looked at."""
        return {claim.key for claim in RESILIENCE} <= self.figures.keys()

    @property
    def summary(self) -> dict[str, float]:
        """The figures, and the seconds of each case."""
        seconds = {f"{case}_s": round(taken, 1) for case, taken in self.seconds.items()}
        return self.figures | seconds

    def write(self, path: Path) -> str:
        """Add the figures to those of earlier runs in a summary file -> the table of claims."""
        summary = json.loads(path.read_text()) if path.exists() else {}
        summary |= self.summary
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(summary, indent=1) + "\n")
        return verdicts(summary, RESILIENCE)


def keep(summary: dict[str, Any], results: Path = record.RESULTS) -> None:
    """Write a run to the results, in place of an earlier run on the same hardware."""
    circumstances = record.environment(configuration="resilience", payload={"source": "drawn"})
    record.append(results / RESULTS_FILE, circumstances, {"resilience": summary})
