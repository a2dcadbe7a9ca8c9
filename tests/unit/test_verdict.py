"""The verdict on figures whose differences are known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np

from cascade.evaluation.verdict import SHOWN, Evidence, Measured, judge


def measured(value: float, noise: float = 0.0, seed: int = 0) -> Measured:
    """A figure whose draws share the users' luck and have some noise of their own."""
    luck = np.random.default_rng(9).normal(0, 0.1, 1000)
    return Measured(value, value + luck + np.random.default_rng(seed).normal(0, noise, 1000))


def test_stages_are_compared_with_the_one_before() -> None:
    stages = {
        "retrieve": measured(0.20),
        "prerank": measured(0.15, 0.01, 1),
        "rank": measured(0.16, 0.05, 2),
    }
    found = judge(Evidence(500, stages=stages))
    assert [(pair.name, pair.other, pair.result) for pair in found.comparisons] == [
        ("prerank", "retrieve", "worse"),
        ("rank", "prerank", "tie"),
    ]
    assert len(found.warnings) == 1
    assert "the stage prerank makes held-out lists worse" in found.warnings[0]
    lines = found.lines()
    assert lines[0].startswith("prerank over retrieve: NDCG@10 0.1500 against 0.2000, -0.0500 (")
    assert lines[1].endswith(": a tie")
    assert lines[2].startswith("WARNING: prerank is worse than retrieve")


def test_a_retriever_is_compared_with_the_best_baseline() -> None:
    lists = {"popularity": measured(0.1), "EASE": measured(0.4), "retrieve": measured(0.3, 0.01)}
    found = judge(Evidence(500, retrievers=lists))
    assert [pair.other for pair in found.comparisons] == ["EASE"]
    assert "recall@100 0.3000 against 0.4000" in found.warnings[0]
    lists["retrieve"] = measured(0.5)
    found = judge(Evidence(500, retrievers=lists))
    assert (found.comparisons[0].result, found.warnings) == ("better", ())


def test_what_was_shown_says_little_of_lists() -> None:
    lists = {"popularity": measured(0.4), "retrieve": measured(0.3, 0.01)}
    kept = {"prerank": measured(0.7, 0.01, 1), "retriever's order": measured(0.9)}
    stages = {"retrieve": measured(0.20), "prerank": measured(0.15, 0.01, 1)}
    prerankers = {"recall@200": kept, "share kept of the ranker's top 10": kept}
    evidence = Evidence(500, stages=stages, retrievers=lists, prerankers=prerankers)
    assert SHOWN not in " ".join(judge(evidence).warnings)
    evidence.impressions = True
    stage, retriever, recall, share = judge(evidence).warnings
    assert all(text.endswith(f"; {SHOWN}") for text in (stage, retriever, recall))
    assert SHOWN not in share


def test_a_preranker_is_compared_with_all_at_hand() -> None:
    kept = {
        "prerank": measured(0.8, 0.01, 1),
        "not distilled": measured(0.7),
        "retriever's order": measured(0.9),
        "logistic": measured(0.8, 0.01, 2),
    }
    found = judge(Evidence(500, prerankers={"kept": kept}))
    assert [pair.result for pair in found.comparisons] == ["better", "worse", "tie"]
    assert ["retriever's order" in text for text in found.warnings] == [True]


def test_a_loss_is_better_when_lower() -> None:
    figures = {"rank": measured(0.5), "lightgbm": measured(0.4), "logistic": measured(0.45)}
    losses = {name: replace(figure, loss=True) for name, figure in figures.items()}
    found = judge(Evidence(500, scorers={"AUC": figures, "log loss": losses}))
    assert [(pair.other, pair.result) for pair in found.comparisons] == [
        ("logistic", "better"),
        ("lightgbm", "worse"),
    ]
    assert "log loss 0.5000 against 0.4000 (+0.1000 to +0.1000)" in found.warnings[0]


def test_few_users_say_nothing() -> None:
    found = judge(Evidence(5, stages={"retrieve": measured(0.9), "rank": measured(0.1)}))
    assert found.comparisons[0].result == "tie"
    assert "too few users to tell" in found.lines()[0]
    content = json.loads(json.dumps(found.content(), allow_nan=False))
    assert "low" not in content[0]
    assert content[0]["sentence"] == found.lines()[0]


def test_nothing_measured_is_no_verdict() -> None:
    assert judge(Evidence(0)).lines() == []
    assert judge(Evidence(50, retrievers={"retrieve": measured(1.0)})).lines() == []
