"""What `make quality` says of figures: means, errors, claims, ties, and what is missing."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cascade.data import Dataset, prepare
from cascade.data.movielens import MovieLens
from cascade.data.source import SPLITS, BadRows
from cascade.errors import CascadeError
from perf.quality import claims, deepfm, figures, positives, tables
from perf.quality.figures import finite, of_planted
from perf.quality.sets import SETS
from perf.quality.steps import StepError, Steps

SHARED = Path(__file__).parents[3] / "shared" / "data"
CRITEO, MOVIES = SHARED / "criteo-kaggle-10k" / "train.txt", SHARED / "ml-latest-small"
LISTED = {
    f"{measure}_{name}": value
    for measure in ("ndcg_at_10", "recall_at_100")
    for name, value in {
        **{"popularity": 0.2, "recent": 0.1, "ease": 0.4, "neighbours": 0.3},
        **{"retrieve": 0.3, "prerank": 0.5, "rank": 0.6},
    }.items()
} | {"kept_by_prerank": 0.99, "kept_by_prerank_labels": 0.98}


def test_lists_are_measured_against_the_best_baseline() -> None:
    found = figures.of_lists(LISTED)
    assert found["rank_ndcg_over_retrieve"] == pytest.approx(2)
    assert found["rank_ndcg_over_best_baseline"] == pytest.approx(1.5)
    assert found["retrieve_recall100_over_best_baseline"] == pytest.approx(0.75)
    assert found["distilled"] == 0.99
    assert (
        figures.of_lists({**LISTED, "ndcg_at_10_retrieve": 0.0})["rank_ndcg_over_retrieve"] is None
    )


@pytest.mark.parametrize("name", LISTED)
def test_a_figure_that_is_not_there_is_told_as_none(name: str) -> None:
    found = figures.of_lists({**LISTED, name: None})
    plan = {"points": [], "default": {"effort": None}, "chosen": {"kept": 0.9}, "reached": False}
    assert None not in figures.of_lists(LISTED).values()
    assert sum(value is None for value in found.values()) == {
        **{"ndcg_at_10_rank": 3, "ndcg_at_10_retrieve": 3, "recall_at_100_retrieve": 1},
        **{"ndcg_at_10_prerank": 1, "ndcg_at_10_popularity": 2},
        **{"kept_by_prerank": 1, "kept_by_prerank_labels": 1},
    }.get(name, 0)
    assert of_planted({name: None, "plan": plan})["auc_gap"] is None


@pytest.mark.parametrize(
    ("retrieve", "results", "in_order"),
    [
        (0.3, ("tie", "better"), True),
        (0.3, ("worse", "better"), False),
        (0.3, ("tie", "worse"), False),
        (0.2, ("better", "better"), False),
    ],
)
def test_stages_are_in_order_where_none_loses_more_than_noise(
    retrieve: float, results: tuple[str, str], in_order: bool
) -> None:
    verdict = [
        {"name": name, "measure": "NDCG@10", "result": result}
        for name, result in zip(("prerank", "rank"), results, strict=True)
    ]
    other = {"name": "prerank", "measure": "recall@200", "result": "worse"}
    found = {**LISTED, "ndcg_at_10_retrieve": retrieve, "verdict": [*verdict, other]}
    assert figures.of_lists(found)["stages_in_order"] is in_order


def test_every_seed_stands_beside_simple_models_that_know_none() -> None:
    later = {key: value + 0.1 for key, value in LISTED.items() if key.endswith("retrieve")}
    found = figures.beside(later, {**LISTED, "auc": 0.7, "auc_lightgbm": 0.6})
    simple = {key for key in found if key not in later}
    assert "ndcg_at_10_ease" in simple
    assert {key.rpartition("_")[2] for key in simple} == {*figures.LISTS, "lightgbm"}
    assert {key: found[key] for key in later} == later
    assert figures.beside(LISTED, LISTED) == LISTED


@pytest.mark.parametrize("reached", [True, False])
def test_a_plan_that_keeps_too_little_has_no_speedup(reached: bool) -> None:
    def point(candidates: int, survivors: int, effort: int, kept: float) -> dict[str, Any]:
        sizes = {"candidates": candidates, "survivors": survivors}
        return {**sizes, "effort": effort, "kept": kept}

    points = [point(200, 200, 8, 0.7), point(200, 200, 16, 0.8), point(1000, 200, 16, 0.96)]
    speedup = {"1": {"speedup": 2.5}, "16": {"speedup": 9.0}}
    plan = {"points": points, "default": points[2], "chosen": points[1], "speedup": speedup}
    evaluation = {"auc": 0.80, "bayes_auc": 0.82, "kept_by_cascade": 0.9}
    found = of_planted({**evaluation, "plan": {**plan, "reached": reached}})
    assert found["kept_at_200"] == 0.8
    assert found["auc_gap"] == pytest.approx(0.02)
    assert found["plan_speedup"] == (9.0 if reached else None)
    assert found["plan_speedup_alone"] == (2.5 if reached else None)
    assert found["distilled"] is None


@pytest.mark.parametrize("seeds", [(1.0, 1.1), (1.0, 1.2, 1.1, 1.3)])
def test_means_and_errors_over_seeds(seeds: tuple[float, ...]) -> None:
    found, lacking = claims.summed(
        [{"a": x, "b": None if x > 1 else x} for x in seeds], listed=True
    )
    assert found["a"] == pytest.approx(np.mean(seeds))
    assert found["a_se"] == pytest.approx(np.std(seeds, ddof=1) / np.sqrt(len(seeds)))
    assert found["a_seeds"] == [*seeds]
    assert lacking == ["b"]
    assert not any(key.startswith("b") for key in found)


def test_one_seed_has_no_error() -> None:
    assert claims.summed([{"a": 0.5, "finite": True}], listed=False) == (
        {"a": 0.5, "finite": True},
        [],
    )


def test_claims_hold_by_their_targets_alone() -> None:
    found = {"calibration": 0.949, "calibration_se": 0.002, "distilled": 0.9, "undistilled": 0.95}
    least, most, distilled = claims.check("criteo", found)
    assert (least.holds, least.tie) == (False, True)
    assert (most.holds, most.tie) == (True, False)
    assert distilled.target == pytest.approx(0.948)
    assert not distilled.holds


@pytest.mark.parametrize("name", SETS)
def test_a_claim_without_a_figure_does_not_hold(name: str) -> None:
    checked = claims.check(name, {})
    assert checked
    assert not any(claim.holds or claim.tie for claim in checked)
    summary = {"seeds": 0, "claims": [vars(claim) for claim in checked], "comparisons": []}
    text = tables.text({name: {**summary, "failed": ["it ended"], "notes": [], "holds": False}})
    assert text.count("**no**") == len(checked)
    assert "- it ended" in text


def test_the_ranker_is_compared_seed_by_seed() -> None:
    seeds = [
        {"rank_auc": x + 0.01, "logistic_auc": x, "lightgbm_auc": 0.75, "rank_log_loss": 0.5}
        | {"logistic_log_loss": 0.4}
        for x in (0.7, 0.8)
    ]
    found = claims.summed(seeds, listed=True)[0]
    compared = {one.other: one for one in claims.compare(found)}
    assert compared["logistic_auc"].result == "better"
    assert compared["logistic_auc"].se == pytest.approx(0, abs=1e-12)
    assert compared["lightgbm_auc"].result == "a tie"
    assert compared["logistic_log_loss"].result == "worse"
    assert compared["logistic_log_loss"].difference == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [({"a": [1, 2.5, {"b": "x"}]}, True), ({"a": [None]}, False), ([float("nan")], False)],
)
def test_what_is_finite(value: Any, expected: bool) -> None:
    assert finite(value) is expected


def test_a_step_that_fails_names_its_log(tmp_path: Path) -> None:
    steps = Steps("one", tmp_path / "log", 1)
    with pytest.raises(
        StepError, match=r"one: python -m cascade.data failed with code \d: see .*log"
    ):
        steps.run("cascade.data", "--nothing")
    assert "cascade.data --nothing" in (tmp_path / "log").read_text()


@pytest.mark.skipif(not MOVIES.exists(), reason="the real rows are not here")
def test_likes_are_the_positives_of_movielens(tmp_path: Path) -> None:
    schema = positives.write(MOVIES, tmp_path / "tables")
    dataset = prepare("table", tmp_path / "data", schema_file=schema)
    source = MovieLens(MOVIES, BadRows())
    labels = [chunk["label"].to_numpy() for split in SPLITS for chunk in source.chunks(split)]
    assert sum(map(dataset.rows, SPLITS)) == np.concatenate(labels).sum()
    assert not dataset.has_negatives
    assert dataset.item_count == source.catalogue().num_rows
    likes = pq.read_table(tmp_path / "tables" / "likes.parquet")
    histories = likes["history"].to_pylist()
    assert max(len(one.split("|")) for one in histories if one) == 50


@pytest.mark.skipif(find_spec(deepfm.PACKAGE) is None, reason="DeepCTR-Torch is not installed")
@pytest.mark.usefixtures("one_thread")
def test_deepfm_on_the_rows_of_a_data_set(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    if not CRITEO.exists():
        pytest.skip("the real rows are not here")
    with CRITEO.open() as file:
        path.write_text("".join(line for line, _ in zip(file, range(3000), strict=False)))
    dataset: Dataset = prepare(f"criteo:{path}", tmp_path / "data")
    found = deepfm.judged(dataset, 0)
    assert 0.55 < found["auc"] < 0.9
    assert 0.3 < found["log_loss"] < 0.7
    assert found == deepfm.judged(dataset, 0)


@pytest.mark.skipif(find_spec(deepfm.PACKAGE) is None, reason="DeepCTR-Torch is not installed")
@pytest.mark.skipif(not MOVIES.exists(), reason="the real rows are not here")
def test_deepfm_wants_single_values(tmp_path: Path) -> None:
    dataset = prepare(f"movielens:{MOVIES}", tmp_path / "data")
    message = r"history is a sequence; .* give a data set without bags"
    with pytest.raises(CascadeError, match=message):
        deepfm.judged(dataset, 0)
