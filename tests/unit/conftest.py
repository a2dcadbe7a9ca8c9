"""What unit tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cascade.data import Dataset, prepare

ROOT = Path(__file__).parents[2]
SYNTHETIC = "synthetic:rows=1400,items=300,seed=1"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread: more lose time on models this small, and with it two runs of a training
    add up in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """1200 + 100 + 100 rows of 300 items; nobody may change it."""
    return prepare(SYNTHETIC, tmp_path_factory.mktemp("synthetic") / "prepared")


@pytest.fixture(scope="session")
def child_environment() -> dict[str, str]:
    """For a Python process that a test starts: it finds the sources and runs on one thread."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
