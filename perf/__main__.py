"""`python -m perf`: how fast is a served cascade? Measured by perf_analyzer under rising load.

python -m perf --repository model_repository --users users.jsonl     # starts the server itself
python -m perf --url 127.0.0.1:8001 --users users.jsonl              # one that runs already
python -m perf --repository model_repository --quick                 # a first impression
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from tritonclient.utils import InferenceServerException

from cascade.client import channel
from cascade.client.layout import Layout
from cascade.errors import run
from cascade.files import file_name
from cascade.pbtxt import settings
from cascade.server.launcher import Server
from cascade.spec import ENSEMBLE
from clients.options import positive
from perf.harness import analyzer, payload, record
from perf.harness.analyzer import AnalyzerError, Target
from perf.harness.commands import counts, end_in_order, say
from perf.harness.measurement import Load, Measurement
from perf.harness.table import latency_table


@dataclass(frozen=True)
class Sweep:
    """What a sweep measures, one run each: requests in flight, and at Poisson times shares of the
    highest throughput that these found. Nearer to 1 the queue, and every figure, grows without end.
    """

    concurrencies: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    rate_shares: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)
    window_requests: int = 2000

    def __len__(self) -> int:
        return len(self.concurrencies) + len(self.rate_shares)


QUICK = Sweep(concurrencies=(1, 4, 16), rate_shares=(), window_requests=300)


def sweep(
    url: str,
    *,
    plan: Sweep = Sweep(),
    users: Path | None = None,
    results: Path | None = None,
    repository: Path | None = None,
    model: str = ENSEMBLE,
    batch: int = 1,
    say: Callable[[str], None] = print,
) -> list[Measurement]:
    """Measure a running server, HOST:PORT of its gRPC service, and record a line per run.

    Args:
        users: users.jsonl; without it users are generated.
        results: file of the lines; by default perf/results/CONFIGURATION.jsonl.
        repository: where the server's models are, for the hash of their configuration.
        model, batch: what to ask, for how many users per request.

    Raises PayloadError: users do not fit the model; AnalyzerError or BinaryError: of perf_analyzer.
    """
    with channel.connect(url) as client, tempfile.TemporaryDirectory() as folder:
        ensemble = client.get_model_config(model).config
        rows = payload.users(users, Layout.from_config(ensemble))
        models = [client.get_model_config(step).config for step in analyzer.members(ensemble)]
        server = client.get_server_metadata().version
        versions = {"server": server, "perf_analyzer": analyzer.version()}
        processes = (settings(m).serving for m in models if m.parameters)
        kind = "ensemble" if model == ENSEMBLE else model
        name = record.configuration_name(kind, processes)
        name = f"{name}-quick" if plan.window_requests == QUICK.window_requests else name
        environment = record.environment(
            configuration=name, repository=repository, payload=rows.describe(), versions=versions
        )
        results = results or record.RESULTS / file_name(name, ".jsonl")
        say(f"{name}: {len(plan)} runs with {len(rows)} users, recorded in {results}")
        if len(rows) < payload.FEW_USERS:
            say(f"only {len(rows)} different users: the caches will flatter the server")
        target = Target(url, Path(folder) / "users.json", model, batch)
        rows.write(target.input_data)
        analyzer.warm_up(target)
        done, started = list[Measurement](), time.monotonic()

        def ask(load: Load) -> None:
            say(f"[{len(done) + 1}/{len(plan)}] {load} …")
            done.append(analyzer.measure(target, load, plan.window_requests))
            line = {"window_requests": plan.window_requests, **done[-1].to_dict()}
            record.append(results, environment, line)
            left_s = (time.monotonic() - started) / len(done) * (len(plan) - len(done))
            say(f"    {done[-1]}" + (f"; about {left_s:.0f} s left" if left_s else ""))

        for concurrency in plan.concurrencies:
            ask(Load("concurrency", concurrency))
        highest = highest_throughput(done) / batch if plan.rate_shares else 0
        for share in plan.rate_shares:
            ask(Load("rate", round(share * highest, 1)))
        return done


def highest_throughput(measurements: Sequence[Measurement]) -> float:
    """Users per second at the best concurrency, of stable runs if any. Raises AnalyzerError."""
    runs = [m for m in measurements if m.error is None]
    if not runs:
        what = "rates are shares of the highest throughput, but no run gave one"
        errors = "; ".join(m.error for m in measurements if m.error) or "none was made"
        raise AnalyzerError(f"{what}: {errors}")
    return max(m.throughput for m in [m for m in runs if m.stable] or runs)


def main(arguments: list[str] | None = None) -> int:
    """Run a sweep. 1 when a request failed or there is nothing to measure."""
    parser = argparse.ArgumentParser(prog="python -m perf", description=__doc__)
    add = parser.add_argument
    add("--repository", type=Path, help="model repository to start a server on")
    add("--url", help="HOST:PORT of the gRPC service of a running server")
    add("--users", type=Path, help="users.jsonl (default: generated users)")
    add("--results", type=Path, help="file of lines (default: by configuration)")
    add("--model", default=ENSEMBLE, help="model to ask (default: %(default)s)")
    add("--batch", type=positive, default=1, help="users per request (default: 1)")
    add("--quick", action="store_true", help="few short runs")
    add("--concurrency", type=counts, help="comma-separated, such as 1,4,16")
    options = parser.parse_args(arguments)
    if options.repository is None and options.url is None:
        parser.error("give --repository to start a server or --url of a running one")
    if options.repository is not None and not options.repository.is_dir():
        parser.error(f"--repository {options.repository} is not a folder")
    plan = QUICK if options.quick else Sweep()
    if options.concurrency:
        plan = replace(plan, concurrencies=options.concurrency)
    end_in_order()
    names = ("users", "results", "repository", "model", "batch")
    given = {name: getattr(options, name) for name in names}
    with ExitStack() as stack:
        url = options.url
        if url is None:
            say(f"starting tritonserver on {options.repository}")
            url = stack.enter_context(Server(options.repository, probe=options.model)).url
        try:
            measurements = sweep(url, plan=plan, say=say, **given)
        except InferenceServerException as error:
            raise AnalyzerError(f"the server at {url} does not answer: {error}") from error
    print(latency_table([measurement.to_dict() for measurement in measurements]))
    return 1 if any(measurement.error for measurement in measurements) else 0


if __name__ == "__main__":
    run(main, to_end=True)
