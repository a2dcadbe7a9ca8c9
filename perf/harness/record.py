"""The files of perf/results: one JSON object per line, the newest of every configuration and
machine, with commit, configuration, hardware and versions beside the figures.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from operator import itemgetter
from pathlib import Path
from typing import Any

import psutil

from cascade.config import Serving
from cascade.errors import CascadeError
from cascade.files import replace_text

Line = Mapping[str, Any]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "perf" / "results"
# A run's own output is no change of the measured code.
OWN_OUTPUT = (":!perf/results", ":!perf/report.md", ":!perf/plots")
PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "faiss-cpu", "faiss-gpu", "torch")


class RecordError(CascadeError):
    """A file of results that cannot be read."""


def configuration_name(kind: str, processes: Iterable[Serving]) -> str:
    """How processes with these settings run: `ensemble-cpu`, `ensemble-cuda-torchscript`, ..."""
    found = list(processes)
    device = "cuda" if any(serving.device == "cuda" for serving in found) else "cpu"
    return "-".join([kind, device, *sorted({serving.runtime for serving in found} - {"onnx"})])


def environment(
    *,
    configuration: str,
    repository: Path | None = None,
    payload: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What all lines of one run have in common: a configuration such as `ensemble-cpu`, the model
    repository, `Payload.describe()`, and versions of what is not in `PACKAGES`."""
    return {
        "sweep": datetime.now(timezone.utc).isoformat(),  # identifies the run
        "configuration": configuration,
        **commit(ROOT),
        "config_hash": None if repository is None else config_hash(repository),
        "hardware": hardware(),
        "versions": {**_versions(), **(versions or {})},
        "payload": dict(payload or {}),
    }


def append(path: Path, environment: Line, *values: Line) -> list[dict[str, Any]]:
    """Add a line for each of `values` to a file of results, prune it, and return the new lines."""
    # Other work on the machine shows in every latency; the load average lets a reader suspect it.
    moment = datetime.now(timezone.utc).isoformat(timespec="seconds")
    now = {"time": moment, "load_average": round(os.getloadavg()[0], 2)}
    lines = [{**now, **environment, **value} for value in values]
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = newest([*(read(path) if path.exists() else []), *lines])
    replace_text(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in kept))
    return lines


def newest(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every configuration, batch size and machine the lines of its last run."""

    def identity(line: Line) -> str:
        return json.dumps([line["configuration"], line.get("hardware"), line.get("batch")])

    last = {identity(line): line["sweep"] for line in sorted(lines, key=itemgetter("sweep"))}
    return [line for line in lines if line["sweep"] == last[identity(line)]]


def read(path: Path) -> list[dict[str, Any]]:
    """All lines of one file, oldest first. Raises RecordError: says which is not a record."""
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise RecordError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(line, dict) or not {"configuration", "sweep"} <= line.keys():
            raise RecordError(f"{path}, line {number}: not a measurement of `perf`")
        lines.append(line)
    return lines


def commit(folder: Path) -> dict[str, Any]:
    """`commit` and `dirty` of a checkout; both null where there is none (a wheel, a container)."""
    head = _said("git", "-C", folder, "rev-parse", "HEAD")
    changed = _said("git", "-C", folder, "status", "--porcelain", "--", ".", *OWN_OUTPUT)
    return {"commit": head, "dirty": None if head is None else bool(changed)}


def _said(*command: str | Path) -> str | None:
    """The output of a program; None where there is no such program, or it fails."""
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return None


def config_hash(repository: Path) -> str:
    """Identifies how the server was configured: names and contents of all config.pbtxt."""
    sha = hashlib.sha256()
    for path in sorted(repository.glob("*/config.pbtxt")):
        sha.update(path.parent.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return sha.hexdigest()


def hardware() -> dict[str, Any]:
    """CPU model, cores that this process may use, memory, and the name of the GPU or null."""
    cpu = re.search(r"(?m)^model name\s*:\s*(.*\S)", Path("/proc/cpuinfo").read_text())
    gpus = _said("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or ""
    return {
        "cpu": cpu[1] if cpu else platform.machine(),  # ARM kernels give no model name
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": " + ".join(gpus.splitlines()) or None,
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
