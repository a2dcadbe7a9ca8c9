"""`python -m perf.profile --repository DIR`: what a stub's Python is busy with, seen by py-spy.

A fused server is kept busy while py-spy looks at one of its processes; every sample counts for the
innermost part of `PARTS` on its stack. Shares become microseconds of the process per request by the
CPU time that all processes of the server spent. `--model-py` puts another adapter in place of this
one's, so that two can be told apart on the same stages.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from cascade.spec import ENSEMBLE
from export.releases.rewire import rewire, serving_of
from perf import payload, record
from perf.bound import configs
from perf.compare_runs import Contender, Runner
from perf.contenders import servers
from perf.contenders.servers import Endpoint
from perf.measurement import Load
from perf.payload import Features
from perf.table import table
from perf.trace import write_requests

STUB = "triton_python_backend_stub"
SAMPLES_PER_S = 500
PARTS = {
    "onnx_graph.py": "graphs",
    "search.py": "index search",
    "encoding.py": "encoding",
    "stages.py": "stages: sorting, checks",
    "runtime.py": "stages: sorting, checks",
    "triton.py": "adapter",
    "model.py": "adapter",
    "triton_python_backend_utils.py": "Triton's tensors",
}


def parts(lines: Iterable[str]) -> Counter[str]:
    """py-spy's raw format, `frame (file:line);frame (file:line) count`, outermost first -> samples
    by part; what is in none of them is `other`."""
    found: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        if not stack:
            continue
        files = [frame.rpartition("(")[2].split(":")[0] for frame in stack.split(";")]
        known = (PARTS[Path(f).name] for f in reversed(files) if Path(f).name in PARTS)
        found[next(known, "other")] += int(count)
    return found


def profile(repository: Path, users: payload.Payload, args: argparse.Namespace) -> dict[str, Any]:
    """Keep the server busy, sample, and count.

    Raises:
        SystemExit: py-spy did not run.
    """
    with tempfile.TemporaryDirectory(prefix="profile-") as folder, servers.triton(repository) as at:
        requests = Path(folder) / "requests.npz"
        write_requests(requests, at.wire.requests(users))
        contender = Contender("fused", "http", repository, at, requests)
        runner = Runner(users, args.seconds + 2)
        runner.warm_up(contender)
        raw = Path(folder) / "raw"
        looking = subprocess.Popen(_py_spy(_stub(at), raw, args.seconds))
        run = runner.run(contender, Load("concurrency", args.concurrency), 0)
        if looking.wait():
            raise SystemExit("py-spy could not look into the server's process: see above")
        samples = parts(raw.read_text().splitlines())
    per_request_us = 1e6 * run.cores_busy[STUB] / run.measurement.throughput
    total = sum(samples.values())
    return {
        "label": args.label,
        "samples": total,
        "throughput": round(run.measurement.throughput, 1),
        "parts_us": {k: round(per_request_us * n / total, 1) for k, n in samples.most_common()},
    }


def _stub(at: Endpoint) -> int:
    """The process that is asked first."""
    members = psutil.Process(at.pid).children(recursive=True)
    stubs = [member for member in members if member.name() == STUB[:15] or member.name() == STUB]
    return max(stubs, key=lambda member: sum(member.cpu_times()[:2])).pid


def _py_spy(pid: int, raw: Path, seconds: float) -> list[str]:
    program = str(Path(sys.executable).parent / "py-spy")
    words = ["record", "--pid", str(pid), "--duration", f"{seconds:.0f}", "--full-filenames"]
    return [program, *words, "--rate", str(SAMPLES_PER_S), "--format", "raw", "--output", str(raw)]


def main() -> None:
    """The command line: prints a table and appends a line to the results."""
    parser = argparse.ArgumentParser(prog="python -m perf.profile", description=__doc__)
    parser.add_argument("--repository", type=Path, required=True, help="exported model repository")
    parser.add_argument("--users", type=Path, help="users.jsonl [generated users]")
    parser.add_argument("--model-py", type=Path, help="adapter to put in place of the release's")
    parser.add_argument("--label", default="adapter", help="of the line [%(default)s]")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--concurrency", type=float, default=16)
    parser.add_argument("--results", type=Path, default=record.RESULTS / "profile-cpu.jsonl")
    args = parser.parse_args()
    features = Features.of(configs(args.repository)[0])
    users = payload.load(args.users, features) if args.users else payload.generated(features, 4096)
    with tempfile.TemporaryDirectory(prefix=".profile-", dir=args.repository.parent) as folder:
        repository = Path(folder).resolve()
        rewire(args.repository, repository, replace(serving_of(args.repository), topology="fused"))
        if args.model_py:
            (model_py,) = (repository / ENSEMBLE).glob("*/model.py")
            model_py.write_text(args.model_py.read_text())
        found = profile(repository, users, args)
    environment = record.environment(
        configuration="profile-cpu",
        repository=args.repository,
        payload=users.describe(),
        versions={},
    )
    with args.results.open("a") as file:
        file.write(json.dumps({"time": record.now(), **environment, **found}) + "\n")
    rows = [[part, f"{us:.0f}"] for part, us in found["parts_us"].items()]
    print(table([f"{found['label']}, {found['throughput']:.0f} requests/s", "µs a request"], rows))


if __name__ == "__main__":
    main()
