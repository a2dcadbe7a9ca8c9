"""How many compute threads each Python process of a repository gets. Left alone, the numerical
libraries of every process (one per instance) start a thread per core, which wait for each other.
"""

from __future__ import annotations

import os
from pathlib import Path

from cascade import pbtxt
from cascade.spec import TOPOLOGIES, Topology


def cores() -> int:
    """Cores that this process may use; fewer than the machine's under taskset or in a cpuset."""
    return len(os.sched_getaffinity(0))


def default_instances(topology: Topology) -> int:
    """The default number of processes of each model: in all, one per core, each with one thread,
    because the thread pools of ONNX Runtime and of FAISS in one process take each other's cores."""
    return max(1, cores() // len(TOPOLOGIES[topology]))


def instances(repository: Path) -> int:
    """How many Python processes the models of a repository start together. Raises ArtifactError."""
    total = 0
    for path in sorted(repository.glob("*/config.pbtxt")):
        config = pbtxt.read(path)
        if config.backend == "python":
            groups = [max(1, g.count) * max(1, len(g.gpus)) for g in config.instance_group]
            total += sum(groups) or 1
    return total


def threads_per_process(repository: Path) -> int:
    """Compute threads for each Python process: the cores shared out, at least one each."""
    return max(1, cores() // max(1, instances(repository)))
