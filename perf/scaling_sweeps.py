"""The sweeps of `perf.scaling`: each makes one point per size, a flat dict that goes into JSON."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cascade.release import newest_version, read_release
from cascade.server.binaries import perf_analyzer
from cascade.server.launcher import Server
from cascade.spec import PRERANK, RETRIEVE
from export.releases.rewire import rewire, serving_of
from perf import costs, memory
from perf.alone import look
from perf.analyzer import Program, Target, measure, warm_up
from perf.artifacts import Artifacts
from perf.measurement import Effort, Load
from perf.payload import Payload
from perf.resized import Retuner, with_survivors

Point = dict[str, Any]

EFFORT = Effort("scaling", window_requests=500, stability_percent=50, trials=4)
IN_FLIGHT = 16


def items(made: Sequence[Artifacts], rounds: int = costs.ROUNDS) -> list[Point]:
    """Against the catalogue: all catalogues open at once, asked in turns. What each of them holds
    in memory, and how long it takes to load, was seen before in a process of its own."""
    points = [
        {**_point("items", m.items), **release_facts(m), **look(m.repository, m.users_file)}
        for m in made
    ]
    opened = {m.items: costs.open_stages(m.repository) for m in made}
    users = {m.items: m.users() for m in made}
    taken = costs.alternate(opened, users, rounds=rounds)
    return [
        {**point, **taken[n], **costs.work_of(opened[n], users[n])}
        for point, n in zip(points, opened, strict=True)
    ]


def candidates(
    made: Artifacts, sizes: Sequence[int], recall: float, rounds: int = costs.ROUNDS
) -> list[Point]:
    """Against K, the index at equal recall among the first K."""
    opened = {k: costs.open_stages(made.repository, candidates=k) for k in sizes}
    users, retuner = made.users(), Retuner(made, recall)
    tuned = {
        k: retuner.tune(stages, users.dense, users.categorical) for k, stages in opened.items()
    }
    del retuner  # the vectors of all items
    return _compared("candidates", opened, users, tuned, rounds)


def kept(
    made: Artifacts, sizes: Sequence[int], work: Path, rounds: int = costs.ROUNDS
) -> list[Point]:
    """Against S, what prerank leaves for rank."""
    folder, opened = costs.folders_of(made.repository)[PRERANK], {}
    for survivors in sizes:
        with_survivors(folder, work / f"kept-{survivors}", survivors)
        places = {PRERANK: work / f"kept-{survivors}"}
        opened[survivors] = costs.open_stages(made.repository, folders=places)
    return _compared("kept", opened, made.users(), {}, rounds)


def batches(made: Artifacts, sizes: Sequence[int], rounds: int = costs.ROUNDS) -> list[Point]:
    """Against the users of a request: microseconds of the whole batch, and of one of its users."""
    opened, users = costs.open_stages(made.repository), made.users()
    taken = costs.alternate(
        dict.fromkeys(sizes, opened), dict.fromkeys(sizes, users), {b: b for b in sizes}, rounds
    )
    return [
        {**_point("batch", b), **us, "us_per_user": us["total_us"] / b} for b, us in taken.items()
    ]


def instances(made: Artifacts, sizes: Sequence[int], work: Path) -> list[Point]:
    """Against the processes of the fused server: users a second with requests always waiting, and
    memory. One server after the other: side by side they would share pages and cores."""
    points = []
    for count in sizes:
        repository = work / f"instances-{count}"
        rewire(
            made.repository,
            repository,
            replace(serving_of(made.repository), instances=count, topology="fused"),
        )
        points.append({**_point("instances", count), **_served(repository, made.users())})
    return points


def _served(repository: Path, users: Payload) -> Point:
    program = Program(*perf_analyzer())
    began = time.monotonic()
    with Server(repository) as server, tempfile.TemporaryDirectory() as folder:
        start_s = time.monotonic() - began
        target = Target(server.url, Path(folder) / "users.json")
        users.write(target.input_data)
        warm_up(program, target, requests=1000)
        found = measure(program, target, Load("concurrency", IN_FLIGHT), EFFORT)
        held = memory.of(memory.stubs(server.name))
    return {
        "start_s": start_s,
        "throughput": found.throughput,
        "p50_ms": found.latency_ms.get("p50_ms"),
        "p99_ms": found.latency_ms.get("p99_ms"),
        "failed": found.failed,
        "error": found.error,
        **asdict(held),
    }


def release_facts(made: Artifacts) -> Point:
    """What export says about a release: its index, and the bytes per item of every stage."""
    release = read_release(made.repository, newest_version(made.repository))
    found = release["stages"][RETRIEVE]["index"]
    return {
        "ranker": made.ranker,
        "index_kind": found["kind"],
        "index": found["parameters"],
        "recall": found["recall"],
        "variants": {k: v["variant"] for k, v in release["stages"].items() if "variant" in v},
        "bytes_per_item": {k: v.get("bytes_per_item") for k, v in release["stages"].items()},
        "fixture_s": made.fixture_s,
        "export_s": made.export_s,
        "export_peak_mb": made.export_peak_mb,
    }


def _compared(
    against: str,
    opened: Mapping[int, costs.Opened],
    users: Payload,
    facts: Mapping[int, Point],
    rounds: int,
) -> list[Point]:
    taken = costs.alternate(opened, dict.fromkeys(opened, users), rounds=rounds)
    return [
        {
            **_point(against, size),
            **facts.get(size, {}),
            **taken[size],
            **costs.work_of(stages, users),
        }
        for size, stages in opened.items()
    ]


def _point(against: str, size: int) -> Point:
    return {"against": against, "size": size}
