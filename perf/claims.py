"""What is claimed: the keys of a summary, and what each is to be."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perf.table import table


@dataclass(frozen=True)
class Claim:
    """What a key of the summary is to be, and what it says."""

    key: str
    relation: str
    value: float
    meaning: str

    def holds(self, found: float) -> bool:
        compare = {">=": operator.ge, "<=": operator.le, "=": operator.eq}[self.relation]
        return bool(compare(found, self.value))


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


# What `tests.resilience` looks at.
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
    Claim("sigterm_lost", "=", 0, "requests in flight that a stop lost"),
)


def verdicts(summary: Mapping[str, Any], claims: Sequence[Claim] = CLAIMS) -> str:
    """Each claim beside what was found."""
    rows = [
        [
            claim.meaning,
            claim.key,
            f"{claim.relation} {claim.value:g}",
            f"{summary[claim.key]:.3g}",
            "yes" if claim.holds(summary[claim.key]) else "**no**",
        ]
        for claim in claims
        if claim.key in summary
    ]
    return table(["claim", "key", "wanted", "found", "holds"], rows)
