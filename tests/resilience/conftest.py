"""Releases, faults, users and filters under load, on the real server: `make resilience`.

The suite measures, so `make test` leaves it out and its tests run one at a time. What they find
goes to build/resilience/summary.json; a table of claims ends the run.

    make resilience RESILIENCE="--seconds 30"       a longer soak, and more malformed requests
    make resilience RESILIENCE=--thorough           a large catalogue, half an hour of soak
    make resilience RESILIENCE="-k 'soak or users'" some of the cases
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascade.config import Serving
from export.releases.rewire import rewire, serving_of
from perf.harness.artifacts import Artifacts, make
from tests.cascades import BAGS, Cascade
from tests.resilience.claims import Record, keep
from tests.resilience.faults import FaultTable
from tests.resilience.faulty.forked import Forks, forks

OUT = Path(__file__).parents[2] / "build" / "resilience"
SUMMARY, CLAIMS_TABLE = OUT / "summary.json", OUT / "claims.md"
RECORD = pytest.StashKey[Record]()

ITEMS, THOROUGH_ITEMS = 10_000, 1_000_000
SMALL_ITEMS, SMALL_USERS = 5_000, 512
# The suite does not measure what an export tunes.
UNTUNED = ("--untuned", "--index", "ivfsq8", "--users-per-run", "4")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("resilience")
    group.addoption("--thorough", action="store_true", help="a large catalogue, long runs")
    group.addoption(
        "--seconds", type=float, default=20, help="of malformed requests, and of the soak [20]"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None):
        raise pytest.UsageError("tests/resilience measures: run it with -n 0")
    config.stash[RECORD] = Record(config.getoption("--thorough", False))
    config.addinivalue_line("markers", "thorough: a case of --thorough alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.stash[RECORD].thorough:
        for item in items:
            if item.get_closest_marker("thorough"):
                item.add_marker(pytest.mark.skip(reason="takes --thorough"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Count the time of a test, its fixtures included, as its case's: `test_CASE.py` or
    `test_CASE_detail.py`."""
    began = time.monotonic()
    result = yield
    case = item.path.stem.split("_")[1]
    item.config.stash[RECORD].seconds[case] += time.monotonic() - began
    return result


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    record = config.stash[RECORD]
    if not record.figures:
        return
    table = record.write(SUMMARY)
    CLAIMS_TABLE.write_text(table + "\n")
    if record.thorough and record.complete:
        keep(record.summary)
    terminalreporter.section("resilience")
    for each in record.tables:
        terminalreporter.write_line(f"\n{each}")
    terminalreporter.write_line(f"\nsummary ({SUMMARY})\n{table}")


@dataclass(frozen=True)
class Pair:
    """Two small exports of different models for the same requests.

    Args:
        cascades: release n comes from the one at n modulo 2; the users of the first ask both.
        scores: what each answers them in process, [2, users, R].
    """

    cascades: tuple[Cascade, Cascade]
    scores: Any

    def source(self, number: int) -> Path:
        return self.cascades[number % 2].repository


@pytest.fixture(scope="session")
def record(pytestconfig: pytest.Config) -> Record:
    return pytestconfig.stash[RECORD]


@pytest.fixture(scope="session")
def faults(record: Record) -> Iterator[FaultTable]:
    """The faults of all `test_faults_*.py`."""
    table = FaultTable()
    yield table
    record.table(["fault", "what shows it", "lost", "s until right"], table.rows())
    record(**table.figures)


@pytest.fixture(scope="session")
def thorough(record: Record) -> bool:
    return record.thorough


@pytest.fixture(scope="session")
def seconds(pytestconfig: pytest.Config) -> float:
    return float(pytestconfig.getoption("--seconds", 20))


@pytest.fixture(scope="session")
def workplace(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder that stays until the next run where a test failed."""
    folder = OUT / "work"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield folder
    if not request.session.testsfailed:
        shutil.rmtree(folder)


@pytest.fixture
def work(workplace: Path, request: pytest.FixtureRequest) -> Path:
    """A folder of this test."""
    folder = workplace / request.node.name.replace("/", "-")
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def fused(workplace: Path, thorough: bool) -> Artifacts:
    """A cascade of usual size in one process; a thorough run tunes its export."""
    items, how = (THOROUGH_ITEMS, ()) if thorough else (ITEMS, UNTUNED)
    return make(workplace / "fused", items, "criteo", options=how)


@pytest.fixture(scope="session")
def ensemble(fused: Artifacts, workplace: Path) -> Path:
    """The repository of the same cascade in a process per stage."""
    wiring = replace(serving_of(fused.repository), topology="ensemble", instances=1)
    rewire(fused.repository, workplace / "ensemble", wiring)
    return workplace / "ensemble"


@pytest.fixture(scope="session")
def pair(make_cascade: Callable[..., Cascade]) -> Pair:
    """Both drawn and exported in this process."""
    serving = Serving(max_batch_size=8, users_per_run=4)
    size = {"items": SMALL_ITEMS, "users": SMALL_USERS, "serving": serving}
    even, odd = (make_cascade(seed=seed, **size) for seed in range(2))
    scores = np.stack([_scores(cascade, users=even) for cascade in (even, odd)])
    return Pair((even, odd), scores)


@pytest.fixture(scope="session")
def people(make_cascade: Callable[..., Cascade]) -> Cascade:
    """A small catalogue, and users of every kind of feature, bags among them."""
    return make_cascade(schema=BAGS, items=300, serving=Serving(max_batch_size=8))


@pytest.fixture(scope="session")
def forked(workplace: Path) -> Iterator[Forks]:
    """Runs programs at once."""
    folder = workplace / "forked"
    folder.mkdir()
    modules = ("export.commands", "clients.events", "clients.batch", "cascade.server.health")
    with forks(folder, *modules) as ready:
        yield ready


def _scores(cascade: Cascade, users: Cascade) -> Any:
    """What a cascade answers to the users of another one."""
    pipeline = cascade.pipeline()
    batches = (slice(start, start + 8) for start in range(0, SMALL_USERS, 8))
    answers = [pipeline(users.dense[rows], users.categorical[rows]) for rows in batches]
    return np.concatenate([scores for _, scores in answers])
