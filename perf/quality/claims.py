"""What is claimed of each data set, beside what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from perf.harness.table import Claim
from perf.quality.figures import Figures

LEAST_DISTILLED = -0.002  # what distillation may lose
LOSSES = ("rank_log_loss",)
ORDER = Claim(
    "stages_in_order",
    "=",
    1,
    "the retriever's NDCG@10 is above popularity's, and no later stage loses more than noise",
)
LISTS = (
    ORDER,
    Claim("rank_ndcg_over_retrieve", ">=", 1.03, "NDCG@10 of the answer over the retriever's"),
    Claim(
        "retrieve_recall100_over_best_baseline",
        ">=",
        1.0,
        "recall@100 of the retriever over the best list without a network",
    ),
    Claim(
        "rank_ndcg_over_best_baseline",
        ">=",
        1.0,
        "NDCG@10 of the answer over the best list without a network",
    ),
)

CLAIMS: dict[str, tuple[Claim, ...]] = {
    "synthetic": (
        Claim("kept_by_cascade", ">=", 0.95, "of the ranker's ten best, kept by the cascade"),
        Claim("kept_at_200", ">=", 0.85, "the same, among 200 retrieved items"),
        Claim("auc_gap", "<=", 0.006, "AUC that the ranker lacks of the best possible"),
        Claim(
            "plan_speedup",
            ">=",
            1.8,
            "requests/s of planned sizes that keep 0.95 over the default ones, 16 users at once",
        ),
    ),
    "movielens": LISTS,
    "criteo": (
        Claim("calibration", ">=", 0.95, "predicted over actual clicks"),
        Claim("calibration", "<=", 1.05, "predicted over actual clicks"),
    ),
    "positives_only": (
        Claim("finite", "=", 1, "every figure of the evaluation is a number"),
        ORDER,
    ),
}
COMPARED = {  # figures of the ranker, and those of other models on the same rows
    "rank_auc": ("logistic_auc", "lightgbm_auc", "deepfm_auc"),
    "rank_log_loss": ("logistic_log_loss",),
}


BESIDE = {  # by data set: a figure, the one it is set beside, and how far it may be from that one
    "movielens": (
        ("rank_auc", ">=", "logistic_auc", 0.0),
        ("rank_auc", ">=", "lightgbm_auc", -0.015),
    ),
    "criteo": (
        ("rank_auc", ">=", "logistic_auc", 0.0),
        ("rank_auc", ">=", "lightgbm_auc", 0.0),
        ("rank_auc", ">=", "deepfm_auc", 0.0),
        ("rank_log_loss", "<=", "logistic_log_loss", 0.002),
    ),
}


@dataclass(frozen=True)
class Checked:
    """A claim and what was found. `figure` is None where it could not be told."""

    key: str
    meaning: str
    figure: float | None
    se: float | None
    relation: str
    target: float
    holds: bool
    tie: bool  # the figure and the target differ by no more than the standard error


@dataclass(frozen=True)
class Compared:
    """A figure of the ranker beside that of another model on the same rows: mean over the seeds."""

    key: str
    other: str
    difference: float  # positive: the ranker is better
    se: float | None  # over the seeds, each beside itself
    result: str


def summed(seeds: Sequence[Figures], listed: bool) -> tuple[dict[str, Any], list[str]]:
    """Figures of all seeds: their means by key, under `KEY_seeds` all of them where they are
    `listed`, and under `KEY_se` the standard error, which one seed has not; and the keys that a
    seed lacks."""
    found: dict[str, Any] = {}
    lacking = []
    for key in seeds[0]:
        values = [value for figures in seeds if (value := figures[key]) is not None]
        if len(values) < len(seeds):
            lacking.append(key)
            continue
        found[key] = fmean(values) if len(values) > 1 else values[0]
        if listed:
            found[f"{key}_seeds"] = values
        if len(values) > 1:
            found[f"{key}_se"] = _error(values)
    return found, lacking


def check(name: str, found: Mapping[str, Any]) -> list[Checked]:
    """The claims of a data set beside its figures."""
    undistilled = found.get("undistilled")
    target = float("nan") if undistilled is None else undistilled + LEAST_DISTILLED
    meaning = "of the ranker's ten best, kept by the preranker; without distillation, less 0.002"
    claims = [(claim, found.get(f"{claim.key}_se")) for claim in CLAIMS[name]]
    for key, relation, other, offset in BESIDE.get(name, ()):
        if other in found:
            claims.append(
                (
                    Claim(key, relation, found[other] + offset, f"beside {other}, {offset:+g}"),
                    _apart(found, key, other)[1],
                )
            )
    claims.append(
        (Claim("distilled", ">=", target, meaning), _apart(found, "distilled", "undistilled")[1])
    )
    return [_checked(claim, found.get(claim.key), se) for claim, se in claims]


def compare(found: Mapping[str, Any]) -> list[Compared]:
    """The ranker beside every other model on the same rows; a tie is a difference of no more than
    its standard error."""
    compared = []
    for key, others in COMPARED.items():
        for other in others:
            if key in found and other in found:
                difference, se = _apart(found, key, other)
                difference *= -1 if key in LOSSES else 1
                result = "better" if difference > 0 else "worse"
                tie = difference == 0 or (se is not None and abs(difference) <= se)
                compared.append(Compared(key, other, difference, se, "a tie" if tie else result))
    return compared


def _checked(claim: Claim, figure: float | None, se: float | None) -> Checked:
    holds = figure is not None and claim.holds(figure)
    tie = figure is not None and se is not None and abs(figure - claim.value) <= se
    words = claim.meaning, figure, se, claim.relation, claim.value
    return Checked(claim.key, *words, holds, tie)


def _apart(found: Mapping[str, Any], key: str, other: str) -> tuple[float, float | None]:
    """The difference of two figures, and its standard error over the seeds, seed by seed."""
    if key not in found or other not in found:
        return float("nan"), None
    both = (found.get(f"{name}_seeds", ()) for name in (key, other))
    apart = [one - another for one, another in zip(*both, strict=True)]
    return found[key] - found[other], _error(apart) if len(apart) > 1 else None


def _error(values: Sequence[float]) -> float:
    return stdev(values) / sqrt(len(values))
