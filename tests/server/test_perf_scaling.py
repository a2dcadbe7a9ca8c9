"""Memory and throughput of real servers with one and two instances."""

from pathlib import Path
from typing import Any

import pytest

from cascade.server import workers
from perf import scaling
from perf.harness.artifacts import Artifacts
from perf.harness.measurement import memory


@pytest.fixture(scope="module")
def made(criteo: Any) -> Artifacts:
    return Artifacts(criteo.checkpoints, criteo.repository, len(criteo.pipeline().item_ids))


def test_the_stubs_of_a_server_are_found(criteo_server: Any) -> None:
    stubs = [worker.pid for worker in workers.alive(criteo_server.name)]
    assert len(stubs) == 3  # one per stage
    assert criteo_server.pid not in stubs
    assert memory(stubs).pss_mb > 0
    assert workers.alive("cascade_unknown") == set()


def test_a_server_is_measured_with_so_many_instances(made: Artifacts, tmp_path: Path) -> None:
    found = scaling.served(made, 2, tmp_path, seconds=0.5)
    assert found["throughput"] > 0
    assert 0 < found["pss_mb"] < found["rss_mb"]  # they share what is mapped


def test_two_releases_are_compared_in_turns(made: Artifacts, tmp_path: Path) -> None:
    assert scaling.p99_ratio(made, made, tmp_path, rounds=1, seconds=0.5) > 0
