"""The network between clients, publishers, probes and a real server: connections that go dead
without a word, proxies, names, addresses, sizes; and what gRPC would do by default."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient import grpc
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from cascade.client import (
    AsyncRecommender,
    DeadlineExceeded,
    Recommender,
    RecommendError,
    Unavailable,
    channel,
)
from cascade.client.errors import no_address
from cascade.server import health, probe
from cascade.server.binaries import loader_environment
from cascade.server.launcher import Server
from cascade.spec import ENSEMBLE
from export.releases.control import Control
from tests.network import HttpProxy, Names, Relay
from tests.server.test_clients import Blocking, write_repository

PATIENCE_S = 30.0  # of a test, for what takes a few seconds
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
CLOSED = "http://127.0.0.1:9"  # nothing listens on this port
ECHO = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        values = [pb_utils.get_input_tensor_by_name(r, "x").as_numpy() for r in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", value)]) for value in values]
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of the clients' tests, and one that answers what it was asked."""
    folder = tmp_path_factory.mktemp("repository")
    write_repository(folder)
    config = model_config_pb2.ModelConfig(name="echo", backend="python")
    for declared, name in ((config.input, "x"), (config.output, "y")):
        declared.add(name=name, data_type=model_config_pb2.TYPE_FP32, dims=[-1])
    config.instance_group.add(count=1, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    (folder / "echo" / "1").mkdir(parents=True)
    (folder / "echo" / "config.pbtxt").write_text(text_format.MessageToString(config))
    (folder / "echo" / "1" / "model.py").write_text(ECHO)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    """Listens on an address of IPv6, and asks its clients to connect again all the time."""
    age = ("--grpc-max-connection-age=500",)
    with Server(repository, host="::1", extra_args=age) as server:
        yield server


@pytest.fixture
def relay(server: Server) -> Iterator[Relay]:
    with Relay(server.url) as relay:
        yield relay


Client = Callable[..., Any]


@pytest.fixture(params=[Recommender, Blocking], ids=["sync", "asyncio"])
def client(request: pytest.FixtureRequest) -> Client:
    kind: Client = request.param
    return kind


def until(ask: Callable[[], Any], *failures: type[Exception]) -> Any:
    """What `ask` returns when it succeeds at last."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ask()
        except failures:
            if time.monotonic() > end:
                raise


# --- connections that go dead


@pytest.mark.parametrize(("deadline_s", "pause_s"), [(1.0, 0.0), (0.1, 0.0), (0.1, 0.9)])
def test_a_dead_connection_is_left(
    relay: Relay, client: Client, deadline_s: float, pause_s: float
) -> None:
    """Whether calls wait longer than gRPC's keepalive needs, or not, or hardly ever."""
    mine = iter([("grpc.primary_user_agent", "test")])  # read once, for every connection
    with client(relay.url, deadline_s=30, channel_args=mine) as recommender:
        recommender.recommend({})
        relay.freeze()

        def ask() -> Any:
            time.sleep(pause_s)
            return recommender.recommend({"base": 3}, deadline_s=deadline_s)

        assert until(ask, DeadlineExceeded, Unavailable).item_ids[0] == 300
        assert recommender.recommend({"base": 4}).item_ids[0] == 400


def test_a_long_call_outlives_its_connection(relay: Relay, client: Client) -> None:
    """A ping without an answer ends the wait, and the call is made again within its deadline."""
    with client(relay.url, deadline_s=PATIENCE_S) as recommender:
        recommender.recommend({})
        relay.freeze()
        assert recommender.recommend({"base": 3}).item_ids[0] == 300


def test_calls_that_their_callers_cancel_count(relay: Relay) -> None:
    async def ask() -> int:
        async with AsyncRecommender(relay.url, deadline_s=PATIENCE_S) as recommender:
            await recommender.recommend({})
            relay.freeze()
            for _ in range(int(PATIENCE_S / 0.2)):
                try:
                    found = await asyncio.wait_for(recommender.recommend({"base": 3}), 0.2)
                    return int(found.item_ids[0])
                except asyncio.TimeoutError:
                    pass
        return 0

    assert asyncio.run(ask()) == 300


@pytest.mark.parametrize("kind", [Recommender, AsyncRecommender])
def test_another_connection_leaves_calls_under_way_alone(relay: Relay, kind: Any) -> None:
    """Calls that cannot be answered in time, because the model is busy with a long one, look like a
    dead connection; the long one is answered all the same."""

    async def ask(recommender: Any, wish: str, deadline_s: float) -> Any:
        call = lambda: recommender.recommend({"wish": wish}, deadline_s=deadline_s)  # noqa: E731
        return await (call() if kind is AsyncRecommender else asyncio.to_thread(call))

    async def all_asked() -> Any:
        recommender = kind(relay.url)
        await ask(recommender, "", PATIENCE_S)
        long = asyncio.create_task(ask(recommender, "sleep:4", PATIENCE_S))
        await asyncio.sleep(0.1)
        before = relay.accepted
        while relay.accepted == before and not long.done():
            with pytest.raises(DeadlineExceeded):
                await ask(recommender, "", 0.2)
        assert relay.accepted > before
        answer = await long
        closing = recommender.close()
        if kind is AsyncRecommender:
            await closing
        return answer

    assert len(asyncio.run(all_asked()).item_ids) == 10


def test_a_publisher_outlives_a_dead_connection(relay: Relay, server: Server) -> None:
    control = Control(relay.url, server.control_headers)
    value = np.arange(3, dtype=np.float32)
    control.ask("echo", None, {"x": value})
    relay.freeze()
    control.load("echo", model_config_pb2.ModelConfig(), signed=False)
    relay.freeze()
    assert control.ask("echo", None, {"x": value})["y"].tolist() == [0, 1, 2]


def test_a_launcher_outlives_a_dead_connection(relay: Relay, server: Server) -> None:
    """The long-lived client of the supervisor, whose canaries may take so long each."""

    class Remote(Server):
        url = relay.url  # type: ignore[assignment]

    with Remote(server.repository).connect() as client:
        probe.ask_until_available(client, ENSEMBLE, 2.0)
        relay.freeze()
        until(lambda: probe.ask_until_available(client, ENSEMBLE, 2.0), InferenceServerException)


def test_silence_counts_misses_and_time() -> None:
    now = 0.0
    silence = channel.Silence(lambda: now)
    assert [silence.missed() for _ in range(5)] == [False] * 5  # only just opened
    now = 2.5
    assert silence.missed()
    for now, expected in ((4.0, False), (5.0, False), (6.0, False), (6.6, True), (10.0, False)):
        assert silence.missed() is expected, now  # twice as long, from one to the next
    silence.answered()
    now = 12.1
    assert [silence.missed() for _ in range(3)] == [False, False, True]


# --- proxies


def proxied(monkeypatch: pytest.MonkeyPatch, proxy: str, *variables: str) -> None:
    for name in (*PROXIES, "no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in variables:
        monkeypatch.setenv(name, proxy)


def test_a_launcher_asks_its_server_without_a_proxy(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxied(monkeypatch, CLOSED, *PROXIES)
    with Server(repository, models=["granter", ENSEMBLE]) as server:
        assert health.main(["--url", server.url]) == 0


@pytest.mark.parametrize("variable", PROXIES)
def test_nothing_for_this_machine_goes_through_a_proxy(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    proxied(monkeypatch, CLOSED, variable)
    port = relay.url.rpartition(":")[2]
    for url in (relay.url, f"localhost:{port}", f"dns:///localhost:{port}"):
        for client in (Recommender, Blocking):
            with client(url, deadline_s=5) as recommender:
                recommender.recommend({})
        assert health.main(["--url", url]) == 0
    Control(relay.url).release()


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY", "no_grpc_proxy"])
@pytest.mark.parametrize("hosts", ["", "example.com", "*"])
def test_programs_of_triton_have_no_proxy_to_this_machine(
    monkeypatch: pytest.MonkeyPatch, name: str, hosts: str
) -> None:
    proxied(monkeypatch, CLOSED, "http_proxy")
    monkeypatch.setenv(name, hosts)
    found = loader_environment(())
    assert found["http_proxy"] == CLOSED
    here = {"localhost", "127.0.0.1", "::1"}
    assert {*found["no_grpc_proxy"].split(",")} >= here
    assert found["no_proxy"] == "*" or {*found["no_proxy"].split(",")} >= here
    read = "no_proxy" if name == "NO_PROXY" else name
    assert hosts in found[read].split(",") or not hosts


@pytest.mark.parametrize("variable", PROXIES)
def test_other_machines_are_asked_through_the_proxy(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    with HttpProxy(server.url) as proxy:
        proxied(monkeypatch, f"http://{proxy.url}", variable)
        through = "CONNECT cascade.test:8001 HTTP/1.1"
        with client("cascade.test:8001", deadline_s=10) as recommender:
            assert recommender.recommend({"base": 3}).item_ids[0] == 300
        assert proxy.asked.count(through) == 1
        monkeypatch.setenv("no_proxy", "cascade.test")
        direct: dict[str, Any] = {"channel_args": {"grpc.enable_http_proxy": 0}}
        for options in ({}, direct):
            with (
                client("cascade.test:8001", deadline_s=1, **options) as recommender,
                pytest.raises((Unavailable, DeadlineExceeded)),
            ):
                recommender.recommend({})
            monkeypatch.delenv("no_proxy", raising=False)
        assert proxy.asked.count(through) == 1


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("127.0.0.1:8001", True),
        ("127.8.9.1:8001", True),
        ("localhost:8001", True),
        ("LocalHost.:8001", True),
        ("localhost", True),
        ("[::1]:8001", True),
        ("[::ffff:127.0.0.1]:8001", True),
        ("0.0.0.0:8001", True),
        ("[::]:8001", True),
        ("unix:/run/cascade.sock", True),
        ("unix:///run/cascade.sock", True),
        ("dns:///localhost:8001", True),
        ("dns:localhost:8001", True),
        ("dns://8.8.8.8/localhost:8001", True),
        ("ipv4:127.0.0.1:8001", True),
        ("ipv6:[::1]:8001", True),
        ("10.0.0.1:8001", False),
        ("ipv4:10.0.0.1:8001", False),
        ("[2001:db8::1]:8001", False),
        ("cascade:8001", False),
        ("dns:///cascade:8001", False),
        ("dns://127.0.0.1/cascade:8001", False),
        ("localhost.example.com:8001", False),
        ("127.0.0.1.example.com:8001", False),
    ],
)
def test_what_names_this_machine(url: str, local: bool) -> None:
    assert channel.is_local(url) is local


# --- names, addresses, sizes, pings


def test_a_name_that_appears_later_or_moves_is_found(server: Server, client: Client) -> None:
    names = Names()
    with ExitStack() as stack:
        first = stack.enter_context(Relay(server.url))
        port = first.url.rpartition(":")[2]
        recommender = stack.enter_context(client(names.url("cascade.test", port), deadline_s=1))

        def ask() -> Any:
            return recommender.recommend({"base": 3})

        for _ in range(4):
            with pytest.raises((Unavailable, DeadlineExceeded)):
                ask()
        names.address = "127.0.0.1"
        assert until(ask, Unavailable, DeadlineExceeded).item_ids[0] == 300
        first.__exit__()
        second = stack.enter_context(Relay(server.url, ("127.0.0.2", int(port))))
        with pytest.raises((Unavailable, DeadlineExceeded)):
            ask()
        names.address = "127.0.0.2"
        assert until(ask, Unavailable, DeadlineExceeded).item_ids[0] == 300
        assert second.accepted


def test_a_name_without_an_address_is_known_as_such() -> None:
    with (
        channel.connect(Names().url("cascade.test", "8001")) as client,
        pytest.raises(InferenceServerException) as raised,
    ):
        client.is_server_live(client_timeout=PATIENCE_S)
    assert no_address(raised.value)


def test_answers_and_errors_of_any_size_arrive(server: Server) -> None:
    large = np.arange(2_000_000, dtype=np.float32)  # 8 MB; gRPC's own limit is 4 MiB
    for connected in (server.connect(), channel.connect(server.url)):
        tensor = grpc.InferInput("x", large.shape, "FP32").set_data_from_numpy(large)
        with connected:
            answer = connected.infer("echo", [tensor], client_timeout=PATIENCE_S)
            np.testing.assert_array_equal(answer.as_numpy("y"), large)
    np.testing.assert_array_equal(Control(server.url).ask("echo", None, {"x": large})["y"], large)


def test_a_long_error_arrives(server: Server, client: Client) -> None:
    with (
        client(server.url, deadline_s=5, model="m" * 50_000) as recommender,
        pytest.raises(RecommendError, match=r"unknown model: 'm{50000}'"),
    ):
        recommender.recommend({})


def test_the_server_accepts_many_pings(server: Server) -> None:
    """Server 2.51 hangs up on the fifth within five minutes by default."""
    often = {"grpc.keepalive_time_ms": 250, "grpc.http2.max_pings_without_data": 0}
    with Recommender(server.url, deadline_s=PATIENCE_S, channel_args=often) as recommender:
        recommender.recommend({"wish": "sleep:3"})


def test_connections_are_renewed_without_a_failure(relay: Relay, client: Client) -> None:
    """The server of this module asks for another connection every half second."""
    with client(relay.url, deadline_s=5) as recommender:
        end = time.monotonic() + 2
        while time.monotonic() < end or relay.accepted < 3:
            recommender.recommend({})


# --- what a caller may say of its channel


def test_channel_arguments_of_a_caller_win() -> None:
    mine = dict(channel.arguments("127.0.0.1:8001", {"grpc.keepalive_time_ms": 7, "grpc.x": "y"}))
    ours = dict(channel.arguments("127.0.0.1:8001"))
    assert mine == {**ours, "grpc.keepalive_time_ms": 7, "grpc.x": "y"}
    assert ours["grpc.enable_http_proxy"] == 0
    assert "grpc.enable_http_proxy" not in dict(channel.arguments("cascade:8001"))
    as_pairs = iter([("grpc.keepalive_time_ms", 7), ("grpc.x", "y")])
    assert dict(channel.arguments("127.0.0.1:8001", as_pairs)) == mine


@pytest.mark.parametrize("wrong", [5, "grpc.x", [("grpc.x",)], {"grpc.x": 1.5}, {3: 4}])
@pytest.mark.parametrize("kind", [Recommender, AsyncRecommender])
def test_channel_arguments_that_grpc_cannot_take_are_refused(kind: Any, wrong: Any) -> None:
    with pytest.raises(channel.ChannelError, match=r"channel_args: .* came; expected gRPC's"):
        kind("127.0.0.1:8001", channel_args=wrong)
