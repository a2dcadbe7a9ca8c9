"""`python -m perf.scaling --out DIR`: what a request costs as the sizes grow.

Cost of one request (processor time of its one thread), stage by stage, against items, candidates,
survivors and users in a batch; throughput and memory against instances; load time and memory
against items. Beside each cost stands its work (inner products, bytes, multiply-adds, nanoseconds
per gathered row), for a cost that outgrows its work has another reason than the algorithm.

OUT/scaling.json has the points and the exponents, OUT/*.png the plots; every point is a line in
perf/results.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from perf import record, scaling_plots, scaling_sweeps
from perf.artifacts import Artifacts, Wish, make
from perf.commands import heading
from perf.fixture import RANKERS
from perf.growth import exponents
from perf.scaling_sweeps import Point
from perf.table import number, table

SWEEPS = ("items", "candidates", "kept", "batch", "instances")
# In the table: the point's key, and how a column is called.
COLUMNS = {
    "retrieve_us": "retrieve µs",
    "prerank_us": "prerank µs",
    "rank_us": "rank µs",
    "total_us": "request µs",
    "clock_us": "by the clock µs",
    "us_per_user": "µs per user",
    "recall": "recall",
    "distances": "inner products",
    "retrieve_bytes": "index bytes read",
    "prerank_bytes": "state bytes, prerank",
    "rank_bytes": "state bytes, rank",
    "gather_ns": "ns per row",
    "gather_again_ns": "the same, cached",
    "throughput": "users/s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "load_s": "load s",
    "rss_mb": "RSS MB",
    "pss_mb": "PSS MB",
    "shared_mb": "shared MB",
    "anonymous_mb": "private MB",
    "export_s": "export s",
    "export_peak_mb": "export peak MB",
}


class Scaling:
    """Runs the sweeps and keeps every point as soon as it is there."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.work = args, work
        self.points: list[Point] = []
        self._made: dict[tuple[str, int], Artifacts] = {}
        self.results = args.results or record.RESULTS / f"scaling-{args.device}.jsonl"
        self.environment = record.environment(
            configuration=f"scaling-{args.device}",
            repository=None,
            payload={"source": args.rows.name if args.rows else "perf.fixture"},
            versions={},
        )

    def run(self) -> None:
        """All sweeps that were asked for."""
        for name in self.args.sweeps:
            points = getattr(self, f"_{name}")()
            self._keep(points)
            heading(f"against {name}")
            print(report(points), flush=True)

    def _items(self) -> list[Point]:
        made = [self._make(n, self.args.ranker) for n in self.args.items]
        return scaling_sweeps.items(made, self.args.rounds)

    def _candidates(self) -> list[Point]:
        sizes, recall = self.args.candidates, self.args.recall
        return scaling_sweeps.candidates(self._base(), sizes, recall, self.args.rounds)

    def _kept(self) -> list[Point]:
        return scaling_sweeps.kept(self._base(), self.args.kept, self.work, self.args.rounds)

    def _batch(self) -> list[Point]:
        return scaling_sweeps.batches(self._base(), self.args.batches, self.args.rounds)

    def _instances(self) -> list[Point]:
        return scaling_sweeps.instances(self._base(), self.args.instances, self.work)

    def _base(self) -> Artifacts:
        """What all sweeps but that over items run on."""
        if self.args.repository:
            return Artifacts.of(self.args.checkpoints, self.args.repository)
        return self._make(self.args.base_items, self.args.base_ranker)

    def _make(self, items: int, ranker: str) -> Artifacts:
        key = (ranker, items)
        if key not in self._made:  # sweeps share what this run has made
            wish = Wish(items, ranker, self.args.device, self.args.rows, self.args.export)
            self._made[key] = make(wish, self.work / f"{ranker}-{items}")
        return self._made[key]

    def _keep(self, points: Sequence[Point]) -> None:
        self.points += points
        self.results.parent.mkdir(parents=True, exist_ok=True)
        with self.results.open("a") as file:
            for point in points:
                now = {"time": record.now(), "load_average": round(os.getloadavg()[0], 2)}
                file.write(json.dumps({**now, **self.environment, **point}) + "\n")
        write(self.args.out, self.points)


def write(out: Path, points: Sequence[Point]) -> dict[str, Any]:
    """OUT/scaling.json and the plots -> what is in the file."""
    found = exponents(points)
    summary = {
        f"growth_exponent_{against}": found[against]["total_us"]
        for against in ("items", "candidates")
        if against in found
    }
    content = {**summary, "exponents": found, "points": list(points)}
    out.mkdir(parents=True, exist_ok=True)
    (out / "scaling.json").write_text(json.dumps(content, indent=1) + "\n")
    scaling_plots.draw(points, out)
    return content


def report(points: Sequence[Point]) -> str:
    """The points of one sweep as a table, and how everything in it grows."""
    columns = [key for key in COLUMNS if any(point.get(key) is not None for point in points)]
    header = [points[0]["against"], *(COLUMNS[key] for key in columns)]
    rows = [
        [f"{point['size']:,}", *(number(point.get(key)) for key in columns)] for point in points
    ]
    grown = exponents(points).get(points[0]["against"], {})
    lines = [
        table(header, rows),
        *(
            f"{COLUMNS.get(key, key)} grows by the power {value:.2f}"
            for key, value in grown.items()
        ),
        *_releases(points),
    ]
    return "\n".join(lines)


def _releases(points: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What was served at each size, where the release differs."""
    for point in points:
        if "index_kind" in point:
            sizes = ", ".join(f"{k} {v}" for k, v in point["bytes_per_item"].items())
            yield (
                f"{point['size']:,} items: index {point['index_kind']} {point['index']}, ranker "
                f"{point['ranker'] or 'as exported'}, bytes per item: {sizes}"
            )


def _numbers(text: str) -> list[int]:
    return sorted({int(word) for word in text.split(",")})


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    args = _parser().parse_args(arguments)
    if (args.repository is None) != (args.checkpoints is None):
        _parser().error("--repository and --checkpoints go together")
    with tempfile.TemporaryDirectory(prefix="scaling-") as scratch:
        work = args.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        scaling = Scaling(args, work)
        scaling.run()
    for key, value in write(args.out, scaling.points).items():
        if isinstance(value, float):
            print(f"{key:32} {value:.3f}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m perf.scaling", description=__doc__)
    add: Callable[..., Any] = parser.add_argument
    add("--out", type=Path, default=Path("build/perf/scaling"))
    add("--items", type=_numbers, default="10000,100000,1000000,5000000")
    add("--ranker", choices=RANKERS, default="small", help="over the items [%(default)s]")
    add("--candidates", type=_numbers, default="500,1000,2000,4000")
    add("--kept", type=_numbers, default="50,100,200,500")
    add("--batches", type=_numbers, default="1,2,4,8,16,32")
    add("--instances", type=_numbers, default="1,2,4")
    add("--sweeps", nargs="+", choices=SWEEPS, default=[*SWEEPS])
    add("--base-items", type=int, default=100_000, help="of the other sweeps [%(default)s]")
    add("--base-ranker", choices=RANKERS, default="criteo")
    add("--checkpoints", type=Path, help="run the other sweeps on these, with --repository")
    add("--repository", type=Path, help="exported from --checkpoints")
    add("--recall", type=float, default=0.95, help="of retrieval, at every size [%(default)s]")
    add("--rounds", type=int, default=6, help="turns that each setting gets [%(default)s]")
    add("--rows", type=Path, help="Criteo rows whose users are sent")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--export", type=str.split, default=[], help="further arguments of export, in one word")
    add("--work", type=Path, help="folder for what is made [a temporary one]")
    add("--results", type=Path, help="file of lines to append to")
    return parser


if __name__ == "__main__":
    main()
