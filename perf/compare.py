"""`python -m perf.compare`: everything that could serve the same release, in alternation.

python -m perf.compare --repository A --plain-repository B --flat-repository C --users users.jsonl

All servers run side by side and one at a time is loaded. A round asks every contender at every load
once; within a load they take turns, in another order each round, so that whatever else goes on in
the machine meets all alike. The closed loops of all rounds come first: they say at what rates the
open loops are to be. Every answer is compared with the in-process pipeline's before anything is
measured. `perf.compare_keys` defines what is said in the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from tritonclient.utils import InferenceServerException

from cascade.artifact import ArtifactError
from cascade.server.binaries import BinaryError
from cascade.server.launcher import ServerError
from cascade.server.threads import cores, default_instances
from cascade.spec import TOPOLOGIES
from export.releases.rewire import rewire, serving_of
from perf import payload, record
from perf.analyzer import AnalyzerError
from perf.bound import configs, open_pipeline
from perf.compare_keys import BOUND, FASTAPI, FLAT, PLAIN_BOUND, PYTRITON, Runs, key_figures
from perf.compare_plots import curve_plot, percentile_plot
from perf.compare_runs import Contender, Runner, in_process
from perf.compare_table import closed_table, cores_table, open_table
from perf.contenders import servers
from perf.contenders.check import check
from perf.contenders.idle import generator_us
from perf.contenders.servers import ContenderError, Endpoint
from perf.contenders.wire import WireError
from perf.load import LoadError
from perf.measurement import Load
from perf.payload import Features, PayloadError
from perf.stages import configuration_name
from perf.trace import write_requests

EXPECTED = (
    *(AnalyzerError, ArtifactError, BinaryError, ContenderError, InferenceServerException),
    *(LoadError, PayloadError, ServerError, WireError),
)
NAMES = (*TOPOLOGIES, FLAT, FASTAPI, PYTRITON, BOUND, PLAIN_BOUND)
PACKAGES = ("fastapi", "uvicorn", "uvloop", "httptools", "orjson", "nvidia-pytriton")
FEWEST_USERS = 4096
CHECKED_USERS = 16


@dataclass(frozen=True)
class Plan:
    """What is measured, and for how long.

    Args:
        shares: of each one's highest throughput, for the open loop.
        batches: users per call, for the bound alone.
    """

    names: tuple[str, ...] = NAMES
    concurrencies: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    shares: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    rounds: int = 3
    seconds: float = 3.0


QUICK = Plan(concurrencies=(1, 4), shares=(0.5,), batches=(1, 4), rounds=1, seconds=0.5)


class Comparison:
    """The contenders, started, and the lines of what they did."""

    def __init__(self, options: argparse.Namespace, plan: Plan) -> None:
        self.options, self.plan = options, plan
        self.lines: list[dict[str, Any]] = []
        release, stages = configs(options.repository)
        features = Features.of(release)
        users = options.users
        self.users = payload.load(users, features) if users else payload.generated(features, 4096)
        if len(self.users) < FEWEST_USERS:
            _say(f"only {len(self.users)} different users: the caches will flatter everybody")
        self.configuration = configuration_name("compare", stages)
        self.topologies: dict[str, str] = {
            **dict(zip(TOPOLOGIES, TOPOLOGIES, strict=True)),
            FLAT: _topology_of_flat(serving_of(options.repository).topology, plan.names),
        }
        self.results = options.results or record.RESULTS / f"{self.configuration}.jsonl"
        environment = record.environment(
            configuration=self.configuration,
            repository=options.repository,
            payload=self.users.describe(),
            versions={package: version(package) for package in PACKAGES},
        )
        self._environment = {**environment, "seconds": plan.seconds}
        self._runner = Runner(self.users, plan.seconds)

    def start(self, stack: ExitStack) -> list[Contender]:
        """Start every server and hold its answers against the pipeline's."""
        contenders: list[Contender] = []
        tuned = open_pipeline(self.options.repository)
        for name, repository, start in self._servers():
            _say(f"starting {name}")
            endpoint = stack.enter_context(start(repository))
            pipeline = open_pipeline(repository) if name == FLAT else tuned
            check(name, endpoint, pipeline, self.users, CHECKED_USERS)
            contenders += self._contenders(name, repository, endpoint)
        return contenders

    def _servers(
        self,
    ) -> Iterator[tuple[str, Path, Callable[[Path], AbstractContextManager[Endpoint]]]]:
        options = self.options
        for name in self.plan.names:
            if name in TOPOLOGIES:
                yield name, self._wired(name, options.repository, name), servers.triton
            elif name == FLAT and options.flat_repository:
                wired = self._wired(FLAT, options.flat_repository, self.topologies[FLAT])
                yield name, wired, servers.triton
            elif name == FASTAPI:
                yield name, options.repository, servers.fastapi
            elif name == PYTRITON:
                yield name, options.repository, servers.pytriton

    def _wired(self, name: str, source: Path, topology: Any) -> Path:
        """The release in that topology, linked rather than copied."""
        target: Path = self.options.out / "repositories" / name
        shutil.rmtree(target, ignore_errors=True)
        instances = self.options.instances or default_instances(topology)
        release = serving_of(self.options.repository)
        rewire(source, target, replace(release, topology=topology, instances=instances))
        return target

    def _contenders(self, name: str, repository: Path, endpoint: Endpoint) -> Iterator[Contender]:
        folder = self.options.out / "requests"
        folder.mkdir(parents=True, exist_ok=True)
        requests = folder / f"{name}.npz"
        write_requests(requests, endpoint.wire.requests(self.users))
        yield Contender(name, "http", repository, endpoint, requests)
        if name in TOPOLOGIES and endpoint.grpc:
            rows = folder / "perf_analyzer.json"
            if not rows.exists():
                self.users.write(rows)
            yield Contender(name, "grpc", repository, endpoint, rows)

    def bounds(self) -> Iterator[Contender]:
        """What runs without a server."""
        if BOUND in self.plan.names:
            for batch in self.plan.batches:
                yield in_process(BOUND, self.options.repository, batch)
        if PLAIN_BOUND in self.plan.names and self.options.plain_repository:
            yield in_process(PLAIN_BOUND, self.options.plain_repository)

    def closed(self, contenders: Sequence[Contender]) -> None:
        """All rounds of the closed loops, and of the bound."""
        for contender in contenders:
            self._runner.warm_up(contender)
        for number in range(self.plan.rounds):
            for contender in _rotated([*self.bounds()], number):
                self._measure(contender, Load("concurrency", cores()), number)
            for turn, concurrency in enumerate(self.plan.concurrencies):
                for contender in _rotated(contenders, number + turn):
                    self._measure(contender, Load("concurrency", concurrency), number)

    def open(self, contenders: Sequence[Contender]) -> None:
        """All rounds of the open loops, at shares of what each did at most."""
        runs = Runs(self.lines)
        over_http = [contender for contender in contenders if contender.protocol == "http"]
        for number in range(self.plan.rounds):
            for turn, share in enumerate(self.plan.shares):
                for contender in _rotated(over_http, number + turn):
                    most = runs.most(contender.name, "http")
                    if most:
                        self._measure(
                            contender, Load("rate", round(share * most, 1)), number, share
                        )

    def _measure(
        self, contender: Contender, load: Load, number: int, share: float | None = None
    ) -> None:
        run = self._runner.run(contender, load, number)
        circumstances = {
            **self._environment,
            "contender": contender.name,
            "protocol": contender.protocol,
            "topology": self.topologies.get(contender.name, ""),
            "round": number,
            "share": share,
            **run.to_dict(),
        }
        line = record.append(self.results, circumstances, run.measurement)
        self.lines.append(line)
        p50, p99 = line.get("p50_ms"), line.get("p99_ms")
        figures = f"{line['throughput']:.0f}/s, p50 {p50:.2f}, p99 {p99:.2f} ms" if p50 else "–"
        troubles = f", {line['failed']} FAILED" if line["failed"] else ""
        _say(f"[{number + 1}/{self.plan.rounds}] {contender.label}, {load}: {figures}{troubles}")

    def report(self, idle_us: float) -> None:
        """Print the tables, draw the plots, write compare.json."""
        out: Path = self.options.out
        figures = {**key_figures(self.lines), "generator_us": round(idle_us, 1)}
        (out / "compare.json").write_text(json.dumps(figures, indent=1) + "\n")
        for table in (closed_table, open_table, cores_table):
            print(table(self.lines), end="\n\n")
        print(json.dumps(figures, indent=1))
        curve_plot(self.lines, "What a throughput costs, closed loop", out / "curve.png")
        for share in self.plan.shares:
            title = f"Open loop at {share:.0%} of each one's most"
            percentile_plot(self.lines, share, title, out / f"percentiles-{share * 100:g}.png")


def _topology_of_flat(release: str, names: Sequence[str]) -> str:
    """That of the release; one that is measured, where that one is not."""
    measured = [name for name in TOPOLOGIES if name in names]
    return release if release in measured or not measured else measured[0]


def _rotated(contenders: Sequence[Contender], by: int) -> list[Contender]:
    by %= max(1, len(contenders))
    return [*contenders[by:], *contenders[:by]]


def main(arguments: list[str] | None = None) -> int:
    """0 when everybody was measured, 2 when somebody could not be."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _end)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        comparison = Comparison(options, _plan(options))
        with ExitStack() as stack:
            contenders = comparison.start(stack)
            requests = next((c.requests for c in contenders if c.protocol == "http"), None)
            idle_us = generator_us(requests) if requests else 0.0
            comparison.closed(contenders)
            comparison.open(contenders)
        comparison.report(idle_us)
    except EXPECTED as error:
        print(f"perf.compare: {error}", file=sys.stderr)
        return 2
    return 0


def _end(number: int, frame: FrameType | None) -> None:
    """End the `with` blocks, and so the servers; a second signal must not interrupt that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


def _plan(options: argparse.Namespace) -> Plan:
    plan = QUICK if options.quick else Plan()
    given = {
        "names": options.contenders and tuple(options.contenders),
        "concurrencies": options.concurrency,
        "rounds": options.rounds,
        "seconds": options.seconds,
    }
    return replace(plan, **{key: value for key, value in given.items() if value})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m perf.compare", description=__doc__)
    parser.add_argument("--repository", type=Path, required=True, help="the release, any topology")
    parser.add_argument("--flat-repository", type=Path, help="the same with flat graphs")
    parser.add_argument("--plain-repository", type=Path, help="the same split, float32, not tuned")
    parser.add_argument("--users", type=Path, help="users.jsonl (default: generated users)")
    parser.add_argument("--out", type=Path, default=Path("build/perf/compare"))
    parser.add_argument("--results", type=Path, help="file to append to (default: by device)")
    parser.add_argument("--contenders", nargs="+", choices=NAMES, help="only these")
    parser.add_argument("--concurrency", type=_counts, help="comma-separated, such as 1,4,16")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="per run")
    parser.add_argument("--instances", type=int, help="processes per model [by the cores here]")
    parser.add_argument("--quick", action="store_true", help="one short round")
    return parser


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
