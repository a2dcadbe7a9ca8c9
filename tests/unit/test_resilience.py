"""How the resilience suite judges answers, and what it keeps of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perf.harness.table import verdicts
from tests.resilience.audience import Trace
from tests.resilience.claims import RESILIENCE, Record, keep
from tests.resilience.test_filters import answer_is_right

IDS = np.array([50, 10, 40, 20])
SCORES = np.array([0.9, 0.8, 0.8, 0.1])
LEFT = np.array([False, True, True, True])


@pytest.mark.parametrize(
    ("found", "scores", "right"),
    [
        ([10, 40], [0.8, 0.8], True),
        ([40, 10], [0.8, 0.8], True),
        ([50, 10], [0.9, 0.8], False),  # filtered out
        ([10, 20], [0.8, 0.1], False),  # not the best
        ([10, 10], [0.8, 0.8], False),  # twice
        ([10, -1], [0.8, 0.0], False),  # short, though more are left
        ([10, 40, 20, -1], [0.8, 0.8, 0.1, 0.0], True),  # all that are left
        ([10, 40, 99, -1], [0.8, 0.8, 0.1, 0.0], False),  # of no item
    ],
)
def test_an_answer_is_judged(found: list[int], scores: list[float], right: Any) -> None:
    assert answer_is_right(IDS, SCORES, LEFT, np.array(found), np.array(scores)) is right


def test_nothing_left_is_an_empty_answer() -> None:
    nothing = np.zeros(4, bool)
    assert answer_is_right(IDS, SCORES, nothing, np.array([-1, -1]), np.zeros(2))
    assert not answer_is_right(IDS, SCORES, nothing, np.array([10, -1]), np.zeros(2))


def trace() -> Trace:
    sent = np.arange(6) * 1_000_000_000
    took = np.array([1, 2, 3, 4, 5, 100]) * 1_000_000
    release = np.array([1, 1, 2, 2, 0, 1])
    right = np.array([True, True, True, False, False, True])
    return Trace(sent, sent + took, release, right)


def test_what_failed_and_what_no_release_says_are_told_apart() -> None:
    found = trace()
    assert (found.failed, found.mixed) == (1, 1)
    assert found.p99_ms(0, 3_000_000_000) == pytest.approx(2.98)


def test_a_thorough_run_replaces_the_one_before(tmp_path: Path) -> None:
    for failed in (1, 0):
        keep({"release_failed": failed, "switch_ms_max": 60.5}, tmp_path)
    (line,) = map(json.loads, (tmp_path / "resilience-cpu.jsonl").read_text().splitlines())
    assert {"time", "commit", "hardware"} <= set(line)
    rows = verdicts(line["resilience"], RESILIENCE).splitlines()
    assert [row.split("|")[-2].strip() for row in rows[2:]] == ["yes", "**no**"]


def test_a_limit_fails_a_test_in_a_thorough_run_alone() -> None:
    Record()(switch_ms_max=60.5)
    with pytest.raises(AssertionError, match=r"switch_ms_max is 60\.5, claimed <= 50"):
        Record(thorough=True)(switch_ms_max=60.5)
    with pytest.raises(AssertionError, match="release_failed is 1, claimed = 0"):
        Record()(release_failed=1)


def test_a_summary_keeps_the_figures_of_other_cases(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    first, second = Record(), Record()
    first(soak_failed=0)
    first.seconds["soak"] = 1.04
    first.write(path)
    second(tls_ok=1.0)
    second.write(path)
    assert json.loads(path.read_text()) == {"soak_failed": 0, "soak_s": 1.0, "tls_ok": 1.0}
