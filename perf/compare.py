"""`python -m perf.compare`: everything that could serve the same release, in alternation.

All servers run side by side and one at a time is loaded: Triton in each topology, Triton on the
flat export, FastAPI, and the stages in process without a server (`bound`). Within a load they take
turns, in another order each round, so that other work on the machine meets all alike. The closed
loops come first: their highest throughput sets the rates of the open loops. Answers are compared
with the in-process pipeline's before. `perf.compare_report` defines the figures.
"""

from __future__ import annotations

import argparse
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cascade.errors import run
from cascade.server.threads import cores, default_instances
from cascade.spec import TOPOLOGIES
from clients.options import positive
from export.releases.rewire import rewire, serving_of
from perf import compare_report
from perf.compare_report import BOUND, FASTAPI, FLAT, PLAIN_BOUND
from perf.contenders import servers
from perf.harness import in_process, load, payload, record
from perf.harness.commands import end_in_order, say
from perf.harness.in_process import Job, open_pipeline
from perf.harness.measurement import Load, Measurement, summarise

NAMES = (*TOPOLOGIES, FLAT, FASTAPI, BOUND, PLAIN_BOUND)
PACKAGES = ("fastapi", "uvicorn", "uvloop", "httptools", "orjson")
CHECKED_USERS = 16


@dataclass(frozen=True)
class Schedule:
    """What is measured, and for how long."""

    names: tuple[str, ...] = NAMES
    concurrency: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    shares: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)  # of each one's most, for the open loop
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)  # users per call, in process alone
    rounds: int = 3
    seconds: float = 3.0


QUICK = Schedule(concurrency=(1, 4), shares=(0.5,), batches=(1, 4), rounds=1, seconds=0.5)


@dataclass(frozen=True)
class Contender:
    """What is measured: by its name in `NAMES` the address of a server and a request for every
    user, or the repository of stages that are called in process, for `batch` users each."""

    name: str
    address: str = ""
    requests: list[bytes] = field(default_factory=list, repr=False)
    repository: Path = Path()
    batch: int = 1


class Comparison:
    """The contenders, started, and the lines of their runs."""

    def __init__(self, options: argparse.Namespace, plan: Schedule) -> None:
        self.options, self.plan = options, plan
        self.lines: list[dict[str, Any]] = []
        self.users = payload.users(options.users, payload.layout_of(options.repository))
        if len(self.users) < payload.FEW_USERS:
            say(f"only {len(self.users)} different users: the caches will flatter all contenders")
        # The flat export is compared with a topology that is measured.
        self.serving = serving_of(options.repository)
        measured = [name for name in TOPOLOGIES if name in plan.names]
        own = self.serving.topology
        self.topologies: dict[str, Any] = {name: name for name in TOPOLOGIES}
        self.topologies[FLAT] = own if own in measured else (measured or [own])[0]

    def start(self, stack: ExitStack) -> Iterator[Contender]:
        """Start every server and hold its answers against the pipeline's."""
        sources = dict.fromkeys((*TOPOLOGIES, FASTAPI), self.options.repository)
        sources[FLAT] = self.options.flat_repository
        for name in filter(sources.get, self.plan.names):
            say(f"starting {name}")
            repository = sources[name] if name == FASTAPI else self._wired(name, sources[name])
            start = servers.fastapi if name == FASTAPI else servers.triton
            endpoint = stack.enter_context(start(repository))
            servers.check(name, endpoint, open_pipeline(sources[name]), self.users, CHECKED_USERS)
            yield Contender(name, endpoint.address, endpoint.wire.requests(self.users))

    def _wired(self, name: str, source: Path) -> Path:
        """The release in its topology, linked rather than copied."""
        target, topology = self.options.out / "repositories" / name, self.topologies[name]
        shutil.rmtree(target, ignore_errors=True)
        instances = default_instances(topology)
        rewire(source, target, replace(self.serving, topology=topology, instances=instances))
        return Path(target)

    def _in_process(self) -> Iterator[Contender]:
        if BOUND in self.plan.names:
            for batch in self.plan.batches:
                yield Contender(BOUND, repository=self.options.repository, batch=batch)
        if PLAIN_BOUND in self.plan.names and self.options.plain_repository:
            yield Contender(PLAIN_BOUND, repository=self.options.plain_repository)

    def closed(self, contenders: Sequence[Contender]) -> None:
        """All rounds of the closed loops, and of the runs in process."""
        for contender in contenders:  # warm up: pages, caches and batch sizes
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
        for number in range(self.plan.rounds):
            for turn, share in enumerate(self.plan.shares):
                for contender in _rotated(contenders, number + turn):
                    most = compare_report.most(runs, contender.name)
                    if most == most:  # no NaN: it has answered
                        rate = Load("rate", round(share * most, 1))
                        self._measure(contender, rate, number, share)

    def _measure(
        self, contender: Contender, how: Load, number: int, share: float | None = None
    ) -> None:
        """One run, as a line."""
        if contender.address:
            measured, sent = self._http(contender, how, number)
        else:
            users, seconds = self.users, self.plan.seconds
            job = Job(open_pipeline, contender.repository, users, contender.batch, seconds)
            measured = in_process.measure(job, int(how.value))
            sent = {"sent": measured.requests, "late": 0, "generator_us": None}
        line = {"contender": contender.name, "share": share, "round": number}
        line["topology"] = self.topologies.get(contender.name, "")
        self.lines.append({**line, **measured.to_dict(), **sent})
        name = f"{contender.name}, batch {contender.batch}, {how}"
        say(f"[{number + 1}/{self.plan.rounds}] {name}: {measured}")

    def _http(
        self, contender: Contender, how: Load, number: int
    ) -> tuple[Measurement, dict[str, Any]]:
        plan = load.Plan(how.mode, how.value, self.plan.seconds, first=number * 997, seed=number)
        trace = load.run(contender.address, contender.requests, plan)
        sent = {"sent": len(trace.sent_ns), "late": trace.late(), "generator_us": trace.cpu_us}
        return summarise(trace, how, contender.name), sent


def _rotated(contenders: Sequence[Contender], by: int) -> deque[Contender]:
    turned = deque(contenders)
    turned.rotate(-by)
    return turned


def main(arguments: list[str] | None = None) -> None:
    """Compare, print, and write compare.json, the runs and the plots."""
    parser = argparse.ArgumentParser(prog="python -m perf.compare", description=__doc__)
    add = parser.add_argument
    add("--repository", type=Path, required=True, help="the release, any topology")
    add("--flat-repository", type=Path, help="the same with flat graphs")
    add("--plain-repository", type=Path, help="the same split, float32, not tuned")
    add("--users", type=Path, help="users.jsonl (default: generated users)")
    add("--out", type=Path, default=Path("build/perf/compare"))
    add("--results", type=Path, help="file of lines (default: by device; none with --quick)")
    add("--contenders", dest="names", nargs="+", choices=NAMES, help="only these")
    add("--rounds", type=positive)
    add("--seconds", type=float, help="per run")
    add("--quick", action="store_true", help="one short round")
    options = parser.parse_args(arguments)
    given = {key: getattr(options, key) for key in ("names", "rounds", "seconds")}
    plan = replace(QUICK if options.quick else Schedule(), **{k: v for k, v in given.items() if v})
    end_in_order()
    options.out.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(options, plan)
    with ExitStack() as stack:
        contenders = [*comparison.start(stack)]
        comparison.closed(contenders)
        comparison.open(contenders)
    figures = compare_report.write(comparison.lines, options.out)
    environment = record.environment(
        configuration=record.configuration_name("compare", [comparison.serving]),
        repository=options.repository,
        payload=comparison.users.describe(),
        versions={package: version(package) for package in PACKAGES},
    )
    results = options.results or record.RESULTS / f"{environment['configuration']}.jsonl"
    if options.results or not options.quick:
        record.append(results, environment, {"seconds": plan.seconds, "figures": figures})


if __name__ == "__main__":
    run(main, to_end=True)
