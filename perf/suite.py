"""`python -m perf.suite`: everything that is claimed about speed, measured in one go.

Makes a catalogue of a million items, exports it as tuned as it gets, plain and flat, and runs the
comparison, the waterfall, the scaling and the large tables on them. What was found goes to
OUT/summary.json, the lines to perf/results, tables and pictures to perf/report.md; each claim is
printed beside what it was to be.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cascade.spec import RETRIEVE
from perf import record, report_speed
from perf.claims import verdicts
from perf.commands import heading, run

ITEMS = 1_000_000
# Of the many catalogues whose growth is measured: to choose an index for each would take hours.
FAST_EXPORT = "--index pcaivfsq8 --state float16 --weights float32 --users-per-run 8"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m perf.suite", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/perf"))
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rows", type=Path, help="Criteo rows whose users are sent")
    parser.add_argument("--quick", action="store_true", help="small, short: is all of it in order?")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=[*STEPS])
    args = parser.parse_args()
    suite = Suite(args)
    started = time.monotonic()
    for step in args.steps:
        getattr(suite, step)()
    summary = suite.summary()
    summary["seconds"] = round(time.monotonic() - started, 1)
    path = args.out / "summary.json"
    path.write_text(json.dumps(summary, indent=1) + "\n")
    if not args.quick:
        suite.report(summary)
    heading(f"summary ({path})")
    print(verdicts(summary))


STEPS = ("artifacts", "compare", "waterfall", "scaling", "large_tables", "floor")


class Suite:
    """The steps, in order; each reads what the earlier ones left in OUT."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out = args, args.out
        self.fixture, self.tuned = args.out / "fixture", args.out / "tuned"
        self.plain, self.flat = args.out / "plain", args.out / "flat"
        self.quick = ("--quick",) if args.quick else ()
        self.rows = ("--rows", args.rows) if args.rows and args.rows.exists() else ()
        self.users = self.fixture / "users.jsonl"
        args.out.mkdir(parents=True, exist_ok=True)

    def artifacts(self) -> None:
        """The fixture, and its three exports."""
        run("perf.fixture", "--items", self.args.items, "--out", self.fixture, *self.rows)
        for repository in (self.tuned, self.plain, self.flat):
            shutil.rmtree(repository, ignore_errors=True)
        common = (
            "--checkpoints",
            self.fixture,
            "--topology",
            "fused",
            "--device",
            self.args.device,
        )
        run("export", *common, "--repository", self.tuned, "--index", self._index())
        plain = ("--state", "float32", "--weights", "float32", "--row-order", "catalogue")
        run("export", *common, "--repository", self.plain, *plain, "--index", "ivf")
        flat: list[object] = []
        for stage, option, inputs in (
            ("prerank", "--preranker-onnx", "--preranker-inputs"),
            ("rank", "--ranker-onnx", "--inputs"),
        ):
            graph, mapping = self.out / f"flat-{stage}.onnx", self.out / f"flat-{stage}.json"
            files = ("--onnx", graph, "--inputs", mapping)
            run("export.foreign.flat", "--checkpoints", self.fixture, "--ranker", stage, *files)
            flat += [option, graph, inputs, mapping]
        run("export", *common, "--repository", self.flat, "--retrieve-from", self.tuned, *flat)

    def _index(self) -> str:
        return "exact" if self.args.device == "cuda" else "auto"

    def compare(self) -> None:
        """Everything that could serve the same artifacts, in alternation."""
        others = ("--plain-repository", self.plain, "--flat-repository", self.flat)
        run(
            "perf.compare",
            *("--repository", self.tuned, *others, "--users", self.users),
            *("--out", self.out / "compare", *self.quick),
        )

    def waterfall(self) -> None:
        """Where one request's time goes."""
        run(
            "perf.waterfall",
            *("--repository", self.tuned, "--users", self.users),
            *("--out", self.out / "waterfall"),
        )

    def scaling(self) -> None:
        """Cost against sizes."""
        small = ("--items", "10000,30000") if self.args.quick else ()
        made = ("--checkpoints", self.fixture, "--repository", self.tuned)
        how = ("--device", self.args.device, f"--export={FAST_EXPORT}")
        run("perf.scaling", "--out", self.out / "scaling", *made, *small, *self.rows, *how)

    def large_tables(self) -> None:
        """The paper's table sizes."""
        small = ("--items", 20_000, "--rounds", 2) if self.args.quick else ()
        how = ("--device", self.args.device, f"--export={FAST_EXPORT}")
        run("perf.large_tables", "--out", self.out / "large_tables", *small, *how)

    def floor(self) -> None:
        """What the hardware would allow."""
        run(
            "perf.floor",
            *("--repository", self.tuned, "--device", self.args.device, "--users", self.users),
            *("--out", self.out / "floor.json"),
        )

    def report(self, summary: dict[str, Any]) -> None:
        """The summary as a line of results, its pictures, and perf/report.md from all lines."""
        environment = record.environment(
            configuration=f"suite-{self.args.device}",
            repository=self.tuned,
            payload={"source": self.users.name},
            versions={},
        )
        report_speed.keep(summary, environment, self.out, self.tuned)
        run("perf.report")

    def summary(self) -> dict[str, Any]:
        """All figures that the steps left behind."""
        found: dict[str, Any] = {"items": self.args.items, "device": self.args.device}
        for path in self._summaries():
            content = json.loads(path.read_text())
            found |= {k: v for k, v in content.items() if isinstance(v, int | float | str)}
        index = self.tuned / "recommend" / "1" / RETRIEVE / "index.json"
        if index.exists():
            facts = json.loads(index.read_text())
            found["index_kind"], found["index_recall"] = facts["kind"], facts["recall"]
            if facts.get("exact_us"):
                found["index_speedup"] = round(facts["exact_us"] / facts["latency_us"], 2)
        return found

    def _summaries(self) -> Iterator[Path]:
        names = ("compare", "waterfall", "scaling", "large_tables")
        paths = [self.out / name / f"{name}.json" for name in names] + [self.out / "floor.json"]
        return (path for path in paths if path.exists())


if __name__ == "__main__":
    main()
