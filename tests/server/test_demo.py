"""What the demo says of the server is true: lists that differ are told from lists that tie."""

import numpy as np
import pytest

from cascade.server.launcher import Server
from perf.demo import compare, same_list
from tests.conftest import Cascade

SCORES = np.array([0.9, 0.5, 0.5], np.float32)


@pytest.mark.parametrize(
    ("ids", "scores", "same"),
    [
        ([1, 2, 3], [0.9, 0.5, 0.5], True),
        ([1, 3, 2], [0.9, 0.5, 0.5], True),  # a tie stands in any order
        ([1, 2, 4], [0.9, 0.5, 0.5], True),  # the list was cut inside a tie
        ([4, 2, 3], [0.9, 0.5, 0.5], False),  # the first place was no tie
        ([1, 2, 3], [0.9, 0.6, 0.5], False),
        ([1, 2], [0.9, 0.5], False),
    ],
)
def test_same_list(ids: list[int], scores: list[float], same: bool) -> None:
    other = np.array(ids), np.array(scores, np.float32)
    assert same_list(np.array([1, 2, 3]), SCORES, *other)[0] is same


def test_empty_lists_are_the_same() -> None:
    nothing = np.array([]), np.array([], np.float32)
    assert same_list(*nothing, *nothing) == (True, 0.0)


def test_the_server_is_the_pipeline(criteo: Cascade, criteo_server: Server) -> None:
    users = criteo.checkpoints / "users.jsonl"
    found = compare(criteo_server.url, criteo.repository, users)
    assert found["server_equals_pipeline"]
    assert found["server_users_compared"] == len(criteo.users)
    assert found["server_max_abs"] <= 1e-5
