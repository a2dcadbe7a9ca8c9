"""The supervisor finds dead processes and reloads their models, or the launcher ends; the health
check reports the state in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from cascade import pbtxt
from cascade.client import Recommender, RecommendError
from cascade.server import health, probe, security, supervisor, workers
from cascade.server.launcher import Server
from cascade.server.supervisor import Supervisor
from cascade.server.workers import Worker
from tests.served import EXIT_S, Served, serve

PATIENCE_S = 60.0
KEY = "known-to-the-publisher"


@pytest.fixture(scope="module")
def repository(criteo: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that may be damaged; with two processes of prerank."""
    folder: Path = tmp_path_factory.mktemp("supervised") / "repository"
    shutil.copytree(criteo.repository, folder, copy_function=os.link)
    path = folder / "prerank" / "config.pbtxt"
    twice = pbtxt.read(path)
    twice.instance_group[0].count = 2
    path.unlink()  # it is the other repository's as well
    pbtxt.save(twice, path)
    return folder


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "launcher.log"


@pytest.fixture(scope="module")
def served(repository: Path, log: Path) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(security.KEY_VARIABLE, KEY)
        with serve(repository, log, "--exit-timeout-s=1") as running:
            yield running


def events(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def mended(log: Path, before: int) -> list[str]:
    """The names of the events after the first `before`, once a reload or a restart is among them.

    A stub that dies while it holds a lock of the server takes the server along, which is rare and
    cannot be prevented. Then the supervisor starts the server again.
    """

    def names() -> list[str]:
        return [event["event"] for event in events(log)[before:]]

    wait_until(lambda: {"reloaded", "restarted"} & {*names()})
    return names()


def worker_of(served: Served, model: str) -> Worker:
    return next(w for w in workers.alive(served.name) if w.model == model)


def answers(url: str, users: list[dict[str, Any]]) -> tuple[Any, Any]:
    with Recommender(url, deadline_s=30) as recommender:
        found = recommender.recommend_many(users)
    return np.stack([a.item_ids for a in found]), np.stack([a.scores for a in found])


def healthy(served: Served) -> bool:
    return health.main(["--url", served.url, "--timeout-s", "3"]) == 0


def answered(served: Served, user: dict[str, Any]) -> bool:
    try:
        answers(served.url, [user])
    except RecommendError:
        return False
    return True


def test_a_dead_stage_is_told_and_loaded_again(
    criteo: Any,
    served: Served,
    log: Path,
    assert_same_answers: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = sorted((w.model, w.version) for w in workers.alive(served.name))
    assert found == [("prerank", 1), ("prerank", 1), ("rank", 1), ("retrieve", 1)]
    assert healthy(served)
    assert capsys.readouterr().out.startswith(f"healthy: recommend at {served.url} answered in ")
    time.sleep(2)  # the supervisor lists the workers
    os.kill(served.launcher.pid, signal.SIGSTOP)  # no help from the supervisor
    try:
        victim = worker_of(served, "retrieve")
        os.kill(victim.pid, signal.SIGKILL)
        wait_until(lambda: victim.dead)
        assert not healthy(served)
        said = capsys.readouterr().out
        assert said.startswith(f"unhealthy: recommend at {served.url}: ")
        assert said.count("\n") == 1
    finally:
        os.kill(served.launcher.pid, signal.SIGCONT)
    if "restarted" not in mended(log, 0):
        died = next(event for event in events(log) if event["event"] == "process died")
        assert (died["models"], died["pids"]) == (["retrieve"], [victim.pid])
    assert healthy(served)
    expected = criteo.ask(criteo.pipeline(), 0, 40)
    assert_same_answers(answers(served.url, criteo.users[:40]), expected)


def test_answers_under_any_name_show_that_the_cascade_is_busy(
    criteo: Any, criteo_server: Server
) -> None:
    """A canary that `recommend` answers late is no fault while filtered requests are answered."""
    with criteo_server.connect() as client, Recommender(criteo_server.url, deadline_s=30) as asks:
        asks.recommend({})
        before = supervisor._answered(client, "recommend")
        asks.recommend(criteo.users[0], exclude=[1])
        assert supervisor._answered(client, "recommend") > before


def test_one_of_two_processes_is_replaced_while_the_other_answers(
    criteo: Any, served: Served, log: Path
) -> None:
    before, ready = len(events(log)), []
    time.sleep(2)
    os.kill(worker_of(served, "prerank").pid, signal.SIGKILL)
    with grpc.InferenceServerClient(served.url) as client:
        while len(events(log)) < before + 2:
            # The dead one fails what it is given, but the cascade never goes away.
            try:
                ready.append(client.is_model_ready("recommend"))
            except InferenceServerException:
                ready.append(False)
            time.sleep(0.02)
    mending = mended(log, before)
    if "restarted" not in mending:
        assert all(ready)
        assert mending == ["process died", "reloaded"]
    wait_until(lambda: answered(served, criteo.users[0]))
    wait_until(lambda: sum(s.model == "prerank" for s in workers.alive(served.name)) == 2)
    assert len(events(log)) == before + len(mending)  # none for the replaced process


def test_a_publisher_is_left_alone(criteo: Any, served: Served, log: Path) -> None:
    """A publisher ends processes in order; clients that ask meanwhile are told to ask again."""
    before = events(log)
    headers = security.headers(KEY)
    with grpc.InferenceServerClient(served.url) as client:
        client.unload_model("rank", headers=headers)
        time.sleep(1.5)
        client.load_model("rank", headers=headers)
    assert answered(served, criteo.users[0])
    time.sleep(1.5)
    assert "process died" not in [event["event"] for event in events(log)[len(before) :]]
    assert "reloaded" not in [event["event"] for event in events(log)[len(before) :]]


def test_a_stage_that_hangs_is_replaced(criteo: Any, served: Served, log: Path) -> None:
    """It is alive, so only the canaries tell."""
    before = len(events(log))
    hanging = worker_of(served, "rank")
    os.kill(hanging.pid, signal.SIGSTOP)
    mended(log, before)
    failed = [event for event in events(log)[before:] if event["event"] == "canary failed"]
    assert [event["in_a_row"] for event in failed] == [1, 2, 3]
    assert answered(served, criteo.users[0])
    wait_until(lambda: hanging.dead or hanging.gone)


def test_a_server_that_crashed_is_started_again(
    criteo: Any, served: Served, log: Path, assert_same_answers: Callable[..., None]
) -> None:
    before, first = len(events(log)), served.pid
    os.kill(first, signal.SIGABRT)
    assert mended(log, before) == ["server died", "restarted"]
    assert events(log)[before]["signal"] == signal.SIGABRT
    assert served.pid != first
    expected = criteo.ask(criteo.pipeline(), 0, 40)
    assert_same_answers(answers(served.url, criteo.users[:40]), expected)


def test_a_server_that_hangs_is_started_again(criteo: Any, served: Served, log: Path) -> None:
    """As long as it takes until its connections count as lost."""
    before, first = len(events(log)), served.pid
    os.kill(first, signal.SIGSTOP)
    told = mended(log, before)
    assert told[-3:] == ["server hangs", "server died", "restarted"]
    assert served.pid != first
    assert answered(served, criteo.users[0])


def test_a_server_that_crashes_again_and_again_is_given_up(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "RESTARTS", 1)
    told: list[str] = []

    def kill(event: str, **facts: Any) -> None:
        told.append(event)
        if event == "restarted":
            os.kill(facts["pid"], signal.SIGKILL)

    with Server(repository) as server:
        os.kill(server.pid, signal.SIGKILL)
        assert Supervisor(server, kill).watch() == -signal.SIGKILL
    assert told == ["server died", "restarted"]


def test_the_launcher_ends_where_reloading_does_not_help(
    served: Served, repository: Path, log: Path
) -> None:
    time.sleep(2)
    (repository / "rank" / "1" / "stage.json").unlink()
    os.kill(worker_of(served, "rank").pid, signal.SIGKILL)
    assert served.launcher.wait(EXIT_S) == 1
    assert "error: a model cannot be loaded again" in log.read_text()
    assert "stage.json" in log.read_text()


def answer(ids: list[int], scores: list[float]) -> grpc.InferResult:
    made = service_pb2.ModelInferResponse(model_name="recommend")
    for name, datatype, values in (
        ("item_ids", "INT64", np.array([ids], np.int64)),
        ("scores", "FP32", np.array([scores], np.float32)),
    ):
        made.outputs.add(name=name, datatype=datatype, shape=values.shape)
        made.raw_output_contents.append(values.tobytes())
    return grpc.InferResult(made)


def test_an_answer_that_cannot_be_right_is_no_answer() -> None:
    probe.check(answer([5, 7, 9], [0.9, 0.5, 0.5]))
    probe.check(answer([5, -1, -1], [0.9, 0.0, 0.0]))
    for ids, scores in (
        ([5, 5, 9], [0.9, 0.5, 0.1]),
        ([5, 7, 9], [np.nan, np.nan, np.nan]),
        ([5, 7, 9], [np.inf, 0.5, 0.1]),
    ):
        with pytest.raises(probe.ProbeError, match="expected every item once, and numbers"):
            probe.check(answer(ids, scores))


def test_health_of_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert health.main(["--url", "127.0.0.1:9", "--timeout-s", "0.5"]) == 1
    assert capsys.readouterr().out.startswith("unhealthy: recommend at 127.0.0.1:9: ")
