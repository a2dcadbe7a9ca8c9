"""`python -m perf`: measure a served cascade.

python -m perf --repository model_repository --users users.jsonl     # starts the server itself
python -m perf --url 127.0.0.1:8001 --users users.jsonl              # one that runs already
python -m perf --repository model_repository --quick                 # a first impression
"""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType

from tritonclient.utils import InferenceServerException

from cascade.server.binaries import BinaryError
from cascade.server.launcher import Server, ServerError
from perf.analyzer import AnalyzerError
from perf.payload import PayloadError
from perf.sweep import QUICK_PLAN, Plan, sweep
from perf.table import latency_table

EXPECTED = (AnalyzerError, BinaryError, PayloadError, ServerError, InferenceServerException)


def main(arguments: list[str] | None = None) -> int:
    """Run a sweep. 0 when every request was answered, 1 when some failed, 2 when there is
    nothing to measure."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.repository is None and options.url is None:
        parser.error("give --repository to start a server or --url of a running one")
    if options.repository is not None and not options.repository.is_dir():
        parser.error(f"--repository {options.repository} is not a folder")
    signal.signal(signal.SIGTERM, _end)
    try:
        with ExitStack() as stack:
            url = options.url
            if url is None:
                _say(f"starting tritonserver on {options.repository}")
                url = stack.enter_context(Server(options.repository, probe=options.model)).url
            measurements = sweep(
                url,
                plan=_plan(options),
                users=options.users,
                results=options.results,
                repository=options.repository,
                configuration=options.configuration,
                model=options.model,
                batch=options.batch,
                say=_say,
            )
    except EXPECTED as error:
        print(f"perf: {error}", file=sys.stderr)
        return 2
    print(latency_table(measurement.to_dict() for measurement in measurements))
    return 1 if any(measurement.error for measurement in measurements) else 0


def _end(number: int, frame: FrameType | None) -> None:
    """End the `with` blocks, and so the server; a second signal must not interrupt that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


def _plan(options: argparse.Namespace) -> Plan:
    plan = QUICK_PLAN if options.quick else Plan()
    if options.concurrency is not None:
        plan = replace(plan, concurrencies=options.concurrency)
    if options.rates is not None:
        plan = replace(plan, rates=options.rates, rate_shares=())
    return plan


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m perf",
        description="Measure latency and throughput of a served cascade with perf_analyzer.",
    )
    server = parser.add_argument_group("server (give at least one)")
    server.add_argument("--repository", type=Path, help="model repository to start a server on")
    server.add_argument("--url", help="HOST:PORT of the gRPC service of a running server")
    parser.add_argument("--users", type=Path, help="users.jsonl (default: generated users)")
    parser.add_argument(
        "--results", type=Path, help="file to append to (default: by configuration)"
    )
    parser.add_argument("--configuration", help="name in the report (default: read off the server)")
    parser.add_argument("--model", default="recommend", help="model to ask (default: %(default)s)")
    parser.add_argument("--batch", type=_count, default=1, help="users per request (default: 1)")
    parser.add_argument("--quick", action="store_true", help="few short runs")
    parser.add_argument("--concurrency", type=_counts, help="comma-separated, such as 1,4,16")
    parser.add_argument("--rates", type=_rates, help="requests/s, instead of shares of the maximum")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in text.split(","))


def _rates(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    if min(values) <= 0:
        raise argparse.ArgumentTypeError("a rate must be above 0")
    return values


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
