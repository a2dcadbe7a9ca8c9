"""The judge of filtered answers: what is right, and what is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.resilience.filters import _right

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
        ([10, 40, 99, -1], [0.8, 0.8, 0.1, 0.0], False),  # nobody's
    ],
)
def test_an_answer_is_judged(found: list[int], scores: list[float], right: Any) -> None:
    assert _right(IDS, SCORES, LEFT, np.array(found), np.array(scores)) is right


def test_nothing_left_is_an_empty_answer() -> None:
    nothing = np.zeros(4, bool)
    assert _right(IDS, SCORES, nothing, np.array([-1, -1]), np.zeros(2))
    assert not _right(IDS, SCORES, nothing, np.array([10, -1]), np.zeros(2))
