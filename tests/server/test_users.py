"""Users by id: the answers are those for the same features, whatever the store does meanwhile."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from cascade import pbtxt
from cascade.client import AsyncRecommender, InvalidInput, Recommender, RecommendError
from cascade.client.split import place
from cascade.config import Product, Serving
from cascade.layout import RequestLayout
from cascade.server.launcher import Server, ServerError
from cascade.spec import RECOMMEND_FILTERED, RECOMMEND_USER, RETRIEVE
from cascade.store import UserStore
from clients import recommend as command
from export.releases.control import Control
from export.releases.publishing import Publisher
from export.releases.repository import Repository
from export.releases.rewire import from_export, rewire, serving_of
from export.users import layout_of
from tests.cascades import BAGS
from tests.programs import status
from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[2]
USERS = 40
SLACK = 1e-5


@pytest.fixture(scope="module")
def people(make_cascade: Callable[..., Any]) -> Any:
    """A user of every kind of feature, and more items than one answer holds."""
    return make_cascade(schema=BAGS, items=300, serving=Serving(max_batch_size=8))


@dataclass(frozen=True)
class Served:
    """A running server, a client of it, and the URL of its store."""

    server: Server
    client: Recommender
    store: str

    def write(self, layout: RequestLayout, dense: Any, categorical: Any) -> None:
        """Users named by their rows."""
        with UserStore.create(self.store, layout) as users:
            users.put(range(len(dense)), dense, categorical)


def wired(people: Any, folder: Path, topology: Any, store: str) -> Path:
    rewire(
        people.repository,
        folder,
        replace(serving_of(people.repository), topology=topology),
        Product(store=store),
    )
    return folder


@pytest.fixture(scope="module", params=["ensemble-lmdb", "paired-lmdb", "fused-redis"])
def served(
    request: pytest.FixtureRequest, people: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    topology, kind = request.param.split("-")
    folder = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        if kind == "redis":
            (folder / "redis").mkdir()
            redis = stack.enter_context(RedisServer(folder / "redis"))
            # A busy machine may keep an answer waiting; what this tests is not the time.
            store = f"{redis.url()}?timeout_ms=2000"
        else:
            store = f"lmdb:{folder / 'users'}"
        repository = wired(people, folder / "repository", topology, store)
        with UserStore.create(store, layout_of(repository)) as users:
            users.put(range(USERS), people.dense[:USERS], people.categorical[:USERS])
        server = stack.enter_context(Server(repository))
        client = stack.enter_context(Recommender(server.url, deadline_s=30))
        yield Served(server, client, store)


def same(got: Any, expected: Any) -> None:
    assert got.item_ids.tolist() == expected.item_ids.tolist()
    np.testing.assert_allclose(got.scores, expected.scores, atol=SLACK)


def test_a_share_of_the_users_by_id_with_filters(
    people: Any, make_cascade: Callable[..., Any], tmp_path: Path
) -> None:
    """By id, a user gets the release and the items that he gets with his features."""
    other = make_cascade(schema=BAGS, items=300, serving=Serving(max_batch_size=8), seed=1)
    store = f"lmdb:{tmp_path / 'users'}"
    exports = [
        wired(cascade, tmp_path / name, "ensemble", store)
        for name, cascade in (("one", people), ("other", other))
    ]
    repository = Repository(tmp_path / "repository")
    Publisher(repository, say=lambda line: None).publish(from_export(exports[0]))
    with UserStore.create(store, layout_of(repository.root)) as users:
        users.put(range(USERS), people.dense[:USERS], people.categorical[:USERS])
    with Server(repository.root) as server:
        control = Control(server.url, server.control_headers)
        publisher = Publisher(repository, control, say=lambda line: None)
        publisher.publish(from_export(exports[1]), share=0.5)
        with Recommender(server.url, deadline_s=30) as client:
            ids, some = [*range(USERS)], people.users[:USERS]
            seen = [one.item_ids[:3].tolist() for one in client.recommend_many(some, keys=ids)]
            by_features = client.recommend_many(some, keys=ids, exclude=seen)
            by_id = client.recommend_users(ids, exclude=seen)
    for user, (got, expected) in enumerate(zip(by_id, by_features, strict=True)):
        same(got, expected)
        assert got.release == expected.release == (2 if place(user) < 0.5 else 1)
        assert not {*got.item_ids.tolist()} & {*seen[user]}
    assert {one.release for one in by_id} == {1, 2}


# --- whatever the store and the topology


def test_an_id_gets_what_its_features_get(people: Any, served: Served) -> None:
    users = people.users[:USERS]
    by_id = served.client.recommend_users([*range(USERS)])
    for got, expected in zip(by_id, served.client.recommend_many(users), strict=True):
        same(got, expected)
        assert not got.cold_start
    same(served.client.recommend_user("3"), by_id[3])
    same(served.client.recommend_user(b"3"), by_id[3])
    assert len({tuple(one.item_ids) for one in by_id}) > 5  # users differ, so this could fail


def test_a_context_overrides_what_is_stored(people: Any, served: Served) -> None:
    context = {
        "age": np.float32(77),
        "visits": None,
        "city": "city-3",
        "history": ["history-1", "history-2"],
        "tags": "x|y",
    }
    for user in range(3):
        expected = served.client.recommend({**people.users[user], **context})
        same(served.client.recommend_user(user, context), expected)
        same(served.client.recommend_user(user, {}), served.client.recommend(people.users[user]))
    mixed = served.client.recommend_users([0, 1], [None, context])
    same(mixed[0], served.client.recommend(people.users[0]))
    same(mixed[1], served.client.recommend({**people.users[1], **context}))


def test_values_that_no_vocabulary_has_are_counted(people: Any, served: Served) -> None:
    """With features and by id; of a bag, the members that are read."""
    user = {"city": "misspelt", "agent": "hashed", "history": ["history-1", "a", "b", "c", "d"]}
    known = {"city": "city-1", "history": ["history-2"]}
    found = served.client.recommend_many([user, known, {}])
    assert [one.unknown_values for one in found] == [4, 0, 0]
    by_id = served.client.recommend_users([0, 0, "nobody"], [user, known, None])
    assert [one.unknown_values for one in by_id] == [4, 0, 0]


def test_values_by_name_need_no_store(people: Any, served: Served) -> None:
    """`recommend_filtered` takes them; of other users in the request they change nothing."""
    contexts = [json.dumps(people.users[0]).encode(), b"", b'{"age": null}']
    inputs = [
        grpc.InferInput("context", [3, 1], "BYTES"),
        grpc.InferInput("dense", [3, people.dense.shape[1]], "FP32"),
    ]
    inputs[0].set_data_from_numpy(np.array(contexts, object).reshape(3, 1))
    inputs[1].set_data_from_numpy(np.full_like(people.dense[:3], 5))
    with grpc.InferenceServerClient(served.server.url) as client:
        answer = client.infer(RECOMMEND_FILTERED, inputs, client_timeout=30)
        with pytest.raises(InferenceServerException, match="input categorical is missing"):
            client.infer(RECOMMEND_FILTERED, inputs[1:], client_timeout=30)
    numbers = dict.fromkeys(("age", "visits"), 5)
    users = [{**numbers, **people.users[0]}, numbers, {"visits": 5}]
    for row, expected in enumerate(served.client.recommend_many(users)):
        assert answer.as_numpy("item_ids")[row].tolist() == expected.item_ids.tolist()


def test_an_unknown_user_is_a_cold_start(served: Served) -> None:
    nothing = served.client.recommend({})
    for user_id in ("nobody", "", "x" * 5000, -1):
        found = served.client.recommend_user(user_id)
        assert found.cold_start
        same(found, nothing)
    known = served.client.recommend_user("nobody", {"city": "city-1"})
    assert known.cold_start
    same(known, served.client.recommend({"city": "city-1"}))
    mixed = served.client.recommend_users([1, "nobody", 2])
    assert [one.cold_start for one in mixed] == [False, True, False]


def test_the_next_request_sees_what_a_user_did(people: Any, served: Served) -> None:
    user = next(u for u in range(USERS) if "history" in people.users[u])
    before = served.client.recommend_user(user)
    event = {"user_id": str(user), "feature": "history", "values": ["history-5", "history-6"]}
    again = [sys.executable, "-m", "clients.events", "--store", served.store]
    subprocess.run(again, input=json.dumps(event), text=True, check=True, cwd=ROOT)
    after = served.client.recommend_user(user)
    old = [member for member in people.users[user]["history"] if member]
    history = ["history-6", "history-5", *old][:4]
    same(after, served.client.recommend({**people.users[user], "history": history}))
    assert not np.allclose(after.scores, before.scores)


def test_a_user_is_cold_until_the_first_event(served: Served) -> None:
    name = f"new-{served.store[-20:]}".replace("|", "")
    assert served.client.recommend_user(name).cold_start
    event = {"user_id": name, "feature": "history", "values": ["history-5"]}
    again = [sys.executable, "-m", "clients.events", "--store", served.store]
    subprocess.run(again, input=json.dumps(event), text=True, check=True, cwd=ROOT)
    found = served.client.recommend_user(name)
    assert not found.cold_start
    same(found, served.client.recommend({"history": ["history-5"]}))


@pytest.mark.parametrize(
    ("context", "words"),
    [
        ({"aged": 3}, "unknown feature 'aged': did you mean 'age'"),
        ({"age": "old"}, "feature age: 'old'"),
        ({"city": ["a"]}, "feature city"),
    ],
)
def test_the_client_refuses_a_bad_context(served: Served, context: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        served.client.recommend_user(1, context)
    with pytest.raises(InvalidInput, match="1 contexts came for 2 users"):
        served.client.recommend_users([1, 2], [None])
    with pytest.raises(InvalidInput, match="user_id"):
        served.client.recommend_user(1.5)  # type: ignore[arg-type]


def test_asyncio_gives_the_same(served: Served) -> None:
    async def ask() -> list[Any]:
        async with AsyncRecommender(served.server.url, deadline_s=30) as client:
            one = await client.recommend_user(3, {"age": 5})
            return [one, *(await client.recommend_users([3, "nobody"]))]

    got = asyncio.run(ask())
    same(got[0], served.client.recommend_user(3, {"age": 5}))
    same(got[1], served.client.recommend_user(3))
    assert [one.cold_start for one in got] == [False, False, True]


def test_the_command_asks_by_id(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    to = ("--url", served.server.url, "--deadline-ms", "30000", "--json")
    ids = ("--user-id", "2", "--user-id", "nobody", "--context", '{"age": 9}')
    assert status(command.main, [*ids, *to]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["user"] == {"user_id": "2", "age": 9}
    assert first["item_ids"] == served.client.recommend_user(2, {"age": 9}).item_ids.tolist()
    assert (first["cold_start"], second["cold_start"]) == (False, True)
    assert status(command.main, [*ids, *to[:-1]]) == 0
    assert 'unknown user {"user_id": "nobody"' in capsys.readouterr().out


# --- a batch


def ask(client: grpc.InferenceServerClient, user_id: bytes, context: bytes | None) -> Any:
    """One raw request: the answer, or the error."""
    texts = {"user_id": user_id} | ({} if context is None else {"context": context})
    inputs = []
    for name, text in texts.items():
        inputs.append(grpc.InferInput(name, [1, 1], "BYTES"))
        inputs[-1].set_data_from_numpy(np.array([[text]], object))
    try:
        return client.infer(RECOMMEND_USER, inputs, client_timeout=30)
    except InferenceServerException as error:
        return error


@pytest.fixture(scope="module")
def patient(people: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose first stage waits for the batch to fill."""
    folder = tmp_path_factory.mktemp("patient")
    repository = wired(people, folder / "repository", "ensemble", f"lmdb:{folder / 'users'}")
    path = repository / RETRIEVE / "config.pbtxt"
    slow = pbtxt.read(path)
    slow.dynamic_batching.max_queue_delay_microseconds = 300_000
    pbtxt.save(slow, path)
    with UserStore.create(f"lmdb:{folder / 'users'}", layout_of(repository)) as users:
        users.put(range(USERS), people.dense[:USERS], people.categorical[:USERS])
    with (
        Server(repository, exit_timeout_s=1) as server,
        Recommender(server.url, deadline_s=30) as client,
    ):
        yield Served(server, client, "")


@pytest.mark.parametrize(
    ("context", "words"),
    [
        (b"{nonsense", ("context", "b'{nonsense' is not JSON")),
        (b"[1]", ("context", "a JSON list came", "an object")),
        (b"[" * 50_000, ("context", "is not JSON")),
        (b'{"x": "' + b"x" * 70_000 + b'"}', ("context", "at most 65536")),
        (b'{"histroy": ["a"]}', ("context", "unknown feature 'histroy'", "'history'")),
        (b'{"age": "old"}', ("context", "feature age", "'old'")),
        (b'{"age": 1e999}', ("context", "feature age", "finite")),
        (b'{"city": "\\ud800"}', ("context", "feature city", "UTF-8")),
        (b"\xff", ("context", "not JSON")),
    ],
)
def test_a_bad_context_costs_its_neighbours_nothing(
    people: Any, patient: Served, context: bytes, words: tuple[str, ...]
) -> None:
    good = b'{"age": 50}'
    requests = [(b"0", good), (b"1", context), (b"nobody", good), (b"2", good)]
    with grpc.InferenceServerClient(patient.server.url) as client:
        [before] = client.get_inference_statistics(RETRIEVE).model_stats
        with ThreadPoolExecutor(len(requests)) as pool:
            outcomes = list(pool.map(lambda one: ask(client, *one), requests))
        [after] = client.get_inference_statistics(RETRIEVE).model_stats
    assert after.execution_count - before.execution_count < len(requests)  # they shared a batch
    error = outcomes[1]
    assert isinstance(error, InferenceServerException)
    assert error.status() == "StatusCode.INVALID_ARGUMENT", error.message()
    for word in words:
        assert word in error.message()
    for row, cold in ((0, False), (2, True), (3, False)):
        assert outcomes[row].as_numpy("cold_start").tolist() == [[cold]]
        stored = {} if cold else people.users[int(requests[row][0])]
        expected = patient.client.recommend({**stored, "age": 50})
        assert outcomes[row].as_numpy("item_ids")[0].tolist() == expected.item_ids.tolist()


def test_requests_with_and_without_a_context_are_answered_together(
    people: Any, patient: Served
) -> None:
    requests = [(str(i).encode(), b'{"age": 50}' if i % 2 else None) for i in range(8)]
    with grpc.InferenceServerClient(patient.server.url) as client, ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda one: ask(client, *one), requests))
    for i, outcome in enumerate(outcomes):
        user = {**people.users[i], "age": 50} if i % 2 else people.users[i]
        expected = patient.client.recommend(user)
        assert outcome.as_numpy("item_ids")[0].tolist() == expected.item_ids.tolist()


# --- a store in trouble


def until_found(client: Recommender, user_id: Any) -> Any:
    deadline = time.monotonic() + 30
    while (found := client.recommend_user(user_id)).cold_start:
        assert time.monotonic() < deadline, "the store was not tried again"
        time.sleep(0.05)
    return found


def test_a_store_that_was_never_there_may_still_come(people: Any, tmp_path: Path) -> None:
    store, log = f"lmdb:{tmp_path / 'users'}", tmp_path / "log"
    repository = wired(people, tmp_path / "repository", "fused", store)
    with Server(repository, log=log) as server, Recommender(server.url, deadline_s=30) as client:
        nothing = client.recommend({})
        for user in range(20):
            found = client.recommend_user(user)
            assert found.cold_start
            same(found, nothing)
        Served(server, client, store).write(
            layout_of(repository), people.dense[:USERS], people.categorical[:USERS]
        )
        same(until_found(client, 5), client.recommend(people.users[5]))
    said = [line for line in log.read_text().splitlines() if line.startswith("lookup: ")]
    assert len(said) == 1  # once in a while, not once a request
    assert "No such file" in said[0]


def test_redis_may_be_killed_and_come_back(people: Any, tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(tmp_path / "redis"))
        repository = wired(people, tmp_path / "repository", "fused", redis.url())
        server = stack.enter_context(Server(repository))
        client = stack.enter_context(Recommender(server.url, deadline_s=30))
        Served(server, client, redis.url()).write(
            layout_of(repository), people.dense[:USERS], people.categorical[:USERS]
        )
        until_found(client, 5)
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(client.recommend_user, n % USERS) for n in range(400)]
            time.sleep(0.1)
            redis.kill()
            answers = [one.result() for one in waiting]
        assert all(len(one.item_ids) == 10 for one in answers)  # none failed
        assert answers[-1].cold_start
        same(answers[-1], client.recommend({}))
        redis.start()
        same(until_found(client, 5), client.recommend(people.users[5]))


def test_a_store_of_other_features_is_refused_at_the_start(people: Any, tmp_path: Path) -> None:
    store = f"lmdb:{tmp_path / 'users'}"
    other = RequestLayout(("height",), (), "0123456789abcdef")
    with UserStore.create(store, other) as users:
        users.put(["1"], *other.empty())
    repository = wired(people, tmp_path / "repository", "fused", store)
    with pytest.raises(ServerError, match="was written for layout 0123456789abcdef"):
        Server(repository).start()


def test_without_a_store_there_is_no_such_model(people: Any, tmp_path: Path) -> None:
    repository = wired(people, tmp_path / "repository", "fused", "")
    assert not (repository / RECOMMEND_USER).exists()
    with (
        Server(repository) as server,
        Recommender(server.url, deadline_s=30) as client,
        pytest.raises(RecommendError, match="recommend_user"),
    ):
        client.recommend_user(1)
