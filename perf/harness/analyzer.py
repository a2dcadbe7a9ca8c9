"""One run of perf_analyzer -> one `Measurement`. For runs of your own,

    eval "$(python -m perf.harness.analyzer --env)"

puts perf_analyzer on PATH of a shell, with its libraries, and no proxy between it and this machine.

The figures come from its profile export, the times of every request in nanoseconds; as its own
summary, they count the requests that ended in the last three windows. The stages' times come from
the server's statistics. perf_analyzer comes with the SDK container or `tritonclient==2.51.0`, whose
binary borrows two libraries of the server's wheel. What version 2.51 does, as tried:

- It gives up with exit code 2 when the windows do not agree, and then writes neither CSV nor
  profile export. So any windows agree for it, and `summarise` says whether they do.
- A single failed request ends it with exit code 99. The record then has the message, no latency.
- It refuses to overwrite a profile export.
- With a number of requests to send, it has been seen to wait for ever after the last answer.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc

from cascade import errors
from cascade.client import channel
from cascade.errors import CascadeError
from cascade.server.binaries import LIBRARIES, WHEEL, BinaryError, loader_environment, wheel_package
from cascade.server.cleanup import run_folder
from cascade.spec import ENSEMBLE
from perf.harness.measurement import OK, Load, Measurement, StageTimes, Trace, summarise

WINDOWS, ANY_SPREAD_PERCENT = 3, 1_000_000
# Threads that send at the Poisson times. With few, one is still busy sending when the next request
# is due: in a trial on two busy cores one thread sent a fifth of 1200 requests/s late, 16 none.
RATE_THREADS = 16
TIMEOUT_S, CHECK_S = 900, 60
WARM_UP_S, WARM_UPS, WARM_UP_REQUESTS = 60, 2, 200  # seconds each, tries, requests of a try
TIMES = {"queue": "queue", **{n: f"compute_{n}" for n in ("input", "infer", "output")}}
NEEDED = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
Counters = Mapping[str, int]
Ran = subprocess.CompletedProcess[str]


class AnalyzerError(CascadeError):
    """perf_analyzer did something that says nothing about the server's performance."""


@dataclass(frozen=True)
class Target:
    """What is measured: a model of a server, and the file of its requests."""

    url: str
    input_data: Path
    model: str = ENSEMBLE
    batch: int = 1

    def arguments(self) -> list[str]:
        return [
            *("-m", self.model, "-i", "grpc", "-u", self.url, "-b", str(self.batch)),
            *("--input-data", str(self.input_data)),
        ]


def perf_analyzer() -> tuple[Path, dict[str, str]]:
    """The load generator and the environment to run it in. Raises BinaryError where none starts."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which("perf_analyzer", path=beside) or shutil.which("perf_analyzer")
    if found is None:
        raise BinaryError(
            "no perf_analyzer on PATH or beside this Python. Install the client that carries it "
            "(pip install 'tritonclient[grpc]==2.51.0'; later ones do not) or run inside the "
            "Triton SDK container."
        )
    environment = loader_environment(_libraries())
    ran = _ended([found, "--version"], environment, CHECK_S)
    if ran.returncode != 0:
        reason = (ran.stderr or ran.stdout).strip() or f"it ended with {ran.returncode}"
        raise BinaryError(
            f"{found} does not start: {reason}. It needs glibc 2.34 and the libraries of {WHEEL} "
            f"(pip install '{WHEEL}==0.7.0'), or the Triton SDK container."
        )
    return Path(found), environment


def _libraries() -> tuple[Path, ...]:
    """A folder with the wheel's libraries under the names that perf_analyzer asks for."""
    package = wheel_package()
    if package is None:
        return ()  # the SDK container has them
    folder = run_folder() / f"perf_analyzer_{sha256(str(package).encode()).hexdigest()[:16]}"
    folder.mkdir(exist_ok=True)
    for name, pattern in NEEDED.items():
        for library in (package.parent / LIBRARIES).glob(pattern):
            with suppress(FileExistsError):
                (folder / name).symlink_to(library)
    return (folder,)


def _ended(words: list[str], env: dict[str, str], timeout: float) -> Ran:
    return subprocess.run(
        words, env=env, timeout=timeout, capture_output=True, text=True, errors="replace"
    )


def run(arguments: list[str], timeout_s: float = TIMEOUT_S) -> Ran:
    """Run perf_analyzer. Raises BinaryError or subprocess.TimeoutExpired."""
    path, environment = perf_analyzer()
    return _ended([str(path), *arguments], environment, timeout_s)


def version() -> str:
    """Of perf_analyzer."""
    ran = run(["--version"])
    found = re.search(r"\d+\.\d+\.\d+", ran.stdout + ran.stderr)
    return found[0] if found else "unknown"


def members(model: Any) -> tuple[str, ...]:
    """Models that an ensemble's ModelConfig chains, in order; the model itself if it is none."""
    return tuple(step.model_name for step in model.ensemble_scheduling.step) or (model.name,)


def measure(target: Target, load: Load, window_requests: int) -> Measurement:
    """Put a load on the server and measure it over three windows of so many requests, so that a
    percentile rests on as many at every load. Raises AnalyzerError: perf_analyzer could not be used
    at all (wrong flag, unreadable payload)."""
    with (
        channel.connect(target.url) as client,
        tempfile.TemporaryDirectory(prefix="perf-") as folder,
    ):
        export = Path(folder) / "profile.json"
        steps = members(client.get_model_config(target.model).config)
        before = {model: statistics(client, model) for model in {target.model, *steps}}
        ran = _run(target, load, window_requests, export)
        after = {model: statistics(client, model) for model in before}
        failed = after[target.model]["failed"] - before[target.model]["failed"]
        if ran.returncode == 0:
            # In a rate, too, requests count that ended in time: of none is known when it was due.
            closed = Load("concurrency", 0)
            measured = summarise(read_profile(export), closed, target.model, target.batch)
        elif failed or "Thread [" in ran.stderr + ran.stdout:  # a request's own error, in its words
            error = _complaint(ran)
            measured = Measurement(target.model, target.batch, load, stable=False, error=error)
        else:
            raise AnalyzerError(f"perf_analyzer ended with {ran.returncode}: {_complaint(ran)}")
    return replace(
        measured,
        load=load,
        failed=failed,
        delayed_percent=delayed_percent(ran.stdout + ran.stderr),
        stages={step: stage_times(before[step], after[step]) for step in steps},
    )


def warm_up(target: Target) -> None:
    """Send requests that are not measured, to touch pages and caches. Raises AnalyzerError."""
    flags = ["--concurrency-range", "8", "--request-count", str(WARM_UP_REQUESTS)]
    what = f"{WARM_UP_REQUESTS} requests to {target.model} at {target.url}"
    for _ in range(WARM_UPS):
        try:
            ran = run([*target.arguments(), *flags], WARM_UP_S)
        except subprocess.TimeoutExpired:
            continue
        if ran.returncode:
            raise AnalyzerError(f"the server did not get through {what}: {_complaint(ran)}")
        return
    raise AnalyzerError(f"{what} took perf_analyzer more than {WARM_UP_S} s, {WARM_UPS} times")


def _run(target: Target, load: Load, window_requests: int, export: Path) -> Ran:
    windows = f"--measurement-mode count_windows --measurement-request-count {window_requests}"
    windows += f" -s {ANY_SPREAD_PERCENT} -r {WINDOWS}"
    how = f"--sync --concurrency-range {load.value:.0f}"
    if load.mode == "rate":
        # Synchronous calls would wait for the answer and so hide that a request was sent late.
        how = f"--async --request-rate-range {load.value} --request-distribution poisson"
        how += f" --max-threads {RATE_THREADS}"
    words = [*windows.split(), *how.split(), "--profile-export-file", str(export)]
    return run([*target.arguments(), *words])


def _complaint(ran: Ran) -> str:
    lines = [line.strip() for line in ran.stderr.splitlines() if line.strip()]
    return " ".join(lines[:3])[:500] or f"exit code {ran.returncode}"


def delayed_percent(output: str) -> float:
    """Share of requests that perf_analyzer says it sent late."""
    found = re.search(r"([\d.]+)% of the requests were delayed", output)
    return float(found[1]) if found else 0.0


def read_profile(path: Path) -> Trace:
    """The answered requests of a profile export. Raises AnalyzerError: there is none."""
    # The inputs are repeated in it as raw bytes, length prefixes and all, which are not UTF-8.
    text = path.read_text(errors="replace") if path.exists() else ""
    if not text.strip():
        raise AnalyzerError(
            f"{path.name} is {'empty' if path.exists() else 'missing'}. perf_analyzer cannot write "
            "a request or an answer that holds NaN or infinity: are there fewer items than results?"
        )
    experiment: dict[str, Any] = json.loads(text)["experiments"][0]
    answered = [r for r in experiment["requests"] if r["response_timestamps"]]
    sent = np.array([r["timestamp"] for r in answered], np.int64)
    ended = np.array([r["response_timestamps"][0] for r in answered], np.int64)
    first, *_, last = experiment["window_boundaries"][-WINDOWS - 1 :]
    trace = Trace(sent, sent, ended, np.full(len(sent), OK), first, last)
    if not trace.answered(ended).any():
        raise AnalyzerError(f"{path.name} holds no request that was answered in a window")
    return trace


def statistics(client: grpc.InferenceServerClient, model: str) -> Counters:
    """A model's counters since the server started, summed over its versions; times in ns. The
    ensemble's own entry says nothing about its members' queues, so theirs are read one by one."""
    versions = client.get_inference_statistics(model).model_stats
    stats = [version.inference_stats for version in versions]
    return {
        **{
            "success": sum(s.success.count for s in stats),
            "failed": sum(s.fail.count for s in stats),
        },
        **{n: sum(getattr(s, field).ns for s in stats) for n, field in TIMES.items()},
        "inference": sum(version.inference_count for version in versions),
        "execution": sum(version.execution_count for version in versions),
    }


def stage_times(before: Counters, after: Counters) -> StageTimes:
    """Means per request between two moments; zeros if there was no request."""
    grown = {key: after[key] - before[key] for key in after}
    requests = max(1, grown["success"])
    queue, input_, infer, output = (grown[key] / requests / 1000 for key in TIMES)
    return StageTimes(queue, input_, infer, output, grown["inference"], grown["execution"])


def main(argv: Sequence[str] | None = None) -> None:
    """Print what makes a shell find perf_analyzer. Raises BinaryError where none starts."""
    parser = argparse.ArgumentParser(prog="python -m perf.harness.analyzer")
    parser.add_argument(
        "--env",
        action="store_true",
        required=True,
        help='print what puts perf_analyzer on PATH, with its libraries: for eval "$(...)"',
    )
    parser.parse_args(argv)
    path, environment = perf_analyzer()
    found = {"PATH": os.pathsep.join(filter(None, [str(path.parent), os.environ.get("PATH")]))}
    names = ("LD_LIBRARY_PATH", "no_proxy", "no_grpc_proxy")
    found |= {name: environment[name] for name in names if name in environment}
    for name, value in found.items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    errors.run(main)
