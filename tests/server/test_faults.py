"""The faults of `tests/resilience`, in small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.releases.rewire import rewire, serving_of
from perf.harness.payload import Payload
from tests.resilience.fuzz import fuzz
from tests.resilience.overload import overload
from tests.resilience.shutdown import shut_down
from tests.served import serve


@pytest.fixture(scope="module")
def users(criteo: Any) -> Payload:
    return Payload(criteo.dense[:64], criteo.categorical[:64], "drawn")


def test_malformed_requests_do_no_harm(criteo: Any, users: Payload, tmp_path: Path) -> None:
    with serve(criteo.repository, tmp_path / "log") as served:
        found = fuzz(served, users, requests=500)
    assert found.requests >= 500
    assert found.crashes == found.wrong == 0
    assert found.good > 0


def test_a_stop_under_load_loses_nothing(criteo: Any, users: Payload, tmp_path: Path) -> None:
    found = shut_down(criteo.repository, users, tmp_path)
    assert found.in_flight > 0
    assert (found.lost, found.code, found.left) == ((), 0, 0)


def test_too_many_requests_are_refused(criteo: Any, users: Payload, tmp_path: Path) -> None:
    serving = replace(serving_of(criteo.repository), topology="fused", instances=2)
    rewire(criteo.repository, tmp_path / "repository", serving)
    with serve(tmp_path / "repository", tmp_path / "log") as served:
        found = overload(served, users, seconds=1)
    assert found.accepted > 0
    assert found.refused > 0
    assert not found.lost
