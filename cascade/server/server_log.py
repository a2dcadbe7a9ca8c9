"""What matters in a log of tritonserver: why it did not start, in the model's own words."""

from __future__ import annotations

import re

LINES = 30
_ENTRY = re.compile(r"^(?P<level>[IWEF])\d{4} \S+ +\d+ \S+\] ?(?P<message>.*)$")
# A server built for GPUs says these on every machine that has none.
_WITHOUT_GPU = re.compile(r"CUDA|CudaDriver|pinned system memory|NVML|DCGM", re.IGNORECASE)


def excerpt(log: str, lines: int = LINES) -> str:
    """The last lines that tell of a problem: warnings, errors, and whatever models or libraries
    printed themselves; without times, tables, repetitions and the talk of absent GPUs.

    Where nothing is left, the last lines as they are.
    """
    kept: dict[str, None] = {}
    for line in log.splitlines():
        if not line.strip() or line[0] in "|+":
            continue
        if line.startswith("Usage: tritonserver"):
            kept["tritonserver does not accept its arguments"] = None
            break  # pages of help follow
        entry = _ENTRY.match(line)
        if entry is None:
            kept[line] = None
        elif entry["level"] != "I" and not _WITHOUT_GPU.search(entry["message"]):
            message = entry["message"].strip('" ').replace("\\n", "\n").strip()
            kept[message] = None
    wanted = "\n".join(kept).splitlines() or log.splitlines()
    return "\n".join(wanted[-lines:]) or "(its log is empty)"
