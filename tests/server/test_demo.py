"""What the demo says of the server is true: lists that differ are told from lists that tie."""

from pathlib import Path
from typing import Any

import pytest

from cascade.server.launcher import Server
from perf.demo import compare, saved, screen
from perf.harness.measurement import Load, Measurement
from tests.cascades import Cascade


def test_the_server_is_the_pipeline(criteo: Cascade, criteo_server: Server) -> None:
    users = criteo.checkpoints / "users.jsonl"
    found = compare(criteo_server.url, criteo.repository, users)
    assert found["server_equals_pipeline"]
    assert found["server_users_compared"] == len(criteo.users)
    assert found["server_max_abs"] <= 1e-5


def test_lists_that_differ_are_found(
    criteo: Cascade, criteo_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = criteo.pipeline()

    def reversed_ids(*users: Any) -> Any:
        ids, scores = pipeline(*users)
        return ids[:, ::-1], scores

    monkeypatch.setattr("perf.demo.Pipeline.load", lambda repository: reversed_ids)
    users = criteo.checkpoints / "users.jsonl"
    assert not compare(criteo_server.url, criteo.repository, users)["server_equals_pipeline"]


def test_the_demo_ends_with_one_screen(tmp_path: Path) -> None:
    report = "Click prediction\n\n| a |\n\nThe cascade over 5 items: …\n\n| rank | 0.8 |\n\n| c |\n"
    (tmp_path / "evaluation.md").write_text(report)
    latency = {"p50_ms": 1.25, "p95_ms": 2.0, "p99_ms": 3.0}
    measured = [
        Measurement("recommend", 1, Load("concurrency", n), 9, throughput=500.0, latency_ms=latency)
        for n in (1, 4, 16)
    ]
    summary = {"server_equals_pipeline": True, "server_users_compared": 9, "server_max_abs": 0.0}
    summary["warnings"] = ["rank is worse than prerank"]
    summary["plan"] = "sizes: smaller ones are faster"
    text = screen(tmp_path, tmp_path / "s.json", "rank  item id\n   1  17", measured, summary)
    assert "item id" in text
    assert "The cascade over 5 items" in text
    assert "| rank | 0.8 |" in text
    assert "| c |" not in text
    assert "\nWARNING: rank is worse than prerank\n" in text
    assert text.count("500") == 3
    assert "\nsizes: smaller ones are faster\n" in text
    assert f"{tmp_path}/evaluation.png" in text
    assert f"{tmp_path}/plan.png" in text
    assert len(text.splitlines()) < 24


@pytest.mark.parametrize("reached", [True, False])
def test_what_planned_sizes_save_is_told(reached: bool) -> None:
    plan = {
        **{"keep": 0.95, "results": 10, "reached": reached},
        "chosen": {"candidates": 100, "survivors": 50, "kept": 0.97},
        "default": {"candidates": 1000, "survivors": 200, "kept": 0.99},
        "speedup": {"1": {"speedup": 2.5}, "16": {"speedup": 3.75}},
    }
    found = saved(plan)
    assert found["plan_speedup"] == 3.75
    if reached:
        assert "100 → 50 → 10 in place of 1000 → 200 → 10 keep 0.970" in found["plan"]
        assert "2.50 times as many requests/s, of 16 users at once 3.75 times" in found["plan"]
    else:
        assert found["plan"] == "sizes: none that was tried keeps 0.95 of the ranker's ten best"
