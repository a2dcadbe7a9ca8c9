"""`python -m perf.scaling --out DIR`: what a request costs as the sizes grow.

Stage by stage against items, candidates, survivors and the users of a batch: the processor time of
one request on one thread, without a server. ONNX Runtime and FAISS have no other thread here, and
other work on the machine is not in it. On a GPU all costs are times by the clock. Settings take
turns, and every request is of another user, so that no setting finds its data in the cache.

Against instances: throughput and memory of the fused server. Against tables: latency and memory
with tables of the DLRM paper's size (`pss_two_over_one`, `paper_p99_ratio`).

DIR/scaling.json has the points and the exponents of the power laws through them, DIR/*.png the
plots; every point is a line in perf/results.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cascade.errors import run
from cascade.release import newest_version, read_release
from cascade.spec import RETRIEVE, STAGES
from cascade.stages.pipeline import Pipeline
from perf import scaling_servers
from perf.fixture import RANKERS
from perf.harness import record
from perf.harness.artifacts import Artifacts, Wish, export, make
from perf.harness.commands import count, counts, heading
from perf.harness.figures import picture
from perf.harness.in_process import open_pipeline
from perf.harness.payload import Payload
from perf.harness.table import number, table

Point = dict[str, Any]

SWEEPS = ("items", "candidates", "survivors", "batch", "instances", "tables")
COSTS = ("total_us", *(f"{stage}_us" for stage in STAGES))
USERS_A_ROUND = 48


@dataclass(frozen=True)
class Setting:
    """One size of a sweep: what is asked, and for how many users at once."""

    pipeline: Pipeline
    users: Payload
    batch: int = 1

    def request_ns(self, start: int, clock: Callable[[], int]) -> Any:
        """Nanoseconds [3] that each stage takes for the users from `start` on."""
        moments = [clock()]
        dense, ids, candidates = self.pipeline.retrieve(*self.users.rows(start, self.batch))
        moments.append(clock())
        survivors = self.pipeline.prerank(dense, ids, candidates)
        moments.append(clock())
        self.pipeline.rank(dense, ids, survivors)
        return np.diff([*moments, clock()])


def costs(settings: Mapping[Any, Setting], rounds: int, device: str = "cpu") -> dict[Any, Point]:
    """Medians of what a request costs, in microseconds: `retrieve_us`, `prerank_us`, `rank_us` and
    `total_us`."""
    clock = time.thread_time_ns if device == "cpu" else time.perf_counter_ns
    taken: dict[Any, list[Any]] = {key: [] for key in settings}
    at = {k: i * len(s.users) // len(settings) for i, (k, s) in enumerate(settings.items())}
    for _ in range(rounds):
        for key, setting in settings.items():
            for turn in range(1 + max(2, USERS_A_ROUND // setting.batch)):
                ns = setting.request_ns(at[key], clock)
                at[key] += setting.batch
                if turn:  # the first of a turn finds the instructions of others in the cache
                    taken[key].append([ns.sum(), *ns])
    found = {key: np.median(ns, axis=0) / 1e3 for key, ns in taken.items()}
    return {key: dict(zip(COSTS, us.tolist(), strict=True)) for key, us in found.items()}


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Least squares of log(value) against log(size): 1 is linear, 0.5 the square root, 0 constant.

    Raises:
        ValueError: fewer than two different sizes, or something that has no logarithm.
    """
    if len(set(sizes)) < 2:
        raise ValueError(f"sizes {list(sizes)} show no growth; give two different ones at least")
    if min((*sizes, *values)) <= 0:
        raise ValueError("sizes and values have to be above zero to grow by a power")
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def exponents(points: Sequence[Point]) -> dict[str, dict[str, float]]:
    """By sweep, the exponents of the costs."""
    found: dict[str, dict[str, float]] = {}
    for against, some in pd.DataFrame(points).groupby("against") if points else ():
        keys = [k for k in COSTS if k in some and some[k].notna().all()]
        if some["size"].nunique() > 1 and keys:
            found[str(against)] = {k: exponent(list(some["size"]), list(some[k])) for k in keys}
    return found


def release_facts(made: Artifacts) -> Point:
    """What the export says about a release: its index, and the bytes per item of every stage."""
    release = read_release(made.repository, newest_version(made.repository))
    found = release["stages"][RETRIEVE]["index"]
    sizes = {k: v.get("bytes_per_item") for k, v in release["stages"].items()}
    return {
        "index_kind": found["kind"],
        "recall": found["recall"],
        "bytes_per_item": sizes,
        "export_s": made.export_s,
    }


class Scaling:
    """Runs the sweeps and keeps every point as soon as it is there."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.work = args, work
        self.points: list[Point] = []
        self.ratios: dict[str, float] = {}
        self._made: dict[tuple[object, ...], Artifacts] = {}

    def run(self) -> dict[str, Any]:
        """All sweeps that were asked for -> what is in scaling.json."""
        content: dict[str, Any] = {}
        for name in self.args.sweeps:
            points = [{"against": name, **point} for point in getattr(self, f"_{name}")()]
            self.points += points
            self._record(name, points)
            heading(f"against {name}")
            print(report(points), flush=True)
            content = write(self.args.out, self.points, self.ratios)
        return content

    def _record(self, name: str, points: Sequence[Point]) -> None:
        device = self.args.device
        environment = record.environment(configuration=f"scaling-{name}-{device}")
        results = self.args.results or record.RESULTS / f"scaling-{device}.jsonl"
        record.append(results, environment, *points)

    def _items(self) -> list[Point]:
        return self._priced({n: self._make(n, self.args.ranker) for n in self.args.items})

    def _candidates(self) -> list[Point]:
        return self._exported("candidates", self.args.candidates)

    def _survivors(self) -> list[Point]:
        return self._exported("survivors", self.args.survivors)

    def _exported(self, option: str, sizes: Sequence[int]) -> list[Point]:
        """The base exported with other numbers of what leaves a stage."""
        base, wish, made = self._base(), self._wish(self.args.base_items, "criteo"), {}
        for size in sizes:
            repository = self.work / f"{option}-{size}" / "repository"
            sized = replace(wish, export=(*wish.export, f"--{option}", size))
            export_s = export(sized, base.checkpoints, repository)
            made[size] = replace(base, repository=repository, export_s=export_s)
        return self._priced(made)

    def _priced(self, made: Mapping[int, Artifacts]) -> list[Point]:
        settings = {n: Setting(open_pipeline(m.repository), m.users()) for n, m in made.items()}
        taken = costs(settings, self.args.rounds, self.args.device)
        return [{"size": n, **taken[n], **release_facts(m)} for n, m in made.items()]

    def _batch(self) -> list[Point]:
        pipeline, users = open_pipeline(self._base().repository), self._base().users()
        settings = {batch: Setting(pipeline, users, batch) for batch in self.args.batches}
        taken = costs(settings, self.args.rounds, self.args.device)
        return [{"size": b, **us, "us_per_user": us["total_us"] / b} for b, us in taken.items()]

    def _instances(self) -> list[Point]:
        base = self._base()
        return [
            {"size": n, **scaling_servers.measure(base, n, self.work)} for n in self.args.instances
        ]

    def _tables(self) -> list[Point]:
        paper = self._make(self.args.base_items, "paper")
        points = [{"size": n, **scaling_servers.measure(paper, n, self.work)} for n in (1, 2)]
        self.ratios = {
            "pss_two_over_one": points[1]["pss_mb"] / points[0]["pss_mb"],
            "paper_p99_ratio": scaling_servers.compare(
                paper, self._base(), self.work, self.args.rounds
            ),
        }
        return points

    def _base(self) -> Artifacts:
        return self._make(self.args.base_items, "criteo")

    def _wish(self, items: int, ranker: str) -> Wish:
        return Wish(items, ranker, self.args.device, self.args.export)

    def _make(self, items: int, ranker: str) -> Artifacts:
        key = (ranker, items)
        if key not in self._made:  # sweeps share what this run has made
            self._made[key] = make(self._wish(items, ranker), self.work / f"{ranker}-{items}")
        return self._made[key]


def write(out: Path, points: Sequence[Point], ratios: Mapping[str, float]) -> dict[str, Any]:
    """OUT/scaling.json and the plots -> what is in the file."""
    found = exponents(points)
    growth = {
        f"growth_exponent_{against}": found[against]["total_us"]
        for against in ("items", "candidates")
        if against in found
    }
    content = {**growth, **ratios, "exponents": found, "points": list(points)}
    out.mkdir(parents=True, exist_ok=True)
    (out / "scaling.json").write_text(json.dumps(content, indent=1) + "\n")
    for against, some in pd.DataFrame(points).groupby("against"):
        draw(str(against), some.sort_values("size"), out / f"{against}.png")
    return content


def draw(against: str, points: pd.DataFrame, path: Path) -> None:
    """On logarithmic axes, where a slope is an exponent."""
    costs = [key for key in COSTS if key in points and points[key].notna().all()]
    with picture(path, f"Cost of a request against {against}, one thread") as axes:
        points.plot(x="size", y=costs or ["pss_mb", "rss_mb"], ax=axes, style="o-", logx=True)
        axes.set(xlabel=against, ylabel="processor time, median, µs" if costs else "MB")
        if costs and against != "batch":
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)


def report(points: Sequence[Point]) -> str:
    """The points of one sweep as a table, and how everything in it grows."""
    against = str(points[0]["against"])
    keys = [k for k, v in points[0].items() if isinstance(v, float)]
    rows = [[f"{p['size']:,}", *(number(p.get(key)) for key in keys)] for p in points]
    grown = exponents(points).get(against, {})
    lines = [f"{key} grows by the power {value:.2f}" for key, value in grown.items()]
    return "\n".join([table([against, *keys], rows), *lines])


def main(arguments: list[str] | None = None) -> None:
    """Run the sweeps."""
    args = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="scaling-") as scratch:
        work = args.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        content = Scaling(args, work).run()
    for key, value in content.items():
        if isinstance(value, float):
            print(f"{key:32} {value:.3f}")


def _parser() -> argparse.ArgumentParser:
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
    add("--base-items", type=count, default=100_000, help="of the other sweeps [%(default)s]")
    add("--rounds", type=count, default=6, help="turns that each setting gets [%(default)s]")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--export", type=str.split, default=[], help="further arguments of export, in one word")
    add("--work", type=Path, help="folder for what is made [a temporary one]")
    add("--results", type=Path, help="file of lines")
    return parser


if __name__ == "__main__":
    run(main)
