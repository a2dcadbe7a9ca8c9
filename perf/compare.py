"""`python -m perf.compare`: everything that could serve the same release, in alternation.

python -m perf.compare --repository A --plain-repository B --flat-repository C --users users.jsonl

All servers run side by side and one at a time is loaded: Triton in each topology, Triton on the
flat export, FastAPI, and the stages in process without a server (`bound`). A round asks every
contender at every load once; within a load they take turns, in another order each round, so that
other work on the machine meets all alike. The closed loops of all rounds come first: their highest
throughput sets the rates of the open loops. Every answer is compared with the in-process
pipeline's before anything is measured. `perf.compare_report` defines the figures.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cascade.errors import run
from cascade.server.threads import cores, default_instances
from cascade.spec import TOPOLOGIES
from export.releases.rewire import rewire, serving_of
from perf import compare_report
from perf.compare_report import BOUND, FASTAPI, FLAT, PLAIN_BOUND, key_figures
from perf.contenders import servers
from perf.contenders.wire import Endpoint, check
from perf.harness import analyzer, in_process, load, payload, record
from perf.harness.analyzer import Effort
from perf.harness.commands import count, counts, end_in_order, say
from perf.harness.in_process import Job, open_pipeline
from perf.harness.measurement import Load, Measurement, summarise

NAMES = (*TOPOLOGIES, FLAT, FASTAPI, BOUND, PLAIN_BOUND)
PACKAGES = ("fastapi", "uvicorn", "uvloop", "httptools", "orjson")
CHECKED_USERS = 16
FEWEST_REQUESTS = 50  # in a window of perf_analyzer
FIRST_GUESS = 200.0  # requests per second, before anything is known
Seen = tuple[Measurement, dict[str, Any]]
Start = Callable[[Path], AbstractContextManager[Endpoint]]


@dataclass(frozen=True)
class Plan:
    """What is measured, and for how long.

    Args:
        shares: of each one's highest throughput, for the open loop.
        batches: users per call, in process alone.
    """

    names: tuple[str, ...] = NAMES
    concurrency: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    shares: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    rounds: int = 3
    seconds: float = 3.0


QUICK = Plan(concurrency=(1, 4), shares=(0.5,), batches=(1, 4), rounds=1, seconds=0.5)


@dataclass(frozen=True)
class Contender:
    """Something that is measured.

    Args:
        name: one of `NAMES`.
        protocol: `http`, `grpc`, or `in-process` without an endpoint.
        repository: what it serves.
        batch: users per call (in process alone).
    """

    name: str
    protocol: str
    repository: Path
    endpoint: Endpoint | None = None
    batch: int = 1


class Comparison:
    """The contenders, started, and the lines of their runs."""

    def __init__(self, options: argparse.Namespace, plan: Plan, work: Path) -> None:
        self.options, self.plan, self.work = options, plan, work
        self.lines: list[dict[str, Any]] = []
        self.users = payload.users(options.users, payload.layout_of(options.repository))
        if len(self.users) < payload.FEW_USERS:
            say(f"only {len(self.users)} different users: the caches will flatter all contenders")
        # The flat export is compared with a topology that is measured.
        serving = serving_of(options.repository)
        self.configuration = payload.configuration_name("compare", [serving])
        topology = serving.topology
        measured = [name for name in TOPOLOGIES if name in plan.names]
        self.flat_topology = topology if topology in measured else (measured or [topology])[0]
        self._requests: dict[str, list[bytes]] = {}
        self._known: dict[str, float] = {}  # requests per second in the last run

    def start(self, stack: ExitStack) -> list[Contender]:
        """Start every server and hold its answers against the pipeline's."""
        contenders: list[Contender] = []
        tuned = open_pipeline(self.options.repository)
        self.users.write(self.work / "users.json")
        for name, repository, start in self._servers():
            say(f"starting {name}")
            endpoint = stack.enter_context(start(repository))
            pipeline = open_pipeline(repository) if name == FLAT else tuned
            check(name, endpoint, pipeline, self.users, CHECKED_USERS)
            self._requests[name] = endpoint.wire.requests(self.users)
            contenders.append(Contender(name, "http", repository, endpoint))
            if name in TOPOLOGIES:
                contenders.append(Contender(name, "grpc", repository, endpoint))
        return contenders

    def _servers(self) -> Iterator[tuple[str, Path, Start]]:
        options = self.options
        for name in self.plan.names:
            if name in TOPOLOGIES:
                yield name, self._wired(name, options.repository, name), servers.triton
            elif name == FLAT and options.flat_repository:
                flat = self._wired(FLAT, options.flat_repository, self.flat_topology)
                yield name, flat, servers.triton
            elif name == FASTAPI:
                yield name, options.repository, servers.fastapi

    def _wired(self, name: str, source: Path, topology: Any) -> Path:
        """The release in that topology, linked rather than copied."""
        target: Path = self.options.out / "repositories" / name
        shutil.rmtree(target, ignore_errors=True)
        instances = self.options.instances or default_instances(topology)
        release = serving_of(self.options.repository)
        rewire(source, target, replace(release, topology=topology, instances=instances))
        return target

    def _in_process(self) -> Iterator[Contender]:
        if BOUND in self.plan.names:
            for batch in self.plan.batches:
                yield Contender(BOUND, "in-process", self.options.repository, batch=batch)
        if PLAIN_BOUND in self.plan.names and self.options.plain_repository:
            yield Contender(PLAIN_BOUND, "in-process", self.options.plain_repository)

    def closed(self, contenders: Sequence[Contender]) -> None:
        """All rounds of the closed loops, and of the runs in process."""
        for contender in contenders:
            if contender.protocol == "http":  # warm up: pages, caches and batch sizes
                self._http(contender, Load("concurrency", 8), 0)
        for number in range(self.plan.rounds):
            for contender in _rotated([*self._in_process()], number):
                self._measure(contender, Load("concurrency", cores()), number)
            for turn, concurrency in enumerate(self.plan.concurrency):
                for contender in _rotated(contenders, number + turn):
                    self._measure(contender, Load("concurrency", concurrency), number)

    def open(self, contenders: Sequence[Contender]) -> None:
        """All rounds of the open loops, at shares of each one's most."""
        runs = compare_report.frame(self.lines)
        over_http = [contender for contender in contenders if contender.protocol == "http"]
        for number in range(self.plan.rounds):
            for turn, share in enumerate(self.plan.shares):
                for contender in _rotated(over_http, number + turn):
                    most = compare_report.most(runs, contender.name, "http")
                    if most == most:  # no NaN: it has answered
                        rate = Load("rate", round(share * most, 1))
                        self._measure(contender, rate, number, share)

    def _measure(
        self, contender: Contender, how: Load, number: int, share: float | None = None
    ) -> None:
        kinds = {"http": self._http, "grpc": self._grpc, "in-process": self._alone}
        measured, seen = kinds[contender.protocol](contender, how, number)
        self._known[contender.name] = measured.throughput or FIRST_GUESS
        topology = self.flat_topology if contender.name == FLAT else contender.name
        line = {
            **{"contender": contender.name, "protocol": contender.protocol, "share": share},
            **{"topology": topology if topology in TOPOLOGIES else "", "round": number},
            **{"sent": measured.requests, "late": 0, "generator_us": None},
            **measured.to_dict(),
            **seen,
        }
        self.lines.append(line)
        batch = f", batch {contender.batch}" if contender.batch > 1 else ""
        name = f"{contender.name} {contender.protocol}{batch}, {how}"
        say(f"[{number + 1}/{self.plan.rounds}] {name}: {measured}")

    def _alone(self, contender: Contender, how: Load, number: int) -> Seen:
        users, seconds = self.users, self.plan.seconds
        job = Job(open_pipeline, contender.repository, users, contender.batch, seconds)
        return in_process.measure(job, int(how.value)), {}

    def _http(self, contender: Contender, how: Load, number: int) -> Seen:
        assert contender.endpoint is not None
        plan = load.Plan(how.mode, how.value, self.plan.seconds, first=number * 997, seed=number)
        trace = load.run(contender.endpoint.address, self._requests[contender.name], plan)
        late = {"sent": len(trace.sent_ns), "late": trace.late()}
        return summarise(trace, how, contender.name), {**late, "generator_us": trace.cpu_us}

    def _grpc(self, contender: Contender, how: Load, number: int) -> Seen:
        assert contender.endpoint is not None
        # The spread shows over the rounds: three windows that make up the length are enough.
        rate = self._known.get(contender.name, FIRST_GUESS)
        window = max(FEWEST_REQUESTS, int(rate * self.plan.seconds / analyzer.COUNTED_WINDOWS))
        effort = Effort(window, analyzer.ANY_SPREAD_PERCENT, analyzer.COUNTED_WINDOWS)
        target = analyzer.Target(str(contender.endpoint.grpc), self.work / "users.json")
        return analyzer.measure(target, how, effort), {}


def _rotated(contenders: Sequence[Contender], by: int) -> list[Contender]:
    by %= max(1, len(contenders))
    return [*contenders[by:], *contenders[:by]]


def main(arguments: list[str] | None = None) -> None:
    """Compare, print, and write compare.json, the runs and the plots."""
    options = _parser().parse_args(arguments)
    given = {key: getattr(options, key) for key in ("names", "concurrency", "rounds", "seconds")}
    plan = replace(QUICK if options.quick else Plan(), **{k: v for k, v in given.items() if v})
    end_in_order()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="compare-") as work:
        comparison = Comparison(options, plan, Path(work))
        with ExitStack() as stack:
            contenders = comparison.start(stack)
            comparison.closed(contenders)
            comparison.open(contenders)
    figures = key_figures(comparison.lines)
    compare_report.write(comparison.lines, figures, options.out)
    environment = record.environment(
        configuration=comparison.configuration,
        repository=options.repository,
        payload=comparison.users.describe(),
        versions={package: version(package) for package in PACKAGES},
    )
    results = options.results or record.RESULTS / f"{comparison.configuration}.jsonl"
    if options.results or not options.quick:
        record.append(results, environment, {"seconds": plan.seconds, "figures": figures})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m perf.compare", description=__doc__)
    add = parser.add_argument
    add("--repository", type=Path, required=True, help="the release, any topology")
    add("--flat-repository", type=Path, help="the same with flat graphs")
    add("--plain-repository", type=Path, help="the same split, float32, not tuned")
    add("--users", type=Path, help="users.jsonl (default: generated users)")
    add("--out", type=Path, default=Path("build/perf/compare"))
    add("--results", type=Path, help="file of lines (default: by device; none with --quick)")
    add("--contenders", dest="names", nargs="+", choices=NAMES, help="only these")
    add("--concurrency", type=counts, help="comma-separated, such as 1,4,16")
    add("--rounds", type=count)
    add("--seconds", type=float, help="per run")
    add("--instances", type=count, help="processes per model [by the cores here]")
    add("--quick", action="store_true", help="one short round")
    return parser


if __name__ == "__main__":
    run(main)
