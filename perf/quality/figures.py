"""The figures of one run, by their keys in the summary, from evaluation.json and plan.json; None
where one cannot be told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Found = Mapping[str, Any]  # evaluation.json, and what else was measured
Figures = dict[str, float | None]

LISTS = ("popularity", "recent", "neighbours", "ease")  # that need no network
LISTED = {
    "popularity_ndcg": "ndcg_at_10_popularity",
    "retrieve_ndcg": "ndcg_at_10_retrieve",
    "prerank_ndcg": "ndcg_at_10_prerank",
    "rank_ndcg": "ndcg_at_10_rank",
}
SCORED = {
    "rank_auc": "auc",
    "logistic_auc": "auc_logistic_regression",
    "lightgbm_auc": "auc_lightgbm",
}
CLICKS = {
    **SCORED,
    "rank_log_loss": "log_loss",
    "logistic_log_loss": "log_loss_logistic_regression",
    "calibration": "calibration",
    "deepfm_auc": "deepfm_auc",
}
DISTILLED = {"distilled": "kept_by_prerank", "undistilled": "kept_by_prerank_labels"}
WITHOUT_SEED = tuple(f"_{name}" for name in (*LISTS, "logistic_regression", "lightgbm"))
CANDIDATES = 200  # that the retriever returns for `kept_at_200`


def beside(found: Found, first: Found) -> Found:
    """What was found with a seed, beside the figures of the simple models, which know no seed and
    were found with the first one."""
    return {**{key: value for key, value in first.items() if key.endswith(WITHOUT_SEED)}, **found}


def of_lists(found: Found) -> Figures:
    """NDCG@10 after each stage, whether each is no worse than the one before, and what they gain
    over the best list that needs no network: by NDCG@10 for the ranker, by recall@100 for the
    retriever."""
    ndcg, recall = found.get("ndcg_at_10_rank"), found.get("recall_at_100_retrieve")
    return {
        **_named(found, LISTED),
        "stages_in_order": in_order(found),
        "rank_ndcg_over_retrieve": _ratio(ndcg, found.get("ndcg_at_10_retrieve")),
        "retrieve_recall100_over_best_baseline": _ratio(recall, _best(found, "recall_at_100")),
        "rank_ndcg_over_best_baseline": _ratio(ndcg, _best(found, "ndcg_at_10")),
        **_named(found, DISTILLED),
    }


def in_order(found: Found) -> bool | None:
    """Whether the retriever's list is better than popularity, and no later stage makes it worse, by
    NDCG@10: by more than the noise of the users, as the verdict of the evaluation says."""
    popular, retrieved = (found.get(f"ndcg_at_10_{name}") for name in ("popularity", "retrieve"))
    if popular is None or retrieved is None:
        return None
    later = [one for one in found.get("verdict", ()) if one["measure"] == "NDCG@10"]
    return retrieved > popular and all(one["result"] != "worse" for one in later)


def of_choices(found: Found) -> Figures:
    """Of a log of choices with negatives: lists, and the ranker beside simple models."""
    return {**of_lists(found), **_named(found, SCORED)}


def of_clicks(found: Found) -> Figures:
    """Of a log of impressions: the ranker beside simple models, and what distillation adds."""
    return {**_named(found, CLICKS), **_named(found, DISTILLED)}


def of_positives(found: Found) -> Figures:
    """Of a log of positives only: lists, and whether every figure of the evaluation is a number."""
    return {**of_lists(found), "finite": finite(found)}


def of_planted(found: Found) -> Figures:
    """Of data drawn from a known model: what the stages keep of the ranker's ten best, how near the
    ranker is to the best possible one, and what a plan gains.

    `kept_at_200` is the share of the ranker's ten best of all items that is among 200 candidates;
    `plan_speedup` the requests/s of the planned sizes over those of the default ones, for 16 users
    at once, in turn, and `plan_speedup_alone` for one; None where no size keeps enough.
    """
    plan = found["plan"]
    whole = [
        point["kept"]
        for point in plan["points"]
        if point["candidates"] == point["survivors"] == CANDIDATES
        and point["effort"] == plan["default"]["effort"]
    ]
    auc, best = found.get("auc"), found.get("bayes_auc")
    return {
        "kept_by_cascade": found.get("kept_by_cascade"),
        "kept_at_200": whole[0] if whole else None,
        "rank_auc": auc,
        "best_auc": best,
        "auc_gap": None if auc is None or best is None else best - auc,
        "plan_kept": plan["chosen"]["kept"],
        "plan_speedup": plan["speedup"]["16"]["speedup"] if plan["reached"] else None,
        "plan_speedup_alone": plan["speedup"]["1"]["speedup"] if plan["reached"] else None,
        **_named(found, DISTILLED),
    }


def finite(value: Any) -> bool:
    """Whether a JSON value holds no null and no number that is not finite."""
    if isinstance(value, Mapping):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _named(found: Found, names: Mapping[str, str]) -> dict[str, Any]:
    return {key: found.get(name) for key, name in names.items()}


def _best(found: Found, measure: str) -> float | None:
    """The highest figure of the lists that need no network; some are not there for every log."""
    values = [value for name in LISTS if (value := found.get(f"{measure}_{name}")) is not None]
    return max(values, default=None)


def _ratio(value: float | None, other: float | None) -> float | None:
    return None if value is None or not other else value / other
