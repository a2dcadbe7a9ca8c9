"""What the clients of tests.resilience make of the answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from perf.claims import RESILIENCE, verdicts
from tests.resilience.__main__ import keep
from tests.resilience.audience import Trace


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


def test_a_run_is_kept_as_a_line(tmp_path: Path) -> None:
    keep({"release_failed": 0, "switch_ms_max": 60.5}, tmp_path)
    line = json.loads((tmp_path / "resilience-cpu.jsonl").read_text())
    assert {"time", "commit", "hardware"} <= set(line)
    rows = verdicts(line["resilience"], RESILIENCE).splitlines()
    assert [row.split("|")[-2].strip() for row in rows[2:]] == ["yes", "**no**"]
