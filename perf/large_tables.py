"""`python -m perf.large_tables --work DIR --out OUT`: tables of the DLRM paper's size, served.

The ranker has 33.8 million rows of 16 numbers, more than 2 GB. The items' tables end in the item
states; those of the users' features are gathered from by the served graphs, and have to stay in
files that all processes map. Looked at are

- what one and two instances of the server hold together (PSS), one after the other, for side by
  side they would share the pages, and only when many users have touched what is in use;
- the latency of one request at a time, beside a server with small tables over as many items, in
  alternation;
- the files that are mapped, and the memory that is not in any file;
- the time and the memory that the export takes.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cascade.server.binaries import perf_analyzer
from cascade.server.launcher import Server
from export.releases.rewire import rewire, serving_of
from perf import memory, record
from perf.analyzer import Program, Target, measure, warm_up
from perf.artifacts import Artifacts, Wish, make
from perf.commands import heading
from perf.measurement import Effort, Load, Measurement
from perf.payload import Payload
from perf.scaling_sweeps import Point, release_facts
from perf.table import number, table

RANKERS = {"paper": "paper", "small": "criteo"}  # the same layers, tables of two sizes
EFFORT = Effort("large tables", window_requests=400, stability_percent=50, trials=3)


@dataclass(frozen=True)
class Served:
    """A server's Python processes, after many users.

    Args:
        held: by all of them together. files: what of it is in which file of the release.
    """

    instances: int
    start_s: float
    held: memory.Memory
    files: Mapping[str, memory.Memory]


def hold(made: Artifacts, instances: int, work: Path, requests: int) -> Served:
    """Serve with so many instances, ask, and look. One instance or two, the requests are as many:
    more users touch more pages, and that is not the instances' doing."""
    repository = wired(made, instances, work)
    users = made.users()
    began = time.monotonic()
    with Server(repository) as server, tempfile.TemporaryDirectory() as folder:
        start_s = time.monotonic() - began
        ask(server, users, Path(folder), requests)
        processes = memory.stubs(server.name)
        held = memory.of(processes)
        files = memory.mapped(processes, repository)
    return Served(instances, start_s, held, files)


def wired(made: Artifacts, instances: int, work: Path) -> Path:
    """A fused repository with so many instances; its files are those of the export."""
    repository = work / f"{made.repository.parent.name}-{instances}"
    serving = replace(serving_of(made.repository), instances=instances, topology="fused")
    rewire(made.repository, repository, serving)
    return repository


def ask(server: Server, users: Payload, folder: Path, requests: int) -> Target:
    """Send requests of different users, and return what is to be measured."""
    target = Target(server.url, folder / "users.json")
    users.write(target.input_data)
    warm_up(Program(*perf_analyzer()), target, requests)
    return target


def compare(
    made: Mapping[str, Artifacts], work: Path, requests: int, rounds: int
) -> dict[str, list[Measurement]]:
    """Both servers up, one instance each, one request at a time, in turns."""
    program, found = Program(*perf_analyzer()), {name: list[Measurement]() for name in made}
    with tempfile.TemporaryDirectory() as folder:
        servers = {name: Server(wired(m, 1, work)) for name, m in made.items()}
        try:
            targets = {}
            for name, server in servers.items():
                server.start()
                (Path(folder) / name).mkdir()
                targets[name] = ask(server, made[name].users(), Path(folder) / name, requests)
            for _ in range(rounds):
                for name, target in targets.items():
                    found[name].append(measure(program, target, Load("concurrency", 1), EFFORT))
        finally:
            for server in servers.values():
                server.stop()
    return found


def median_ms(measured: Sequence[Measurement], key: str) -> float:
    """Of the rounds: the machine's bad moment is in one of them.

    Raises:
        ValueError: a run failed.
    """
    errors = [m.error for m in measured if m.error]
    if errors:
        raise ValueError(f"the server did not answer: {errors[0]}")
    return float(np.median([m.latency_ms[key] for m in measured]))


def summarise(
    made: Mapping[str, Artifacts],
    served: Sequence[Served],
    measured: Mapping[str, Sequence[Measurement]],
) -> Point:
    """What goes into the file: the two ratios, and everything behind them."""
    one, two = served
    p99, p50 = (
        {name: median_ms(runs, key) for name, runs in measured.items()}
        for key in ("p99_ms", "p50_ms")
    )
    return {
        "pss_two_over_one": two.held.pss_mb / one.held.pss_mb,
        "paper_p99_ratio": p99["paper"] / p99["small"],
        "p99_ms": p99,
        "p50_ms": p50,
        "p99_rounds_ms": {n: [m.latency_ms["p99_ms"] for m in r] for n, r in measured.items()},
        "served": [asdict(s) for s in served],
        "releases": {
            name: {**release_facts(m), "ranker_parameters": ranker_parameters(m)}
            for name, m in made.items()
        },
    }


def ranker_parameters(made: Artifacts) -> int:
    """Numbers in the ranker's checkpoint, counted without reading them."""
    from safetensors import safe_open

    with safe_open(next((made.checkpoints / "rank").glob("*.safetensors")), "np") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    return sum(int(np.prod(shape)) for shape in shapes)


def report(found: Point) -> str:
    """The tables."""
    rows = [
        [
            f"{served['instances']} instance{'' if served['instances'] == 1 else 's'}",
            *(number(served["held"][f"{key}_mb"]) for key in ("rss", "pss", "shared", "anonymous")),
            number(served["start_s"]),
        ]
        for served in found["served"]
    ]
    header = ["fused server", "RSS MB", "PSS MB", "shared MB", "private MB", "start s"]
    files = [
        [name, *(number(held[f"{key}_mb"]) for key in ("rss", "pss", "anonymous"))]
        for name, held in found["served"][-1]["files"].items()
    ]
    latency = [
        [
            name,
            *(number(ms) for ms in (found["p50_ms"][name], p99)),
            *(number(facts[key]) for key in ("export_s", "export_peak_mb")),
            f"{facts['ranker_parameters'] / 1e6:.1f}",
        ]
        for (name, p99), facts in zip(
            found["p99_ms"].items(), found["releases"].values(), strict=True
        )
    ]
    columns = ["tables", "p50 ms", "p99 ms", "export s", "export peak MB", "ranker, M parameters"]
    parts = [
        table(header, rows),
        table(["mapped, all instances", "RSS MB", "PSS MB", "copied MB"], files),
        table(columns, latency),
    ]
    ratios = (f"{key:20} {found[key]:.3f}" for key in ("pss_two_over_one", "paper_p99_ratio"))
    return "\n\n".join([*parts, "\n".join(ratios)])


def keep(found: Point, results: Path, device: str) -> None:
    """Append a line to a file of results."""
    line = {
        "time": record.now(),
        **record.environment(
            configuration=f"large-tables-{device}",
            repository=None,
            payload={"source": "perf.fixture"},
            versions={},
        ),
        "load_average": round(os.getloadavg()[0], 2),
        **found,
    }
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    args = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="large-tables-") as scratch:
        work = args.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        made = {
            name: make(
                Wish(args.items, ranker, args.device, export=args.export),
                work / f"{name}-tables",
            )
            for name, ranker in RANKERS.items()
        }
        heading("memory of one and of two instances")
        served = [hold(made["paper"], n, work, args.requests) for n in (1, 2)]
        heading("latency beside small tables")
        measured = compare(made, work, args.requests, args.rounds)
        found = summarise(made, served, measured)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "large_tables.json").write_text(json.dumps(found, indent=1) + "\n")
    keep(found, args.results or record.RESULTS / f"large-tables-{args.device}.jsonl", args.device)
    print(report(found))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m perf.large_tables", description=__doc__)
    add: Callable[..., Any] = parser.add_argument
    add("--out", type=Path, default=Path("build/perf/large_tables"))
    add("--work", type=Path, help="folder for what is made [a temporary one]")
    add("--items", type=int, default=100_000, help="of both catalogues [%(default)s]")
    add("--requests", type=int, default=8000, help="before a server is looked at [%(default)s]")
    add("--rounds", type=int, default=5, help="turns that each server gets [%(default)s]")
    add("--export", type=str.split, default=[], help="further arguments of export, in one word")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--results", type=Path, help="file of lines to append to")
    return parser


if __name__ == "__main__":
    main()
