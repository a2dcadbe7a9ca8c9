"""`python -m perf.scaling --out DIR`: what a request costs as the sizes grow.

Stage by stage against items, candidates, survivors and the users of a batch: the processor time of
one request on one thread, without a server; on a GPU the time by the clock. Settings take turns,
and every request is of another user, so that no setting finds its data in the cache. Against
instances: throughput and memory of the fused server. Against tables: latency and memory with tables
of the DLRM paper's size (`pss_two_over_one`, `paper_p99_ratio`).

DIR/scaling.json has the points and the exponents of the power laws through them, DIR/*.png the
plots; every point is a line in perf/results.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cascade.errors import run
from cascade.files import write_json
from cascade.release import newest_version, read_release
from cascade.server import workers
from cascade.server.launcher import Server
from cascade.spec import RETRIEVE
from clients.options import positive
from export.releases.rewire import rewire, serving_of
from perf.contenders.servers import TRITON
from perf.fixture import RANKERS
from perf.harness import load, record
from perf.harness.artifacts import Artifacts, export, make
from perf.harness.commands import counts, heading
from perf.harness.in_process import COSTS, Setting, costs, open_pipeline
from perf.harness.load import LoadError, Plan
from perf.harness.measurement import Load, Measurement, memory, summarise
from perf.harness.table import figures, picture

Point = dict[str, Any]

SWEEPS = ("items", "candidates", "survivors", "batch", "instances", "tables")
TOUCHING_S, SECONDS = 5.0, 5.0  # of load: before a server is measured, and of a measurement


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Least squares of log(value) against log(size): 1 is linear, 0 constant."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def exponents(points: Sequence[Point]) -> dict[str, dict[str, float]]:
    """By sweep of several sizes, the exponents of the costs."""
    found: dict[str, dict[str, float]] = {}
    for against, some in pd.DataFrame(points).groupby("against"):
        keys = some.dropna(axis=1).columns.intersection(COSTS)
        if some["size"].nunique() > 1 and len(keys):
            found[str(against)] = {k: exponent(list(some["size"]), list(some[k])) for k in keys}
    return found


def release_facts(made: Artifacts) -> Point:
    """What the export says about a release: its index, and the bytes per item of every stage."""
    release = read_release(made.repository, newest_version(made.repository))
    found = release["stages"][RETRIEVE]["index"]
    return {
        "index_kind": found["kind"],
        "recall": found["recall"],
        "bytes_per_item": {k: v.get("bytes_per_item") for k, v in release["stages"].items()},
        "export_s": made.export_s,
    }


@contextmanager
def serve(
    made: Artifacts, instances: int, work: Path
) -> Iterator[tuple[Server, Callable[[int, float], Measurement]]]:
    """A server of so many fused processes that many users have touched, and how to measure it:
    requests in flight, seconds -> `Measurement`. Raises LoadError."""
    repository = work / f"{made.repository.parent.name}-{instances}"
    serving = replace(serving_of(made.repository), instances=instances, topology="fused")
    rewire(made.repository, repository, serving)
    requests = TRITON.requests(made.users())
    with Server(repository) as server:

        def ask(in_flight: int, seconds: float) -> Measurement:
            trace = load.run(server.http_url, requests, Plan("concurrency", in_flight, seconds))
            measured = summarise(trace, Load("concurrency", in_flight), "fused")
            if measured.error or measured.failed:
                raise LoadError(measured.error or f"{measured.failed} requests failed")
            return measured

        ask(8, TOUCHING_S)
        yield server, ask


def served(made: Artifacts, instances: int, work: Path, seconds: float = SECONDS) -> Point:
    """Users a second with 16 requests in flight, and the memory of the Python processes."""
    with serve(made, instances, work) as (server, ask):
        measured = ask(16, seconds)
        held = memory(worker.pid for worker in workers.alive(server.name))
    latencies = {key: measured.latency_ms[key] for key in ("p50_ms", "p99_ms")}
    return {"size": instances, "throughput": measured.throughput, **latencies, **held._asdict()}


def p99_ratio(
    paper: Artifacts, small: Artifacts, work: Path, rounds: int, seconds: float = SECONDS
) -> float:
    """p99 with large tables over p99 with small ones, in turns; medians of the rounds."""
    with serve(paper, 1, work) as (_, large), serve(small, 1, work) as (_, other):
        asks = (large, other)
        p99 = [[ask(1, seconds).latency_ms["p99_ms"] for ask in asks] for _ in range(rounds)]
    paper_ms, small_ms = np.median(p99, axis=0)
    return float(paper_ms / small_ms)


class Scaling:
    """Runs the sweeps and keeps every point as soon as it is there."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.work = args, work
        self.points: list[Point] = []
        self.ratios: dict[str, float] = {}
        self._made: dict[Path, Artifacts] = {}

    def run(self) -> dict[str, Any]:
        """All sweeps that were asked for -> what is in scaling.json."""
        content: dict[str, Any] = {}
        results = self.args.results or record.RESULTS / f"scaling-{self.args.device}.jsonl"
        for name in self.args.sweeps:
            points = [{"against": name, **point} for point in self._points(name)]
            self.points += points
            configuration = f"scaling-{name}-{self.args.device}"
            record.append(results, record.environment(configuration=configuration), *points)
            heading(f"against {name}")
            print(report(points), flush=True)
            content = write(self.args.out, self.points, self.ratios)
        return content

    def _points(self, sweep: str) -> list[Point]:
        match sweep:
            case "items":
                return self._priced({n: self._make(n, self.args.ranker) for n in self.args.items})
            case "candidates" | "survivors":
                return self._priced(self._exported(sweep))
            case "batch":
                pipeline, users = open_pipeline(self._base().repository), self._base().users()
                settings = {batch: Setting(pipeline, users, batch) for batch in self.args.batches}
                taken = costs(settings, self.args.rounds, self.args.device).items()
                return [{"size": n, **us, "us_per_user": us["total_us"] / n} for n, us in taken]
            case "instances":
                return [served(self._base(), n, self.work) for n in self.args.instances]
        paper = self._make(self.args.base_items, "paper")
        points = [served(paper, n, self.work) for n in (1, 2)]
        self.ratios = {
            "pss_two_over_one": points[1]["pss_mb"] / points[0]["pss_mb"],
            "paper_p99_ratio": p99_ratio(paper, self._base(), self.work, self.args.rounds),
        }
        return points

    def _exported(self, option: str) -> dict[int, Artifacts]:
        """The base exported with other numbers of what leaves a stage."""
        base, made = self._base(), {}
        for size in getattr(self.args, option):
            repository = self.work / f"{option}-{size}" / "repository"
            options = (*self.args.export, f"--{option}", size)
            export_s = export(base.checkpoints, repository, self.args.device, options)
            made[size] = replace(base, repository=repository, export_s=export_s)
        return made

    def _priced(self, made: Mapping[int, Artifacts]) -> list[Point]:
        settings = {n: Setting(open_pipeline(m.repository), m.users()) for n, m in made.items()}
        taken = costs(settings, self.args.rounds, self.args.device)
        return [{"size": n, **taken[n], **release_facts(m)} for n, m in made.items()]

    def _base(self) -> Artifacts:
        return self._make(self.args.base_items, "criteo")

    def _make(self, items: int, ranker: str) -> Artifacts:
        folder = self.work / f"{ranker}-{items}"
        if folder not in self._made:  # sweeps share what this run has made
            how = (self.args.device, self.args.export)
            self._made[folder] = make(folder, items, ranker, *how)
        return self._made[folder]


def write(out: Path, points: Sequence[Point], ratios: Mapping[str, float]) -> dict[str, Any]:
    """OUT/scaling.json and the plots -> what is in the file."""
    found = exponents(points)
    grown = found.keys() & {"items", "candidates"}
    growth = {f"growth_exponent_{against}": found[against]["total_us"] for against in grown}
    content = {**growth, **ratios, "exponents": found, "points": list(points)}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "scaling.json", content)
    for against, some in pd.DataFrame(points).groupby("against"):
        some = some.sort_values("size").dropna(axis=1, how="all")
        costs = [key for key in COSTS if key in some]
        title = f"Cost of a request against {against}, one thread"
        with picture(out / f"{against}.png", title) as axes:
            some.plot(x="size", y=costs or ["pss_mb", "rss_mb"], ax=axes, style="o-", logx=True)
            axes.set(xlabel=against, ylabel="processor time, median, µs" if costs else "MB")
            if costs and against != "batch":  # a slope on logarithmic axes is an exponent
                axes.set_yscale("log")
            else:
                axes.set_ylim(bottom=0)
    return content


def report(points: Sequence[Point]) -> str:
    """The points of one sweep as a table, and how everything in it grows."""
    against = str(points[0]["against"])
    frame = pd.DataFrame(points).set_index("size").select_dtypes("number")
    grown = exponents(points).get(against, {})
    lines = [f"{key} grows by the power {value:.2f}" for key, value in grown.items()]
    return "\n".join([figures(frame, against), *lines])


def main(arguments: list[str] | None = None) -> None:
    """Run the sweeps."""
    parser = argparse.ArgumentParser(prog="python -m perf.scaling", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("build/perf/scaling"))
    add("--items", type=counts, default="10000,100000,1000000,5000000")
    add("--ranker", choices=RANKERS, default="small", help="over the items [%(default)s]")
    add("--candidates", type=counts, default="500,1000,2000,4000")
    add("--survivors", type=counts, default="50,100,200,500")
    add("--batches", type=counts, default="1,2,4,8,16,32")
    add("--instances", type=counts, default="1,2,4")
    add("--sweeps", nargs="+", choices=SWEEPS, default=[*SWEEPS])
    add("--base-items", type=positive, default=100_000, help="of the other sweeps [%(default)s]")
    add("--rounds", type=positive, default=6, help="turns that each setting gets [%(default)s]")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--export", type=str.split, default=[], help="further arguments of export, in one word")
    add("--results", type=Path, help="file of lines")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="scaling-") as work:
        content = Scaling(args, Path(work)).run()
    for key, value in content.items():
        if isinstance(value, float):
            print(f"{key:32} {value:.3f}")


if __name__ == "__main__":
    run(main, to_end=True)
