"""What the supervisor tells of the disks and of the clock around a server."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from cascade.server.surroundings import LEAST_BYTES, Surroundings


def test_a_disk_is_told_once_when_it_is_full_and_when_it_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {"bytes": 10 * LEAST_BYTES, "blocks": 1000}

    def statvfs(place: Path) -> SimpleNamespace:
        if place != tmp_path:
            raise FileNotFoundError(place)
        return SimpleNamespace(f_bavail=free["bytes"], f_frsize=1, f_blocks=free["blocks"])

    monkeypatch.setattr(os, "statvfs", statvfs)
    surroundings, told = Surroundings(), []
    for left in (10, 0, 0, 1, 2, 0):  # of the least that it wants
        free["bytes"] = left * LEAST_BYTES
        found = surroundings.changes([tmp_path, tmp_path / "absent"])
        told.append([(event, facts["path"]) for event, facts in found])
    full, room = [("disk full", str(tmp_path))], [("disk has room", str(tmp_path))]
    assert told == [[], full, [], [], room, full]
    free["blocks"] = 0  # a file system without a size
    assert not [*Surroundings().changes([tmp_path])]


def test_a_step_of_the_clock_is_told() -> None:
    now = {"wall": 1e9, "steady": 5.0}
    surroundings = Surroundings(lambda: now["wall"], lambda: now["steady"])
    steps = ((0.0, 60.0), (3600.0, 0.2), (-3600.0, 9.0), (0.1, 0.2))
    told = []
    for step_s, passed_s in steps:
        now["wall"] += step_s + passed_s
        now["steady"] += passed_s
        told.append([*surroundings.changes([])])
    assert told == [
        [],
        [("clock stepped", {"seconds": 3600.0})],
        [("clock stepped", {"seconds": -3600.0})],
        [],
    ]
