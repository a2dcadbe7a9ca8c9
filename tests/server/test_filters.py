"""Filters through the real server: every topology, mixed batches, the deny list while it serves."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from cascade.client import AsyncRecommender, InvalidInput, Recommender
from cascade.client.errors import RecommendError
from cascade.config import Serving
from cascade.server import deny as check
from cascade.server import health, workers
from cascade.server.launcher import Server, ServerError
from cascade.spec import DENY_LIST, ENSEMBLE, FUSED, RECOMMEND_FILTERED
from cascade.stages.pipeline import Pipeline
from clients import recommend as command
from export.releases.rewire import rewire, serving_of
from tests.filter_cases import Case, Shop, column, draw
from tests.programs import last_error, status
from tests.served import serve

IN_FORCE_S = 1.0
DELAY_US = 20_000  # long enough that requests which are sent together share a batch


@pytest.fixture(scope="module", params=["ensemble", "paired", "fused"])
def repository(
    request: pytest.FixtureRequest, criteo: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Small runs, and batches of whatever comes together."""
    folder = tmp_path_factory.mktemp(request.param)
    serving = replace(
        serving_of(criteo.repository),
        topology=request.param,
        instances=1,
        users_per_run=3,
        queue_delay_us=DELAY_US,
    )
    rewire(criteo.repository, folder, serving)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with Server(repository) as running:
        yield running


@pytest.fixture(scope="module")
def shop(criteo: Any) -> Shop:
    return Shop.of(criteo.checkpoints, criteo.schema)


@pytest.fixture
def deny(repository: Path) -> Iterator[Path]:
    """The deny list; empty, and known to be empty, after the test."""
    path = repository / DENY_LIST
    yield path
    path.write_text("")
    time.sleep(IN_FORCE_S)


def asked(
    client: grpc.InferenceServerClient, criteo: Any, user: int, exclude: Any, allow: Any
) -> Any:
    """One request with the filters that are not None, as another client may send it -> the ids
    [10] and scores [10], or the error."""
    arrays = {
        "dense": (criteo.dense[[user]], "FP32"),
        "categorical": (criteo.categorical[[user]], "BYTES"),
        "exclude": (exclude if exclude is None else column([exclude]), "BYTES"),
        "allow": (allow if allow is None else column([allow]), "BYTES"),
    }
    inputs = []
    for name, (values, dtype) in arrays.items():
        if values is not None:
            inputs.append(grpc.InferInput(name, values.shape, dtype))
            inputs[-1].set_data_from_numpy(values)
    try:
        model = ENSEMBLE if exclude is None and allow is None else RECOMMEND_FILTERED
        answer = client.infer(model, inputs, client_timeout=30)
    except InferenceServerException as error:
        return error
    return answer.as_numpy("item_ids")[0], answer.as_numpy("scores")[0]


def test_requests_with_and_without_filters_share_batches(
    repository: Path,
    server: Server,
    criteo: Any,
    shop: Shop,
    assert_same_answers: Callable[..., None],
) -> None:
    pipeline, random = (
        Pipeline.load(repository, serving=Serving(threads=1)),
        np.random.default_rng(5),
    )
    cases = [draw(shop, random) for _ in range(96)]
    wires = [
        (exclude if case.exclude or number % 2 else None, allow if case.allow else None)
        for number, case in enumerate(cases)
        for exclude, allow in [case.wire]
    ]
    with grpc.InferenceServerClient(server.url) as client, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: asked(client, criteo, i, *wires[i]), range(len(cases))))
    exclude, allow = zip(*(case.wire for case in cases), strict=True)
    users = slice(0, len(cases))
    expected = pipeline(
        criteo.dense[users], criteo.categorical[users], column(list(exclude)), column(list(allow))
    )
    got = tuple(np.stack(part) for part in zip(*answers, strict=True))
    assert_same_answers(got, expected)
    for row, case in zip(got[0], cases, strict=True):
        left = shop.left(case, set())
        assert set(row[row >= 0]) <= left
        assert (row >= 0).sum() == min(10, len(left))
    with grpc.InferenceServerClient(server.url) as client:
        stats = {s.name: s for s in client.get_inference_statistics().model_stats}
    retrieving = stats[FUSED] if FUSED in stats else stats["retrieve"]
    assert retrieving.execution_count < retrieving.inference_count  # they shared batches


def test_a_bad_filter_costs_its_sender_alone(server: Server, criteo: Any) -> None:
    wires = [
        (None, None),
        (bytes(8 * 1001), None),
        (b"123", None),
        (None, b"{"),
        (None, b'{"genre": ["Comedy"]}'),
        (bytes(8), b'{"C7": ["C7-3"]}'),
        (b"12345678", None),
        (None, b'{"C7": ["C7-1"], "C7": ["C7-3"]}'),
    ]
    with grpc.InferenceServerClient(server.url) as client, ThreadPoolExecutor(len(wires)) as pool:
        answers = list(pool.map(lambda i: asked(client, criteo, i, *wires[i]), range(len(wires))))
    complaints = ["1001 ids came; at most 1000", "3 bytes came", "not JSON", "known: C7, C8"]
    complaints += ["as text they are '12345678'", "feature C7 came twice"]
    refused = [*answers[1:5], *answers[6:]]
    for answer, complaint in zip(refused, complaints, strict=True):
        assert answer.status() == "StatusCode.INVALID_ARGUMENT"
        assert complaint in answer.message()
    for answer in (answers[0], answers[5]):
        assert (answer[0] >= 0).all()


def test_the_client_filters(server: Server, criteo: Any, shop: Shop) -> None:
    users = criteo.users[:5]
    with Recommender(server.url, deadline_s=30) as client:
        plain = client.recommend_many(users)
        first = client.recommend(users[0], exclude=plain[0].item_ids)
        assert not set(first.item_ids) & set(plain[0].item_ids)
        assert len(first.item_ids) == 10
        assert not first.short
        found = client.recommend_many(
            users,
            exclude=[None, [], plain[2].item_ids[:3], None, [1, 2]],
            allow=[None, {}, None, {"C7": ["C7-3"], "C8": ["C8-1", "C8-2"]}, {"C9": ["?"]}],
        )
        for row in (0, 1):
            np.testing.assert_array_equal(found[row].item_ids, plain[row].item_ids)
        assert set(plain[2].item_ids[3:]) <= set(found[2].item_ids)
        assert not set(plain[2].item_ids[:3]) & set(found[2].item_ids)
        left = shop.left(Case(allow={"C7": ["C7-3"], "C8": ["C8-1", "C8-2"]}), set())
        assert set(found[3].item_ids) == left
        assert found[3].short == (len(left) < 10)
        assert found[4].item_ids.tolist() == []
        assert found[4].short
        with pytest.raises(InvalidInput, match="unknown item feature 'C1'"):
            client.recommend(users[0], allow={"C1": ["x"]})


def test_the_command_line_filters(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--url", server.url, "--user", "{}"]
    filters = ["--exclude", "1,2", "--allow", '{"C7": ["nobody"]}']
    assert status(command.main, [*arguments, *filters]) == 0
    assert "no more than 0 are left" in capsys.readouterr().out
    assert status(command.main, [*arguments, "--allow", '{"I1": [3]}']) == 1
    assert "unknown item feature 'I1'" in capsys.readouterr().err
    assert status(command.main, [*arguments, "--exclude", "one"]) == 1
    assert "expected ids as 12,345; got 'one'" in capsys.readouterr().err


def test_a_deny_list_takes_effect_while_the_server_runs(
    server: Server, criteo: Any, deny: Path
) -> None:
    with Recommender(server.url, deadline_s=30) as client:
        best = client.recommend(criteo.users[0]).item_ids
        deny.write_text("".join(f"{item}\n" for item in best[:4]))
        time.sleep(IN_FORCE_S)
        found = client.recommend(criteo.users[0]).item_ids
        assert not set(found) & set(best[:4])
        assert set(best[4:]) <= set(found)
        deny.write_text("")
        time.sleep(IN_FORCE_S)
        np.testing.assert_array_equal(client.recommend(criteo.users[0]).item_ids, best)


def measured(server: Server) -> dict[str, float]:
    """The metrics of the deny list, by name and state."""
    with urllib.request.urlopen(server.metrics_url, timeout=30) as page:
        text = page.read().decode()
    found = re.findall(r"^cascade_(deny_list_\w+)\{([^}]*)\} (\S+)$", text, re.MULTILINE)
    states = ((name, re.search(r'state="(\w+)"', labels), value) for name, labels, value in found)
    return {f"{name} {s[1]}" if s else name: float(value) for name, s, value in states}


def test_an_error_of_a_deny_list_permits_nothing_and_shows(
    server: Server, criteo: Any, deny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the answers, the log, the metrics and the line of the health check."""

    def shown(ok: float, applied: int, bad: int = 0) -> dict[str, float]:
        expected = {"ok": ok, "lines applied": applied, "lines bad": bad}
        wanted = {f"deny_list_{name}": value for name, value in expected.items()}
        deadline = time.monotonic() + 20  # a process publishes once a second
        while not wanted.items() <= (found := measured(server)).items():
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        check = ["--url", server.url, "--metrics-url", server.metrics_url]
        assert health.main(check) == 0
        assert ("degraded: the deny list" in capsys.readouterr().out) == (ok == 0)
        return found

    with Recommender(server.url, deadline_s=30) as client:
        best = client.recommend(criteo.users[0]).item_ids
        deny.write_bytes("item_id\n{}\n{}.0\n".format(*best[:2]).encode("utf-16"))
        time.sleep(IN_FORCE_S)
        assert not set(client.recommend(criteo.users[0]).item_ids) & {*best[:2]}
        assert shown(1, applied=2)["deny_list_age_s"] < 60
        deny.write_text(f"{best[2]}\nnot an id\n")
        time.sleep(IN_FORCE_S)
        assert not set(client.recommend(criteo.users[0]).item_ids) & {*best[:3]}
        shown(0, applied=1, bad=1)
        assert "line 2: 'not an id' is no item id" in server.log_path.read_text()
        deny.unlink()
        time.sleep(IN_FORCE_S)
        assert not set(client.recommend(criteo.users[0]).item_ids) & {*best[:3]}
        shown(0, applied=1, bad=1)
        deny.write_text(f"{best[0]}\n")
        time.sleep(IN_FORCE_S)
        found = client.recommend(criteo.users[0]).item_ids
        assert best[0] not in found
        assert {*best[1:4]} <= {*found}
        shown(1, applied=1)


def test_what_was_denied_stays_denied_after_a_crash(criteo: Any, tmp_path: Path) -> None:
    """Of a stage, whose process starts anew, and of the server; the list is gone."""
    repository = Path(shutil.copytree(criteo.repository, tmp_path / "repository"))
    deny = repository / DENY_LIST
    with (
        serve(repository, tmp_path / "log") as served,
        Recommender(served.url, deadline_s=60) as client,
    ):
        best = client.recommend(criteo.users[0]).item_ids
        deny.write_text(f"{best[0]}\n")
        time.sleep(IN_FORCE_S)
        assert best[0] not in client.recommend(criteo.users[0]).item_ids
        deny.unlink()
        time.sleep(2)  # the supervisor lists the processes
        for victims in ([stub.pid for stub in workers.alive(served.name)], [served.pid]):
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            assert best[0] not in healed(client, criteo.users[0], served, victims)
            assert "degraded: the deny list" in told(served)


def healed(client: Recommender, user: Any, served: Any, gone: list[int]) -> Any:
    """An answer, once other processes than those have taken their place."""
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline
        time.sleep(0.2)
        with suppress(RecommendError, ValueError, psutil.NoSuchProcess):
            now = {served.pid, *(stub.pid for stub in workers.alive(served.name))}
            if len(now) > 1 and not now & {*gone}:
                return client.recommend(user).item_ids


def told(served: Any) -> str:
    """What the health check says a moment later."""
    time.sleep(2.5)  # a process publishes once a second
    words = ["--url", served.url, "--metrics-url", served.metrics_url]
    command = [sys.executable, "-m", "cascade.server.health", *words]
    proxy = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}  # not for us
    return subprocess.run(
        command, env={**os.environ, **proxy}, capture_output=True, text=True
    ).stdout


def test_a_deny_list_that_cannot_be_read_starts_no_server(repository: Path, deny: Path) -> None:
    deny.write_bytes(bytes(range(128, 256)))
    with (
        pytest.raises(ServerError, match=r"deny\.txt: none of its 1 lines can be read"),
        Server(repository),
    ):
        pass


def test_a_deny_list_can_be_checked_before(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shop: Shop
) -> None:
    file, own = tmp_path / "deny.csv", ["--repository", str(repository)]
    file.write_text(f"item_id,why\n{shop.ids[0]},\n4,gone\nl8,\n")
    assert status(check.main, ["check", str(file), *own]) == 1
    out, err = capsys.readouterr()
    assert f"{file}: 1 lines deny 1 items of release 1; 1 lines name no item of it" in out
    assert "line 4: 'l8,' is no item id" in out
    assert err.startswith(f"error: {file}: 1 lines cannot be read; the first is line 4")
    assert err.count("\n") == 1
    assert status(check.main, ["check", str(file)]) == 1
    assert status(check.main, ["check", str(file), "--string-ids"]) == 0
    capsys.readouterr()
    file.write_text("17\n1,234\n5,6,7,8\n")
    for where in ([], own):
        assert status(check.main, ["check", str(file), *where]) == 0
        out = capsys.readouterr().out
        assert "7 ids: 17, 1, 234, 5, 6, ...\n" in out
        assert "line 2: 1, 234 or, with separators, 1234: all of them are denied\n" in out
    (repository / DENY_LIST).write_text(f"{shop.ids[0]}\n")
    assert status(check.main, ["check", *own]) == 0
    capsys.readouterr()
    for wrong in (["check"], ["check", str(tmp_path / "none")], ["check", "--repository", "none"]):
        assert status(check.main, wrong) == 1
        assert last_error(capsys.readouterr().err)


async def ask_twice(url: str, user: dict[str, Any]) -> tuple[Any, Any]:
    async with AsyncRecommender(url, deadline_s=30) as client:
        plain = await client.recommend(user)
        return plain, await client.recommend(user, exclude=plain.item_ids.tolist())


def test_the_asyncio_client_filters(server: Server, criteo: Any) -> None:
    plain, others = asyncio.run(ask_twice(server.url, criteo.users[0]))
    assert not set(plain.item_ids) & set(others.item_ids)
    assert len(others.item_ids) == 10
