"""`python -m perf.waterfall`: one request's time, split into what it is spent on.

One client asks one request after the other. Every piece is an interval between two moments that
were noted (`perf.waterfall_trace`); the operators within a scoring stage are shares of its interval
(`perf.waterfall_operators`). Each piece is reported as its median over the requests. How far their
sum is from the median of the whole is `waterfall_share`. Every other block of requests is asked
without traces: the difference is what the looking costs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cascade.artifact import ArtifactError
from cascade.pbtxt import process_settings
from cascade.runtime import spans
from cascade.server.launcher import ServerError
from cascade.server.threads import default_instances, threads_per_process
from cascade.spec import TOPOLOGIES
from export.releases.rewire import rewire, serving_of
from perf import payload, record
from perf.bound import configs
from perf.payload import Features, PayloadError
from perf.stages import configuration_name
from perf.table import table
from perf.waterfall_client import MARKS, TRACES, Call, Plan, ask
from perf.waterfall_operators import GROUPS, shares, split
from perf.waterfall_plot import draw
from perf.waterfall_trace import (
    MEANING,
    Batches,
    Intervals,
    TraceError,
    between_processes,
    intervals,
    last,
    read_traces,
)

GROUP_MEANING = {
    "sort": "rows in catalogue order",
    **{group: f"operators: {group}" for group in GROUPS},
}


@dataclass(frozen=True)
class Waterfall:
    """What one size of request was found to take.

    Args:
        batch: users in a request.
        requests: how many were traced.
        parts_us: medians by interval, in the order of time.
        measured_us: median of the whole, from the client's call to its arrays.
        untraced_us: the same of the requests without traces.
    """

    batch: int
    requests: int
    parts_us: Mapping[str, float]
    measured_us: float
    untraced_us: float

    @property
    def share(self) -> float:
        """Sum of the parts over the whole. It may pass 1: medians do not add up exactly."""
        return sum(self.parts_us.values()) / self.measured_us

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        transport = sum(us for name, us in self.parts_us.items() if between_processes(name))
        return {
            "batch": self.batch,
            "requests": self.requests,
            "measured_us": round(self.measured_us, 1),
            "untraced_us": round(self.untraced_us, 1),
            "waterfall_share": round(self.share, 4),
            "between_processes_share": round(transport / self.measured_us, 4),
            "unexplained_us": round(self.measured_us - sum(self.parts_us.values()), 1),
            "parts_us": {name: round(us, 2) for name, us in self.parts_us.items()},
        }


def measure(repository: Path, plan: Plan, scratch: Path) -> list[Waterfall]:
    """Serve a repository, ask it, and split the answers' times.

    Raises:
        TraceError: what server and stages noted cannot be matched with the requests.
    """
    calls, plain = ask(repository, plan, scratch)
    split_up = intervals_of(calls, scratch)
    found = []
    for batch in plan.batches:
        names = [name for name in calls if name.startswith(f"{batch}-")]
        rows = [split_up[name] for name in names]
        medians = {part: float(np.median([row[part] for row in rows])) for part in rows[0]}
        parts = split(medians, _operators(repository, plan, batch))
        measured_us = float(np.median([calls[name].us for name in names]))
        untraced_us = float(np.median(plain[batch]))
        found.append(Waterfall(batch, len(rows), parts, measured_us, untraced_us))
    return found


def intervals_of(calls: Mapping[str, Call], scratch: Path) -> dict[str, Intervals]:
    """The intervals of every request, by its id, from what `ask` left in `scratch`.

    Raises:
        TraceError: what server and stages noted does not fit the requests.
    """
    traces = read_traces(sorted(scratch.glob(f"{TRACES}*")))
    batches = Batches(spans.read(scratch / MARKS))
    missing = calls.keys() - traces.keys()
    if missing:
        raise TraceError(f"tritonserver wrote no trace of {len(missing)} requests: {min(missing)}")
    return {name: intervals(call, traces[name], batches) for name, call in calls.items()}


def _operators(repository: Path, plan: Plan, batch: int) -> dict[str, Any]:
    """Shares of the operators, where ONNX Runtime runs them on the CPU; elsewhere its profiler
    sees a launch, not the work, and the stages stay whole."""
    serving = serving_of(repository)
    if serving.runtime != "onnx" or serving.device != "cpu":
        return {}
    threads = serving.threads or threads_per_process(repository)
    users_per_run = _users_per_run(repository)
    served = replace(serving, threads=threads, users_per_run=users_per_run)
    return shares(repository, served, plan.users, batch, plan.requests)


def _users_per_run(repository: Path) -> int:
    """The smallest of the processes' settings; 0 where none cuts."""
    values = [s.serving.users_per_run for s in process_settings(repository).values()]
    return min((v for v in values if v), default=0)


def report(found: Sequence[Waterfall]) -> str:
    """The pieces in the order of time, a column for each batch."""
    header = ["piece", *(f"{w.batch} user(s), µs" for w in found), "what happens"]
    names = list(dict.fromkeys(name for w in found for name in w.parts_us))
    rows = [
        [name, *(f"{w.parts_us.get(name, 0):.1f}" for w in found), _meaning(name)] for name in names
    ]
    for title, values in (
        ("sum", [sum(w.parts_us.values()) for w in found]),
        ("measured", [w.measured_us for w in found]),
        ("measured without traces", [w.untraced_us for w in found]),
    ):
        rows.append([title, *(f"{value:.1f}" for value in values), ""])
    rows.append(["share", *(f"{w.share:.3f}" for w in found), "sum / measured"])
    return table(header, rows)


def _meaning(name: str) -> str:
    kind = last(name)
    meaning = MEANING.get(kind) or GROUP_MEANING.get(kind, "the stage")
    return f"{meaning} (between two processes)" if between_processes(name) else meaning


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write waterfall.json and waterfall.png, append to the results."""
    options = _parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        # Beside the results: on the same disk as the repository, most likely, so it can be linked.
        with tempfile.TemporaryDirectory(prefix=".waterfall-", dir=options.out) as scratch:
            _run(options, Path(scratch).resolve())
    except (ArtifactError, PayloadError, ServerError, TraceError) as error:
        print(f"perf.waterfall: {error}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace, scratch: Path) -> None:
    repository = options.repository
    if options.topology:
        repository = scratch / "repository"
        serving = replace(
            serving_of(options.repository),
            topology=options.topology,
            instances=default_instances(options.topology),
        )
        rewire(options.repository, repository, serving)
    topology = serving_of(repository).topology
    ensemble, stages = configs(repository)
    features = Features.of(ensemble)
    users = payload.load(options.users, features) if options.users else payload.generated(features)
    most = ensemble.max_batch_size
    if max(options.batch) > most:
        raise PayloadError(f"a request may have {most} users at most; --batch has more")
    found = measure(repository, Plan(users, options.batch, options.requests), scratch)
    print(report(found))
    name = configuration_name(f"waterfall-{topology}", stages)
    environment = record.environment(
        configuration=name, repository=repository, payload=users.describe(), versions={}
    )
    summary = {"topology": topology, **_shares(found)}
    content = {**summary, **environment, "batches": [w.to_dict() for w in found]}
    (options.out / "waterfall.json").write_text(json.dumps(content, indent=1) + "\n")
    title = f"Where the time of one request goes ({topology}, one request at a time)"
    bars = {f"{w.batch} user{'s' if w.batch > 1 else ''} per request": w.parts_us for w in found}
    draw(bars, title, options.out / "waterfall.png")
    device = "cuda" if "-cuda" in name else "cpu"
    results = options.results or record.RESULTS / f"waterfall-{device}.jsonl"
    _append(results, [{**environment, **waterfall.to_dict()} for waterfall in found])


def _append(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Lines of results, as in `perf.record`."""
    now = {"time": record.now(), "load_average": round(os.getloadavg()[0], 2)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps({**now, **line}, allow_nan=False) + "\n" for line in lines)


def _shares(found: Sequence[Waterfall]) -> dict[str, float]:
    """`waterfall_share` of the first batch, and of others with their size in the name."""
    first, *others = found
    return {
        "waterfall_share": round(first.share, 4),
        **{f"waterfall_share_{w.batch}": round(w.share, 4) for w in others},
    }


def _sizes(text: str) -> list[int]:
    sizes = [int(word) for word in text.split(",")]
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a request has one user or more")
    return sizes


def _count(text: str) -> int:
    if int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text}: a median needs two requests or more")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m perf.waterfall", description=__doc__)
    parser.add_argument("--repository", type=Path, required=True, help="exported model repository")
    parser.add_argument("--topology", choices=TOPOLOGIES, help="wire it so [as it is]")
    parser.add_argument("--users", type=Path, help="users.jsonl [generated users]")
    parser.add_argument("--out", type=Path, default=Path("build/perf/waterfall"))
    parser.add_argument("--requests", type=_count, default=300, help="traced, per batch [300]")
    parser.add_argument("--batch", type=_sizes, default=[1, 16], help="users a request [1,16]")
    parser.add_argument("--results", type=Path, help="file to append to [by device]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
