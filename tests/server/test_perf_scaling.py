"""Memory and throughput of real servers with one and two instances."""

from pathlib import Path
from typing import Any

import pytest

from perf import large_tables, memory, scaling_sweeps
from perf.artifacts import Artifacts
from perf.measurement import Effort


@pytest.fixture(scope="module")
def made(criteo: Any) -> Artifacts:
    return Artifacts.of(criteo.checkpoints, criteo.repository)


def test_the_stubs_of_a_server_are_found(criteo_server: Any) -> None:
    processes = memory.stubs(criteo_server.name)
    assert len(processes) == 3  # one per stage
    assert criteo_server.pid not in processes
    assert memory.of(processes).pss_mb > 0
    assert memory.stubs("cascade_unknown") == []


def test_instances_are_served_one_after_the_other(
    made: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Effort("test", window_requests=50, stability_percent=400, trials=3)
    monkeypatch.setattr(scaling_sweeps, "EFFORT", short)
    (point,) = scaling_sweeps.instances(made, [2], tmp_path)
    assert (point["against"], point["size"], point["error"]) == ("instances", 2, None)
    assert point["throughput"] > 0
    assert 0 < point["pss_mb"] < point["rss_mb"]


def test_instances_share_what_is_mapped(made: Artifacts, tmp_path: Path) -> None:
    served = large_tables.hold(made, 2, tmp_path, requests=100)
    states = [held for name, held in served.files.items() if name.endswith("item_state.bin")]
    assert len(states) == 2
    for held in states:
        assert held.anonymous_mb == 0
        # Both have touched it, and each counts half; less where other servers map the same file.
        assert 0 < held.pss_mb < 1.2 * held.rss_mb / 2
