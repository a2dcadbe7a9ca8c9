"""What the tests share: drawn cascades, exported, and one server."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from cascade import pbtxt
from cascade.config import Serving
from cascade.server.launcher import Server
from tests.cascades import BAGS, Cascade, Plan, export_cascade
from tests.made_once import made_once, traces

gc.set_threshold(100_000, 50, 50)  # a tracer makes millions of objects that stay


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run, for all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(autouse=True)
def one_core() -> None:
    """A cascade that was loaded in this process leaves its number of threads behind, and processes
    that share two cores lose time with more than one each."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def graphs_are_traced_once(shared: Path) -> Iterator[None]:
    """Graphs are kept for all processes."""
    with traces(shared / "graphs"):
        yield


@pytest.fixture(scope="session")
def make_cascade(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Callable[..., Cascade]:
    """Draws and exports a cascade; takes the arguments of `Plan`, returns a copy of its own.

    An export takes seconds, so that of each plan is made once for all processes of pytest-xdist.
    With `fresh=True` it is made anew, for tests that change how the exporter works.
    """

    def make(*, fresh: bool = False, **options: Any) -> Cascade:
        plan, folder = Plan(**options), tmp_path_factory.mktemp("cascade")
        if fresh:
            return export_cascade(plan, folder)
        with made_once(shared / "exports", repr(plan).encode()) as kept:
            described = kept.with_suffix(".pickle")
            if not described.exists():
                shutil.rmtree(kept, ignore_errors=True)
                kept.mkdir()
                described.write_bytes(pickle.dumps(export_cascade(plan, kept)))
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        made: Cascade = pickle.loads(described.read_bytes())
        return replace(made, checkpoints=folder / "checkpoints", repository=folder / "repository")

    return make


@pytest.fixture(scope="session")
def criteo(make_cascade: Callable[..., Cascade]) -> Cascade:
    """The cascade that most tests look at: Criteo's features, 1500 items."""
    return make_cascade()


@pytest.fixture(scope="session")
def criteo_server(criteo: Cascade) -> Iterator[Server]:
    """A server that many tests share: no test may change what it serves."""
    with Server(criteo.repository) as server:
        yield server


@pytest.fixture(scope="session")
def seven(make_cascade: Callable[..., Cascade]) -> Cascade:
    """Seven items, fewer than one answer holds; a user of every kind of feature."""
    return make_cascade(schema=BAGS, items=7, serving=Serving(max_batch_size=4))


@pytest.fixture(scope="session")
def patient_server(seven: Cascade) -> Iterator[Server]:
    """Serves `seven`; waits long enough for a batch to fill that a test can decide what shares
    one: four users go at once, fewer after a while."""
    for stage in ("retrieve", "prerank"):
        path = seven.repository / stage / "config.pbtxt"
        stage_config = pbtxt.read(path)
        stage_config.dynamic_batching.max_queue_delay_microseconds = 300_000
        pbtxt.save(stage_config, path)
    # A request that server 2.51 drops counts as under way until the end: do not wait for it.
    with Server(seven.repository, exit_timeout_s=1) as server:
        yield server


def _assert_same_answers(got: tuple[Any, Any], expected: tuple[Any, Any], slack: float) -> None:
    """Two answers (item_ids [B, R], scores [B, R]) to the same users, scores best first."""
    (got_ids, got_scores), (ids, scores) = got, expected
    assert got_ids.shape == ids.shape
    np.testing.assert_allclose(got_scores, scores, rtol=0, atol=slack)
    np.testing.assert_array_equal(got_ids < 0, ids < 0)
    for row, real in enumerate(ids >= 0):
        found = dict(zip(got_ids[row][real], got_scores[row][real], strict=True))
        wanted = dict(zip(ids[row][real], scores[row][real], strict=True))
        assert len(found) == real.sum(), "an item comes twice"
        for item, score in found.items():
            # An item that is not wanted may stand in for its equal at the end of the list.
            assert abs(score - wanted.get(item, min(wanted.values()))) <= slack


@pytest.fixture(scope="session")
def assert_same_answers() -> Callable[..., None]:
    """Compares two answers to the same users; items of equal score may change places."""

    def check(got: Any, expected: Any, slack: float = 1e-5) -> None:
        _assert_same_answers(got, expected, slack)

    return check
