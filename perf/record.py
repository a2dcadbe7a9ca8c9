"""The lines of perf/results: one JSON object per run, only ever appended.

A figure without its circumstances cannot be compared with anything, so each line carries commit,
configuration, hardware and versions beside it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cascade.errors import CascadeError
from perf.measurement import Measurement

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "perf" / "results"
# What a run of this package writes itself does not make the measured code another.
OWN_OUTPUT = (":!perf/results", ":!perf/report.md", ":!perf/plots")
PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "faiss-cpu", "faiss-gpu", "torch")


class RecordError(CascadeError, ValueError):
    """A file of results that cannot be read."""


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def environment(
    *,
    configuration: str,
    repository: Path | None,
    payload: Mapping[str, Any],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """What all lines of one sweep share.

    Args:
        configuration: what is compared with what in the report, such as `ensemble-cpu`.
        repository: the model repository, if it is known here.
        payload: `Payload.describe()`.
        versions: of programs that are not Python packages, by name.
    """
    return {
        "sweep": now(),
        "configuration": configuration,
        **commit(ROOT),
        "config_hash": None if repository is None else config_hash(repository),
        "hardware": hardware(),
        "versions": {**package_versions(), **versions},
        "payload": dict(payload),
    }


def append(path: Path, environment: Mapping[str, Any], measurement: Measurement) -> dict[str, Any]:
    """Add one line to a file of results, and return it."""
    line = {
        "time": now(),
        **environment,
        # Other work on the machine shows in every latency; this lets a reader suspect it.
        "load_average": round(os.getloadavg()[0], 2),
        **measurement.to_dict(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")
    return line


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
        if not isinstance(line, dict) or "configuration" not in line:
            raise RecordError(f"{path}, line {number}: not a measurement of `python -m perf`")
        lines.append(line)
    return lines


def commit(folder: Path) -> dict[str, Any]:
    """`commit` and `dirty` of a checkout; both null where it is none (a wheel, a container)."""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--", ".", *OWN_OUTPUT)
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": head, "dirty": bool(changed)}


def _git(folder: Path, *arguments: str) -> str:
    ran = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return ran.stdout.strip()


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
        ran = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # no driver, no GPU
    names = ran.stdout.strip().splitlines()
    return " + ".join(names) or None


def package_versions() -> dict[str, str]:
    """Python and those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # one flavour of ONNX Runtime and FAISS is enough
    return found
