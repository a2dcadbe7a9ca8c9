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
