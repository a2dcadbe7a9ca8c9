"""One contract for every store of users, on a real file and a real redis-server."""

from __future__ import annotations

import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascade.encoding import Encoder, InvalidInput
from cascade.layout import IdFeature, LayoutError, RequestLayout
from cascade.schema import Feature, Schema
from cascade.stages.lookup import CircuitBreaker
from cascade.store import (
    Event,
    OtherLayout,
    StoreError,
    UserStore,
    lmdb_store,
    open_backend,
)
from cascade.store.factory import absolute_url
from cascade.store.records import Records, layout_record, read_layout
from cascade.store.redis_store import without_password
from clients import events
from tests.programs import status
from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[2]
SCHEMA = Schema(
    "shop",
    (
        Feature("age", "user", "dense", "identity"),
        Feature("visits", "user", "dense", "log1p"),
        Feature("country", "user", "categorical", "hash", buckets=50),
        Feature("history", "user", "bag", "hash", length=4, buckets=1000),
        Feature("seen", "user", "bag", "hash", length=200, buckets=1000),
        Feature("price", "item", "dense", "identity"),
    ),
)
LAYOUT = RequestLayout.of(SCHEMA)
OTHER = RequestLayout(("age", "height"), (), "0123456789abcdef")
KINDS = ("lmdb", "redis")


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def new_url(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], str]:
    """An empty store of a kind."""
    databases = count(1)

    def make(kind: str) -> str:
        if kind == "lmdb":
            return f"lmdb:{tmp_path_factory.mktemp('store') / 'users'}"
        return redis_server.url(next(databases) % 16)

    return make


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, new_url: Callable[[str], str]) -> str:
    found = new_url(request.param)
    if request.param == "redis":
        backend: Any = open_backend(found, writable=True)
        backend._client.flushdb()
    return found


@pytest.fixture
def store(url: str) -> Iterator[UserStore]:
    with UserStore.create(url, LAYOUT) as opened:
        yield opened


def rows(*users: dict[str, Any]) -> tuple[Any, Any]:
    """dense and categorical of users given by name."""
    dense, categorical = LAYOUT.empty(len(users))
    for row, user in enumerate(users):
        LAYOUT.fill(user, dense[row], categorical[row])
    return dense, categorical


ANNA = {"age": 31.5, "visits": 4, "country": "fr", "history": ["a", "b"]}
BENO = {"visits": 0.0, "country": "Çà ✓\0", "seen": ["x"]}


# --- what every store does


def test_what_was_written_is_read(store: UserStore) -> None:
    dense, categorical = rows(ANNA, BENO, {})
    store.put(["anna", 7, b"nobody"], dense, categorical)
    found = store.get([b"nobody", b"7", b"anna", b"7"])
    order = [2, 1, 0, 1]
    np.testing.assert_array_equal(found.dense, dense[order])
    np.testing.assert_array_equal(found.categorical, categorical[order])
    assert found.known.tolist() == [True] * 4
    assert found.dense.dtype == np.float32
    found.dense[0] = 1  # whoever asked may change it
    assert np.isnan(store.get([b"nobody"]).dense).all()


def test_unknown_users_have_nothing(store: UserStore) -> None:
    store.put(["anna"], *rows(ANNA))
    found = store.get([b"", b"x" * 10_000, b"anna", b"ann", b"annaa", b"\xff\0"])
    assert found.known.tolist() == [False, False, True, False, False, False]
    assert found.unreadable == 0
    for row in (0, 1, 3, 4, 5):
        assert np.isnan(found.dense[row]).all()
        assert found.categorical[row].tolist() == [b""] * 3


def test_no_users_are_no_work(store: UserStore) -> None:
    store.put([], *rows())
    assert len(store.get([]).known) == 0


def test_a_user_is_replaced_as_a_whole(store: UserStore) -> None:
    store.put(["anna"], *rows(ANNA))
    store.put(["anna"], *rows(BENO))
    expected = rows(BENO)
    found = store.get([b"anna"])
    np.testing.assert_array_equal(found.dense, expected[0])
    np.testing.assert_array_equal(found.categorical, expected[1])


def test_new_members_come_first_and_no_more_are_kept_than_are_read(store: UserStore) -> None:
    store.put(["anna", "beno"], *rows(ANNA, BENO))
    store.append("anna", "history", ["c"])
    store.append("anna", "history", ["d", "e"])
    store.append("new", "history", [1, 2, 3, 4, 5, 6])
    store.append_many([Event("beno", "seen", ["y"]), Event("beno", "seen", ["z"])])
    found = store.get([b"anna", b"new", b"beno"])
    assert found.categorical[:, 1].tolist() == [b"e|d|c|a", b"6|5|4|3", b""]
    assert found.categorical[:, 2].tolist() == [b"", b"", b"z|y|x"]
    assert found.known.all()
    untouched = rows(ANNA, {}, BENO)
    np.testing.assert_array_equal(found.dense, untouched[0])
    np.testing.assert_array_equal(found.categorical[:, 0], untouched[1][:, 0])
    encoder = Encoder(SCHEMA, {})
    history = SCHEMA.ids("user")[1]
    _, ids = encoder.encode("user", found.dense, found.categorical)
    read = ids[0, 1 : 1 + history.length]
    np.testing.assert_array_equal(read, encoder.ids(history, [b"e|d|c|a"])[0])


def test_new_members_of_a_sequence_come_last() -> None:
    features = (IdFeature("played", "sequence", 3), IdFeature("seen"))
    layout = RequestLayout((), features, "0123456789abcdef")
    assert read_layout(layout_record(layout)) == layout
    record = Records(layout).append(None, "played", ["a", "b"])
    assert Records(layout).decode([record])[1].tolist() == [[b"a|b", b""]]
    record = Records(layout).append(record, "played", ["c", "d"])
    assert Records(layout).decode([record])[1].tolist() == [[b"b|c|d", b""]]


def test_a_layout_of_an_earlier_release_is_read() -> None:
    """In a store, and in config.pbtxt; neither knew sequences, and config.pbtxt no `items`."""
    old = {
        "dense": ["age"],
        "categorical": ["country", "history"],
        "bags": {"history": 4},
        "hash": "0123456789abcdef",
    }
    features = (IdFeature("country"), IdFeature("history", "bag", 4))
    layout = RequestLayout(("age",), features, "0123456789abcdef")
    assert read_layout(json.dumps(old).encode()) == layout
    assert {**json.loads(layout_record(layout)), "sequences": None} == {**old, "sequences": None}
    old["categorical"] = [
        {"name": "country", "bag": False, "length": 1},
        {"name": "history", "bag": True, "length": 4},
    ]
    assert RequestLayout.from_json(json.dumps(old), "0123456789abcdef") == layout
    assert json.loads(layout.to_json())["categorical"] == old["categorical"]
    with pytest.raises(LayoutError, match="does not list the features"):
        RequestLayout.from_json("[]", "")
    with pytest.raises(LayoutError, match="not the layout of a store"):
        read_layout(b'{"dense": []}')


def test_a_bag_stays_as_short_as_the_server_reads(store: UserStore) -> None:
    long = [f"{number:04d}" + "x" * 396 for number in range(40)]
    store.append("anna", "seen", long)
    (text,) = store.get([b"anna"]).categorical[:, 2]
    members = text.decode().split("|")
    assert members == long[::-1][: len(members)]
    assert 8192 - 401 < len(text) <= 8192


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (Event("a", "histori", ["x"]), "unknown feature 'histori': did you mean 'history'"),
        (Event("a", "country", ["x"]), "feature country is not a bag"),
        (Event("a", "age", ["x"]), "feature age is not a bag"),
        (Event("a", "history", "x"), "'x' came; expected a list"),
        (Event("a", "history", ["x|y"]), "members without"),
        (Event("a", "history", [None]), "None"),
        (Event("a", "history", ["x" * 9000]), "more than 8192 bytes"),
        (Event("", "history", ["x"]), "user id"),
        (Event("a" * 500, "history", ["x"]), "user id"),
        (Event(1.5, "history", ["x"]), "user id 1.5"),  # type: ignore[arg-type]
        (Event(True, "history", ["x"]), "user id True"),
    ],
)
def test_an_event_at_fault_is_named_and_nothing_is_written(
    store: UserStore, event: Event, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message.replace("|", r"\|")):
        store.append_many([Event("good", "history", ["x"]), event])
    assert not store.get([b"good"]).known[0]


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ({"age": np.inf}, "feature age: inf is not a finite number"),
        ({"country": b"\xff"}, r"feature country: .* is not UTF-8"),
        ({"country": b"\xc3"}, r"feature country: .* is not UTF-8"),
        ({"history": b"x" * 9000}, "feature history: a value of 9000 bytes"),
    ],
)
def test_what_no_model_reads_is_not_stored(
    store: UserStore, user: dict[str, Any], message: str
) -> None:
    dense, categorical = rows(ANNA, {})
    for name, value in user.items():
        if name == "age":
            dense[1, 0] = value
        else:
            categorical[1, LAYOUT.columns[name]] = value
    with pytest.raises(InvalidInput, match=message):
        store.put(["anna", "bad"], dense, categorical)
    assert not store.get([b"anna"]).known[0]


def test_users_of_other_features_are_refused_by_name(url: str) -> None:
    with UserStore.create(url, LAYOUT) as store:
        store.put(["anna"], *rows(ANNA))
    with pytest.raises(OtherLayout, match=r"only one of the two has country, .*--replace"):
        UserStore.create(url, OTHER)
    with UserStore.open(url) as store:
        assert store.layout == LAYOUT
        assert store.get([b"anna"]).known[0]
    with UserStore.create(url, OTHER, replace=True) as store:
        found = store.get([b"anna", b"beno"])  # a record says itself what it is
        assert found.known.tolist() == [False, False]
        assert found.unreadable == 1
        store.put(["anna"], *OTHER.empty())
        assert store.get([b"anna"]).known[0]


def test_those_who_are_not_kept_are_gone(store: UserStore) -> None:
    many = 25_000
    store.put(range(many), *LAYOUT.empty(many))
    kept = {b"3", b"77", b"24999", b"unknown"}
    assert store.keep_only(kept) == many - 3
    found = store.get([b"3", b"77", b"24999", b"0", b"12345"])
    assert found.known.tolist() == [True, True, True, False, False]
    with UserStore(store._backend, LAYOUT) as same:
        assert sorted(set(same._backend.ids())) == [b"24999", b"3", b"77"]


# --- several processes


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def event_lines(user: str, feature: str, members: list[str]) -> str:
    return "".join(
        json.dumps({"user_id": user, "feature": feature, "values": [member]}) + "\n"
        for member in members
    )


def test_concurrent_writers_lose_nothing_and_readers_see_it(
    store: UserStore, url: str, tmp_path: Path
) -> None:
    """Four commands append to the same two users, one event at a time, while this process reads."""
    writers, each = 4, 25
    program = (
        "import sys; from cascade.store import UserStore\n"
        "with UserStore.open(sys.argv[1]) as store:\n"
        "    for line in range(int(sys.argv[3])):\n"
        "        for user in ('anna', 'beno'):\n"
        "            store.append(user, 'seen', [f'{sys.argv[2]}-{line}'])\n"
    )
    store.put(["anna"], *rows(ANNA))
    running = [start(program, url, str(writer), str(each)) for writer in range(writers)]
    seen = 0
    while any(process.poll() is None for process in running):
        found = store.get([b"anna"]).categorical[0, 2]
        members = found.split(b"|") if found else []
        assert len(members) >= seen  # what was there once stays
        seen = len(members)
    assert [process.returncode for process in running] == [0] * writers
    expected = {f"{writer}-{line}".encode() for writer in range(writers) for line in range(each)}
    for user in (b"anna", b"beno"):
        assert set(store.get([user]).categorical[0, 2].split(b"|")) == expected


ALTERNATE = """
import sys
import numpy as np
from cascade.store import UserStore

with UserStore.open(sys.argv[1]) as store:
    print("ready", flush=True)
    for turn in range(10**9):
        dense, categorical = store.layout.empty(2)
        dense[:] = turn
        categorical[:, 0] = str(turn).encode() * 300
        store.put(["anna", "beno"], dense, categorical)
"""


def test_no_reader_sees_half_a_user_even_if_the_writer_is_killed(
    store: UserStore, url: str
) -> None:
    writer = start(ALTERNATE, url)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    turns: set[float] = set()

    def check() -> None:
        found = store.get([b"anna", b"beno"])
        for dense, texts, known in zip(found.dense, found.categorical, found.known, strict=True):
            if known:
                assert dense[0] == dense[1]
                assert texts[0] == str(int(dense[0])).encode() * 300
                turns.add(dense[0])
        if url.startswith("lmdb"):  # a call is one transaction
            assert len({*found.dense[found.known, 0].tolist()}) <= 1

    deadline = time.monotonic() + 30
    while len(turns) < 50 and time.monotonic() < deadline:
        check()
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    check()
    assert len(turns) > 1
    store.put(["anna"], *rows(ANNA))  # nobody holds a lock
    assert store.get([b"anna"]).categorical[0, 0] == b"fr"


# --- what each has of its own


def test_an_embedded_store_that_is_made_again_is_read_again(tmp_path: Path) -> None:
    path, moved = tmp_path / "users", tmp_path / "moved"
    reader = open_backend(f"lmdb:{path}")
    with pytest.raises(StoreError, match="No such file"):
        reader.get([b"anna"])
    for user in (ANNA, BENO):
        program = (
            "import sys, json; from cascade.store import UserStore\n"
            "from cascade.store.records import read_layout\n"
            "layout = read_layout(sys.argv[2])\n"
            "dense, categorical = layout.empty()\n"
            "layout.fill(json.loads(sys.argv[3]), dense[0], categorical[0])\n"
            "UserStore.create(sys.argv[1], layout).put(['anna'], dense, categorical)\n"
        )
        writer = start(program, f"lmdb:{path}", layout_record(LAYOUT).decode(), json.dumps(user))
        assert writer.wait() == 0
        assert reader.get([b"anna"]) == Records(LAYOUT).encode(*rows(user))
        path.rename(moved)
        with pytest.raises(StoreError, match="No such file"):
            _ask_until_it_fails(reader)
        moved.rename(tmp_path / f"old-{user['visits']}")


def _ask_until_it_fails(reader: Any) -> None:
    """It looks for the file once in a while."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        reader.get([b"anna"])


@pytest.mark.parametrize("left", [0, 4096, 2 * 4096, 30_000])
def test_an_embedded_store_that_was_cut_off_is_not_read(tmp_path: Path, left: int) -> None:
    """In a process of its own, which the kernel would end; it looks before it reads."""
    url, file = f"lmdb:{tmp_path}", tmp_path / "data.mdb"
    with UserStore.create(url, LAYOUT) as store:
        store.put(range(1000), *LAYOUT.empty(1000))
    whole = file.read_bytes()
    program = (
        "import sys\n"
        "from cascade.store import lmdb_store, open_backend\n"
        "lmdb_store.CHECK_PERIOD_S = 0\n"
        "reader = open_backend(sys.argv[1])\n"
        "for line in sys.stdin:\n"
        "    try:\n"
        "        print(reader.get([b'999'])[0] is not None, flush=True)\n"
        "    except Exception as error:\n"
        "        print(error, flush=True)\n"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", program, url]
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as reader:

        def ask() -> str:
            assert reader.stdin is not None
            assert reader.stdout is not None
            reader.stdin.write("\n")
            reader.stdin.flush()
            return reader.stdout.readline().strip()

        assert ask() == "True"
        os.truncate(file, left)
        for _ in range(2):
            assert f"lmdb:{tmp_path}: " in ask()
        with pytest.raises(StoreError):
            UserStore.open(url)
        file.write_bytes(whole)
        assert ask() == "True"
        assert reader.stdin is not None
        reader.stdin.close()


def test_a_writer_says_that_it_waits_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lmdb_store, "TOLD_AFTER_S", 0.2)
    program = (
        "import lmdb, sys, time\n"
        "with lmdb.open(sys.argv[1]).begin(write=True):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(1)\n"
    )
    with UserStore.create(f"lmdb:{tmp_path}", LAYOUT) as store:
        holder = start(program, str(tmp_path))
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        store.put(["anna"], *rows(ANNA))
        assert holder.wait() == 0
        assert store.get([b"anna"]).known[0]
    assert "another process writes to it; waiting" in capfd.readouterr().err


def test_a_failed_start_of_an_embedded_store_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of its first two pages, as a full disk leaves them."""
    import lmdb

    def fails(*_: object, **__: object) -> None:
        (tmp_path / "data.mdb").write_bytes(bytes(4096))
        raise lmdb.DiskError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(lmdb, "open", fails)
        with pytest.raises(StoreError, match="No space left"):
            UserStore.create(f"lmdb:{tmp_path}", LAYOUT)
    with UserStore.create(f"lmdb:{tmp_path}", LAYOUT) as store:
        store.put(["anna"], *rows(ANNA))


@pytest.mark.parametrize("words", [b"+OK\r\n", b":1\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_what_is_no_redis_is_an_error(words: bytes) -> None:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while self.request.recv(1 << 16):
                self.request.sendall(words)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        reader = open_backend(f"redis://127.0.0.1:{port}/0?timeout_ms=2000")
        with pytest.raises(StoreError):
            reader.get([b"anna"])
        with suppress(StoreError):
            assert reader.layout() == b"OK"
        reader.close()
        server.shutdown()


def test_a_redis_that_is_gone_or_silent_is_an_error_and_may_come_back(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        store = UserStore.create(server.url(), LAYOUT)
        store.put(["anna"], *rows(ANNA))
        server.kill()
        with pytest.raises(StoreError, match=r"127\.0\.0\.1"):
            store.get([b"anna"])
        server.start()
        assert store.get([b"anna"]).known[0]
        store.close()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        reader = open_backend(f"redis://user:secret@127.0.0.1:{port}/0?timeout_ms=5")
        with pytest.raises(StoreError, match="Timeout") as caught:
            reader.get([b"anna"])
    assert "secret" not in str(caught.value) + reader.url


def test_a_name_server_that_is_silent_costs_no_more_than_the_timeout(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, real = threading.Event(), socket.getaddrinfo

    def resolve(host: str, *more: Any, **options: Any) -> Any:
        if not answers.is_set():
            answers.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "temporary failure in name resolution")
        return real("127.0.0.1", *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    url = redis_server.url().replace("127.0.0.1", "users.invalid")
    reader = open_backend(f"{url}?timeout_ms=5")
    for _ in range(2):
        with pytest.raises(StoreError, match=r"no address of users\.invalid within 5 ms"):
            reader.layout()
    answers.set()
    deadline = time.monotonic() + 30
    while True:
        with suppress(StoreError):
            reader.layout()
            break
        assert time.monotonic() < deadline, "the name does not resolve again"
    reader.close()


# --- names of stores


@pytest.mark.parametrize("url", ["", "lmdb:", "users.lmdb", "http://host/1", "redis:"])
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"expected lmdb:PATH or one of redis, rediss, unix"):
        open_backend(url)


@pytest.mark.parametrize("timeout", ["0", "-1", "soon", "inf", "nan"])
def test_a_timeout_is_a_time(timeout: str) -> None:
    with pytest.raises(ValueError, match="timeout_ms is a number above 0"):
        open_backend(f"redis://h/0?timeout_ms={timeout}")


def test_a_url_may_name_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USERS_OF_A_TEST", str(tmp_path))
    assert open_backend("lmdb:$USERS_OF_A_TEST/x").url == f"lmdb:{tmp_path}/x"
    (tmp_path / "$USERS_OF_A_TEST").mkdir()  # a folder's own name
    assert open_backend(f"lmdb:{tmp_path}/$USERS_OF_A_TEST/x").url.endswith("/$USERS_OF_A_TEST/x")
    assert open_backend("lmdb:${USERS_OF_A_TEST}/x").url == f"lmdb:{tmp_path}/x"
    for url in ("redis://:$NOT_SET_HERE@host/0", "lmdb:${NOT_SET_HERE}/x"):
        with pytest.raises(StoreError, match="the environment has no NOT_SET_HERE"):
            open_backend(url)
    assert absolute_url("lmdb:$USERS/x") == "lmdb:$USERS/x"
    monkeypatch.chdir(tmp_path)
    assert absolute_url("lmdb:x") == f"lmdb:{tmp_path}/x"
    assert absolute_url("") == ""
    assert absolute_url("redis://me:$SECRET@host/0") == "redis://me:$SECRET@host/0"
    for url in ("redis://:word@host/0", "rediss://me:a$b@host/0", "redis://host/0?password=word"):
        with pytest.raises(StoreError, match=r"write \$NAME in its place") as caught:
            absolute_url(url)
        assert "word@" not in str(caught.value)
    assert without_password("redis://:pw@host:1/2?password=pw") == "redis://...@host:1/2"


def test_an_empty_store_is_not_opened_or_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"is empty: .*export users"):
        UserStore.open(f"lmdb:{tmp_path / 'typo'}")
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("package", ["lmdb", "redis"])
def test_a_missing_package_is_named_with_its_remedy(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    url = "lmdb:x" if package == "lmdb" else "redis://h/0"
    with pytest.raises(StoreError, match=rf"needs {package}, .*pip install 'cascade\[store\]'"):
        open_backend(url)


def test_the_store_needs_no_torch() -> None:
    program = (
        "import sys, cascade.store.lmdb_store, cascade.store.redis_store\n"
        "import clients.events\n"
        "print({'torch', 'pyarrow', 'onnxruntime', 'faiss', 'lmdb', 'redis'} & set(sys.modules))"
    )
    done = start(program)
    assert done.communicate()[0] == "set()\n"


# --- the breaker


def test_the_breaker_spares_and_tries_again() -> None:
    now = 0.0
    breaker = CircuitBreaker(failures=3, pause_s=2.0, clock=lambda: now)
    for _ in range(3):
        assert breaker.allows()
        breaker.failed()
    assert breaker.open
    assert not breaker.allows()
    now = 2.0
    assert breaker.allows()  # one tries
    breaker.failed()
    assert not breaker.allows()
    now = 4.0
    assert breaker.allows()
    breaker.succeeded()
    assert not breaker.open
    breaker.failed()  # one failure is none
    assert breaker.allows()


# --- the command


def test_events_from_a_file_and_from_a_pipe(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with UserStore.create(url, LAYOUT) as store:
        store.put(["anna"], *rows(ANNA))
    file = tmp_path / "events.jsonl"
    bad = '{"user_id": 1}\nnot json\n\n{"user_id": "x", "feature": "age", "values": [1]}\n'
    file.write_text(event_lines("anna", "history", ["c"]) + bad + event_lines("7", "seen", ["q"]))
    assert status(events.main, ["--store", url, str(file)]) == 1
    said = capsys.readouterr().err
    assert "line 2: an event is an object of user_id, feature, values; ['user_id'] came" in said
    assert "line 3: not JSON" in said
    assert "line 5: feature age is not a bag" in said
    assert "2 events written, 3 refused" in said
    lines = event_lines("anna", "history", ["d", "e"]).rstrip("\n")  # the last one unfinished
    command = [sys.executable, "-m", "clients.events", "--store", url]
    subprocess.run(command, input=lines, text=True, check=True, cwd=ROOT)
    with UserStore.open(url) as store:
        found = store.get([b"anna", b"7"])
    assert found.categorical[0, 1] == b"e|d|c|a"
    assert found.categorical[1, 2] == b"q"


def test_events_that_are_in_a_pipe_are_written_while_it_is_open(url: str) -> None:
    with UserStore.create(url, LAYOUT) as store:
        store.put(["anna"], *rows(ANNA))
    command = [sys.executable, "-m", "clients.events", "--store", url]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT)
    assert writer.stdin is not None
    writer.stdin.write(event_lines("anna", "history", ["c"]).encode())
    writer.stdin.flush()
    reader = open_backend(url, writable=True)  # which may wait longer
    records = Records(LAYOUT)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        (record,) = reader.get([b"anna"])
        assert record is not None
        if records.decode([record])[1][0, 1] == b"c|a|b":
            break
        time.sleep(0.01)
    else:
        pytest.fail("the event was not written")
    writer.stdin.close()
    assert writer.wait() == 0
    reader.close()


def test_the_command_says_in_one_line_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(events.main, ["--store", "nonsense"]) == 1
    assert "error: store 'nonsense': expected lmdb:PATH" in capsys.readouterr().err
    assert status(events.main, ["--store", f"lmdb:{tmp_path / 'no'}"]) == 1
    assert "is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 100_000, "not JSON that can be read: it is nested too deeply"),
        (event_lines("\ud800", "history", ["c"]), r"user id '\ud800': expected a text"),
        (event_lines("anna", "history", ["\ud800"]), r"feature history: '\ud800' (str) came"),
        ('{"user_id": 1, "feature": "history", "values": [], "values": [1]}', "'values' twice"),
    ],
)
def test_an_event_that_cannot_be_read_is_left_out(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    with UserStore.create(url, LAYOUT):
        pass
    file = tmp_path / "events.jsonl"
    file.write_text(line.rstrip() + "\n" + event_lines("7", "seen", ["q"]))
    assert status(events.main, ["--store", url, str(file)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("line 1: ")
    assert message in said
    assert "1 events written, 1 refused" in said
