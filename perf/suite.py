"""`python -m perf.suite`: everything that is claimed about speed, measured in one go (make perf).

The figures go to OUT/summary.json, the lines to perf/results, tables and pictures to
perf/report.md; each claim is printed beside its target.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from cascade.errors import run as run_main
from cascade.files import write_json
from cascade.spec import RETRIEVE, stage_path
from clients.options import positive
from perf import report
from perf.harness import record
from perf.harness.commands import heading, run
from perf.harness.table import verdicts

STEPS = ("artifacts", "compare", "waterfall", "scaling", "roofline")
# For the many catalogues whose growth is measured: to choose an index for each would take hours.
FAST_EXPORT = "--untuned --index pcaivfsq8 --state float16 --users-per-run 8"


class Suite:
    """The steps, in order; each reads what the earlier ones left in OUT."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out = args, args.out
        self.fixture, self.tuned = args.out / "fixture", args.out / "tuned"
        self.plain, self.flat = args.out / "plain", args.out / "flat"
        self.served = ("--repository", self.tuned, "--users", self.fixture / "users.jsonl")
        self.device = ("--device", args.device)
        self.retrieve = self.tuned / stage_path("fused", RETRIEVE, 1)
        args.out.mkdir(parents=True, exist_ok=True)

    def artifacts(self) -> None:
        """The fixture, and its three exports."""
        run("perf.fixture", "--items", self.args.items, "--out", self.fixture)
        for repository in (self.tuned, self.plain, self.flat):
            shutil.rmtree(repository, ignore_errors=True)
        made = ("--checkpoints", self.fixture, "--topology", "fused", *self.device)
        index = "exact" if self.args.device == "cuda" else "auto"
        run("export", *made, "--repository", self.tuned, "--index", index)
        plain = ("--state", "float32", "--weights", "float32", "--row-order", "catalogue")
        run("export", *made, "--repository", self.plain, *plain, "--index", "ivf")
        flat: list[object] = []
        for stage, option, inputs in (
            ("prerank", "--preranker-onnx", "--preranker-inputs"),
            ("rank", "--ranker-onnx", "--inputs"),
        ):
            graph, mapping = self.out / f"flat-{stage}.onnx", self.out / f"flat-{stage}.json"
            files = ("--onnx", graph, "--inputs", mapping)
            run("export", "flat", "--checkpoints", self.fixture, "--ranker", stage, *files)
            flat += [option, graph, inputs, mapping]
        run(
            "export",
            *made,
            "--repository",
            self.flat,
            "--retrieve-from",
            self.tuned,
            "--flat",
            *flat,
        )

    def compare(self) -> None:
        """Everything that could serve the same artifacts, in alternation."""
        others = ("--plain-repository", self.plain, "--flat-repository", self.flat)
        quick = ("--quick",) if self.args.quick else ()
        run("perf.compare", *self.served, *others, "--out", self.out / "compare", *quick)

    def waterfall(self) -> None:
        """Where one request's time goes."""
        run("perf.waterfall", *self.served, "--out", self.out / "waterfall")

    def scaling(self) -> None:
        """Cost against sizes, and the paper's table sizes."""
        small = ("--items", "10000,30000", "--base-items", 20_000, "--rounds", 2)
        how = (*self.device, f"--export={FAST_EXPORT}", *(small if self.args.quick else ()))
        run("perf.scaling", "--out", self.out / "scaling", *how)

    def roofline(self) -> None:
        """What the hardware would allow."""
        run("perf.roofline", *self.served, *self.device, "--out", self.out / "roofline.json")

    def summary(self) -> dict[str, Any]:
        """All figures that the steps left behind."""
        found: dict[str, Any] = {"items": self.args.items, "device": self.args.device}
        steps = ("compare", "waterfall", "scaling")
        for path in (*(self.out / n / f"{n}.json" for n in steps), self.out / "roofline.json"):
            content = json.loads(path.read_text()) if path.exists() else {}
            found |= {k: v for k, v in content.items() if isinstance(v, int | float | str)}
        if (index := self.retrieve / "index.json").exists():
            facts = json.loads(index.read_text())
            found["index_kind"], found["index_recall"] = facts["kind"], facts["recall"]
            if facts.get("exact_us"):
                found["index_speedup"] = round(facts["exact_us"] / facts["latency_us"], 2)
        return found

    def keep(self, summary: dict[str, Any]) -> None:
        """The summary as a line of results, its pictures, and perf/report.md from all lines."""
        name = f"suite-{self.args.device}"
        environment = record.environment(configuration=name, repository=self.tuned)
        record.append(record.RESULTS / f"{name}.jsonl", environment, {"summary": summary})
        plots = record.RESULTS.parent / "plots"
        plots.mkdir(exist_ok=True)
        pictures = (*(self.out / path for path in report.PICTURES), self.retrieve / "frontier.png")
        for source in pictures:
            if source.exists():
                shutil.copyfile(source, plots / f"{name}-{source.name}")
        run("perf.report")


def main(arguments: list[str] | None = None) -> None:
    """Run the steps."""
    parser = argparse.ArgumentParser(prog="python -m perf.suite", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("build/perf"))
    add("--items", type=positive, default=1_000_000)
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--quick", action="store_true", help="small and short: does all of it run?")
    add("--steps", nargs="+", choices=STEPS, default=[*STEPS])
    args = parser.parse_args(arguments)
    suite, started = Suite(args), time.monotonic()
    for step in args.steps:
        getattr(suite, step)()
    summary = {**suite.summary(), "seconds": round(time.monotonic() - started, 1)}
    path = args.out / "summary.json"
    write_json(path, summary)
    if not args.quick:
        suite.keep(summary)
    heading(f"summary ({path})")
    print(verdicts(summary, report.CLAIMS))


if __name__ == "__main__":
    run_main(main, to_end=True)
