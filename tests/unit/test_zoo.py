"""What `make zoo` claims and writes, of figures that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cascade.models import MODELS
from perf.zoo import claims, report
from perf.zoo.sets import NO_MODELS, RETRIEVERS, SETS, TEXTBOOK, named

ROWS = {"auc": 0.75, "normalized_entropy": 0.9, "calibration": 1.0, "parameters": 1000}
SERVED = {"served": True, "parity_max_abs": 1e-7, "bytes_per_item": 64.0, "rows_per_s": 5000.0}
TIMES = {"split_us": 20.0, "flat_us": 60.0, "split_vs_flat": 3.0, "kept": {}}


def figures(model: str, **changed: Any) -> dict[str, Any]:
    found = {"preset": "default", **SERVED}
    if model in RETRIEVERS:
        return {**found, "recall_at_100": 0.3, "ndcg_at_10": 0.05, **changed}
    return {**found, **ROWS, **TIMES, "ndcg_at_10": 0.06, "ndcg_at_10_beside": 0.055, **changed}


def found() -> dict[str, dict[str, Any]]:
    movielens = {model: figures(model) for model in SETS["movielens"].models()}
    movielens["sasrec"] = figures("sasrec", recall_at_100=0.33)
    movielens[TEXTBOOK] = figures("two_tower", recall_at_100=0.22)
    planted = {model: figures(model, best_auc=0.755) for model in claims.NEAR_BEST}
    tasks = {
        "mmoe": {**figures("mmoe"), "auc_click": 0.7, "auc_revenue": 0.69},
        "shared_bottom, click alone": {"preset": "default", "auc_click": 0.704},
        "shared_bottom, revenue alone": {"preset": "default", "auc_revenue": 0.68},
    }
    return {"movielens": movielens, "synthetic": planted, "tasks": tasks}


def test_every_registered_model_is_compared() -> None:
    compared = {model for kind in SETS.values() for model in kind.models()}
    assert compared == {*MODELS} - {*NO_MODELS}
    for name, kind in SETS.items():
        for model in kind.models():
            preset = named(model, kind.choices).partition(":")[2]
            assert preset in MODELS[model].presets, (name, model)


def test_the_claims_of_known_figures() -> None:
    summary = claims.summary(found(), "movielens")
    checked = {claim["key"]: (claim["figure"], claim["holds"]) for claim in summary["claims"]}
    assert checked["models"] == (len(MODELS) - len(NO_MODELS) - 1, True)  # shared_bottom is missing
    assert checked["sasrec_recall100_over_two_tower"] == (pytest.approx(1.1), True)
    assert checked["sasrec_recall100_over_two_tower_default"] == (pytest.approx(1.5), True)
    assert checked["din_ndcg10_over_dlrm"] == (1.0, True)
    assert checked["rankers_ndcg10_over_two_tower"] == (pytest.approx(1.1), True)
    assert checked["dcnv2_auc_gap"] == (pytest.approx(0.005), True)
    assert checked["mmoe_auc_gap"] == (pytest.approx(0.004), True)
    assert "shared_bottom_auc_gap" not in checked  # it was not run
    assert summary["holds"]


@pytest.mark.parametrize(
    ("data_set", "model", "changed", "key"),
    [
        ("movielens", "sasrec", {"recall_at_100": 0.31}, "sasrec_recall100_over_two_tower"),
        ("movielens", "din", {"ndcg_at_10": 0.05}, "din_ndcg10_over_dlrm"),
        ("movielens", "two_tower", {"ndcg_at_10": 0.0551}, "rankers_ndcg10_over_two_tower"),
        ("movielens", "dcn", {"served": False}, "unserved"),
        ("movielens", "dcn", {"parity_max_abs": 1e-4}, "parity_max_abs"),
        ("synthetic", "deepfm", {"auc": 0.74}, "deepfm_auc_gap"),
        ("tasks", "mmoe", {"auc_click": 0.69}, "mmoe_auc_gap"),
    ],
)
def test_a_claim_that_does_not_hold(
    data_set: str, model: str, changed: dict[str, Any], key: str
) -> None:
    results = found()
    results[data_set][model] |= changed
    summary = claims.summary(results, "movielens")
    assert [claim["key"] for claim in summary["claims"] if not claim["holds"]] == [key]
    assert not summary["holds"]


def test_the_page_has_every_model_and_says_what_is_slow(tmp_path: Path) -> None:
    results = found()
    results["movielens"]["autoint"] |= {"split_vs_flat": 1.2, "kept": {"Softmax of user": 2}}
    summary = claims.summary(results, "movielens")
    text = report.text(summary)
    for model in MODELS:
        assert (f"| `{model}`" in text) == (model not in NO_MODELS)
    assert "- `autoint`: 2x Softmax of user" in text
    assert "The best possible AUC is 0.7550." in text
    assert "`shared_bottom:default`, click alone" in text
    assert "Alone, no ranker orders these lists" not in text
    for model in results["movielens"].values():
        model["ndcg_at_10"] = 0.04
    results["movielens"]["two_tower"]["ndcg_at_10"] = 0.05
    text = report.text(claims.summary(results, "movielens"))
    assert "**Alone, no ranker orders these lists as well as the two-tower" in text
    report.draw(summary, tmp_path / "models.png")
    assert (tmp_path / "models.png").stat().st_size > 1000
