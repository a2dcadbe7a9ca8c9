"""The files of perf/results: one JSON object per line, the newest of every configuration.

A figure without its circumstances cannot be compared with anything, so each line carries commit,
configuration, hardware and versions beside it. `append` drops what an earlier run left for the same
configuration and machine: git keeps the history.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cascade.errors import CascadeError

Line = Mapping[str, Any]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "perf" / "results"
# A run's own output is no change of the measured code.
OWN_OUTPUT = (":!perf/results", ":!perf/report.md", ":!perf/plots")
PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "faiss-cpu", "faiss-gpu", "torch")


class RecordError(CascadeError):
    """A file of results that cannot be read."""


def now(precision: str = "seconds") -> str:
    """The time in UTC as ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec=precision)


def environment(
    *,
    configuration: str,
    repository: Path | None = None,
    payload: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What all lines of one run have in common.

    Args:
        configuration: what the line is of, such as `ensemble-cpu`.
        repository: the model repository, if it is known here.
        payload: `Payload.describe()`.
        versions: of programs that are not Python packages, by name.
    """
    return {
        "sweep": now("microseconds"),  # identifies the run
        "configuration": configuration,
        **commit(ROOT),
        "config_hash": None if repository is None else config_hash(repository),
        "hardware": hardware(),
        "versions": {**package_versions(), **(versions or {})},
        "payload": dict(payload or {}),
    }


def append(path: Path, environment: Line, *values: Line) -> list[dict[str, Any]]:
    """Add a line for each of `values` to a file of results, prune it, and return the new lines."""
    # Other work on the machine shows in every latency; the load average lets a reader suspect it.
    moment = {"time": now(), "load_average": round(os.getloadavg()[0], 2)}
    lines = [{**moment, **environment, **value} for value in values]
    path.parent.mkdir(parents=True, exist_ok=True)
    before = read(path) if path.exists() else []
    write(path, newest([*before, *lines]))
    return lines


def newest(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every configuration, batch size and machine the lines of its last run."""
    last: dict[str, str] = {}
    for line in lines:
        key = _identity(line)
        last[key] = max(last.get(key, ""), line["sweep"])
    return [line for line in lines if line["sweep"] == last[_identity(line)]]


def _identity(line: Line) -> str:
    keys = ("configuration", "hardware", "batch")
    return json.dumps({key: line.get(key) for key in keys}, sort_keys=True)


def write(path: Path, lines: Iterable[Line]) -> None:
    """Replace a file of results in one move."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
    temporary.replace(path)


def read(path: Path) -> list[dict[str, Any]]:
    """All lines of one file, oldest first.

    Raises:
        RecordError: a line is not a record; says which.
    """
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
    try:
        head = _said("git", "-C", folder, "rev-parse", "HEAD")
        changed = _said("git", "-C", folder, "status", "--porcelain", "--", ".", *OWN_OUTPUT)
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": head, "dirty": bool(changed)}


def _said(*command: object) -> str:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def config_hash(repository: Path) -> str:
    """Identifies how the server was configured: names and contents of all config.pbtxt."""
    sha = hashlib.sha256()
    for path in sorted(repository.glob("*/config.pbtxt")):
        sha.update(path.parent.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return sha.hexdigest()


def hardware() -> dict[str, Any]:
    """CPU model, cores that this process may use, memory, and the name of the GPU or null."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "gpu": _gpu(),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()  # ARM kernels give no model name


def _gpu() -> str | None:
    try:
        names = _said("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    except (OSError, subprocess.CalledProcessError):
        return None  # no driver, no GPU
    return " + ".join(names.splitlines()) or None


def package_versions() -> dict[str, str]:
    """Python and those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # one flavour of ONNX Runtime and FAISS is enough
    return found
