"""The clients against a real tritonserver, whose model answers by a rule that the test knows.

The ensemble `recommend` has one step, a Python model. Its item ids follow from the user's numbers
and a checksum of his categories; the feature `wish` makes it refuse, crash, be busy or slow.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import sys
import threading
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from cascade import spec
from cascade.client import (
    AsyncRecommender,
    DeadlineExceeded,
    InvalidInput,
    Recommendation,
    Recommender,
    RecommendError,
    Retry,
    Tls,
    Unavailable,
)
from cascade.layout import RequestLayout
from cascade.schema import Feature, Schema
from cascade.server.launcher import Server
from clients import batch, recommend
from tests.programs import status

ROOT = Path(__file__).parents[2]
MAX_BATCH = 4
SCHEMA = Schema(
    "wishes",
    (
        Feature("base", "user", "dense", "identity"),
        Feature("items", "user", "dense", "identity"),
        Feature("wish", "user", "categorical", "hash", buckets=9),
        Feature("tags", "user", "bag", "hash", length=3, buckets=9),
        Feature("price", "item", "dense", "identity"),
    ),
)

MODEL = """
import time
import zlib

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.seen = {}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        dense = pb_utils.get_input_tensor_by_name(request, "dense").as_numpy()
        categorical = pb_utils.get_input_tensor_by_name(request, "categorical").as_numpy()
        for wish, _ in categorical:
            refusal = self.grant(wish.decode())
            if refusal is not None:
                return pb_utils.InferenceResponse([], refusal)
        ids = np.empty((len(dense), 10), np.int64)
        for row, (base, items) in enumerate(dense):
            ids[row] = 100 * np.nan_to_num(base) + np.arange(10)
            ids[row, 9] = zlib.crc32(b"&".join(categorical[row]))
            if not np.isnan(items):
                ids[row, int(items):] = -1
        scores = np.where(ids == -1, 0, 1 / (1 + np.arange(10))).astype(np.float32)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("item_ids", ids), pb_utils.Tensor("scores", scores)]
        )

    def grant(self, wish):
        what, _, how = wish.partition(":")
        if what == "refuse":
            return pb_utils.TritonError("feature wish: refused", pb_utils.TritonError.INVALID_ARG)
        if what == "crash":
            raise RuntimeError("the model is broken")
        if what == "sleep":
            time.sleep(float(how))
        if what == "busy":
            key, _, times = how.partition(":")
            self.seen[key] = self.seen.get(key, 0) + 1
            if self.seen[key] <= int(times):
                return pb_utils.TritonError("too busy", pb_utils.TritonError.UNAVAILABLE)
"""


def config_of(name: str) -> Any:
    """A configuration with the tensors of a request and of an answer."""
    config = model_config_pb2.ModelConfig(name=name, max_batch_size=MAX_BATCH)
    first, *_, last = spec.stages(SCHEMA, spec.Sizes())
    for tensors, declared in ((first.inputs, config.input), (last.outputs, config.output)):
        for tensor in tensors:
            kind = "TYPE_STRING" if tensor.dtype == "BYTES" else f"TYPE_{tensor.dtype}"
            declared.add(
                name=tensor.name,
                data_type=model_config_pb2.DataType.Value(kind),
                dims=tensor.dims,
                **({"optional": True} if tensor.optional else {}),
            )
    return config


def ensemble_of(name: str, member: str) -> Any:
    config = config_of(name)
    config.platform = "ensemble"
    step = config.ensemble_scheduling.step.add(model_name=member, model_version=-1)
    for declared, mapped in ((config.input, step.input_map), (config.output, step.output_map)):
        for tensor in declared:
            mapped[tensor.name] = tensor.name
    config.parameters["features"].string_value = RequestLayout.of(SCHEMA).to_json()
    config.parameters["layout_hash"].string_value = SCHEMA.layout_hash
    return config


def write_repository(folder: Path) -> None:
    """`recommend` as an export has it, `crowded` with a short queue, and a `foreign` model."""
    members = [config_of("granter"), config_of("crowded_granter")]
    for member in members:
        member.backend = "python"
        member.instance_group.add(count=1, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    # With a queue policy and one instance alone, server 2.51 leaves requests lying for up to 0.5 s.
    members[1].instance_group[0].count = 2
    queue = members[1].dynamic_batching.default_queue_policy
    queue.timeout_action = model_config_pb2.ModelQueuePolicy.REJECT
    queue.default_timeout_microseconds = 60_000_000
    queue.allow_timeout_override = True
    queue.max_queue_size = 2
    foreign = ensemble_of("foreign", "granter")
    foreign.ClearField("parameters")
    ensembles = [ensemble_of(spec.ENSEMBLE, "granter"), ensemble_of("crowded", "crowded_granter")]
    for config in (*members, *ensembles, foreign):
        (folder / config.name / "1").mkdir(parents=True)
        (folder / config.name / "config.pbtxt").write_text(text_format.MessageToString(config))
        if config.backend:
            (folder / config.name / "1" / "model.py").write_text(MODEL)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repository = tmp_path_factory.mktemp("repository")
    write_repository(repository)
    with Server(repository) as server:
        yield server.url


@pytest.fixture(scope="module")
def closed_url() -> Iterator[str]:
    """A port that nobody listens on, held so that nobody else gets it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


class Blocking:
    """The asyncio client called like the sync one, for tests of both."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._twin = AsyncRecommender(*args, **options)

    def recommend(self, *args: Any, **options: Any) -> Recommendation:
        return self._loop.run_until_complete(self._twin.recommend(*args, **options))

    def recommend_many(self, *args: Any, **options: Any) -> list[Recommendation]:
        return self._loop.run_until_complete(self._twin.recommend_many(*args, **options))

    def layout(self, **options: Any) -> Any:
        return self._loop.run_until_complete(self._twin.layout(**options))

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._twin.close())
        self._loop.close()


Client = Callable[..., Any]


@pytest.fixture(params=[Recommender, Blocking], ids=["sync", "asyncio"])
def client(request: pytest.FixtureRequest) -> Client:
    """Either twin: everything below holds for both."""
    kind: Client = request.param
    return kind


def checksum(user: dict[str, Any]) -> int:
    tags = "|".join(user.get("tags", [])[:3])
    return zlib.crc32(f"{user.get('wish', '')}&{tags}".encode())


def expected_ids(user: dict[str, Any]) -> list[int]:
    ids = [100 * user.get("base", 0) + rank for rank in range(9)] + [checksum(user)]
    return ids[: user.get("items", 10)]


def unique() -> str:
    return uuid.uuid4().hex


def test_a_user_gets_his_items(url: str, client: Client) -> None:
    user = {"base": 7, "wish": "nœud", "tags": ["a", "b", "c", "d"]}
    with client(url) as recommender:
        answer = recommender.recommend(user)
    assert answer.item_ids.dtype == np.int64
    assert answer.item_ids.tolist() == expected_ids(user)
    assert answer.scores.dtype == np.float32
    np.testing.assert_allclose(answer.scores, 1 / np.arange(1, 11), rtol=1e-6)


def test_missing_features_and_a_small_catalogue(url: str, client: Client) -> None:
    with client(url) as recommender:
        assert recommender.recommend({}).item_ids.tolist() == expected_ids({})
        for items in (0, 1, 9):
            answer = recommender.recommend({"items": items})
            assert answer.item_ids.tolist() == expected_ids({})[:items]
            assert len(answer.scores) == items


def test_many_users_are_split_and_rejoined(url: str, client: Client) -> None:
    users = [
        {"base": row, "items": row % 11, "wish": f"w{row}"} for row in range(4 * MAX_BATCH + 1)
    ]
    with client(url) as recommender:
        found = recommender.recommend_many(users)
        assert recommender.recommend_many([]) == []
    assert [answer.item_ids.tolist() for answer in found] == [expected_ids(user) for user in users]


def test_the_server_names_the_features(url: str, client: Client) -> None:
    with client(url) as recommender:
        layout = recommender.layout()
    assert layout.names == ("base", "items", "wish", "tags")
    assert layout.max_batch_size == MAX_BATCH
    assert layout.layout_hash == SCHEMA.layout_hash


def test_busy_servers_are_asked_again(url: str, client: Client) -> None:
    with client(url, deadline_s=30, retry=Retry(tries=4, first_s=0.01)) as recommender:
        answer = recommender.recommend({"base": 3, "wish": f"busy:{unique()}:3"})
        assert answer.item_ids[0] == 300
        with pytest.raises(Unavailable, match=r"asked 4 times in .* too busy$") as caught:
            recommender.recommend({"wish": f"busy:{unique()}:4"})
    assert caught.value.tries == 4


def test_a_slow_answer_exceeds_the_deadline(url: str, client: Client) -> None:
    with client(url, deadline_s=30) as recommender:
        recommender.recommend({})
        with pytest.raises(DeadlineExceeded, match="within the deadline"):
            recommender.recommend({"wish": "sleep:0.6"}, deadline_s=0.1)
        assert recommender.recommend({"base": 1}).item_ids[0] == 100


def test_invalid_users_are_refused_here_or_there(url: str, client: Client) -> None:
    with client(url, deadline_s=30) as recommender:
        with pytest.raises(InvalidInput, match="feature base: 'x'"):
            recommender.recommend({"base": "x"})
        with pytest.raises(
            InvalidInput, match="user 1: unknown feature 'bas': did you mean 'base'"
        ):
            recommender.recommend_many([{}, {"bas": 3}])
        with pytest.raises(InvalidInput, match=r"feature wish: refused$"):
            recommender.recommend({"wish": "refuse"})


def test_a_broken_model_is_an_error_without_its_traceback(url: str, client: Client) -> None:
    with client(url, deadline_s=30) as recommender:
        with pytest.raises(RecommendError, match="the model is broken") as caught:
            recommender.recommend({"wish": "crash"})
        assert type(caught.value) is RecommendError
        assert "model.py" not in str(caught.value)
        assert recommender.recommend({"base": 1}).item_ids[0] == 100


def test_an_unknown_and_a_foreign_model(url: str, client: Client) -> None:
    with client(url, model="absent") as recommender, pytest.raises(RecommendError, match="absent"):
        recommender.recommend({})
    with client(url, model="foreign") as recommender, pytest.raises(RecommendError, match="export"):
        recommender.recommend({})


def test_nobody_listens(closed_url: str, client: Client) -> None:
    retry = Retry(tries=2, first_s=0.01)
    with (
        client(closed_url, deadline_s=30, retry=retry) as recommender,
        pytest.raises(Unavailable, match="asked 2 times"),
    ):
        recommender.recommend({})


def ask_crowd(url: str, users: int, retry: Retry, **options: Any) -> list[Any]:
    """Answers and failures of so many users who ask for 20 ms of work at the same time."""

    async def ask() -> list[Any]:
        options.setdefault("deadline_s", 60)
        async with AsyncRecommender(url, model="crowded", retry=retry, **options) as recommender:
            await recommender.layout(deadline_s=60)
            asked = ({"base": row, "wish": "sleep:0.02"} for row in range(users))
            return await asyncio.gather(*map(recommender.recommend, asked), return_exceptions=True)

    return asyncio.run(ask())


def test_a_full_queue_is_worth_asking_again(url: str) -> None:
    impatient = ask_crowd(url, 30, Retry(tries=1))
    refused = [answer for answer in impatient if isinstance(answer, Unavailable)]
    assert refused
    assert "queue" in str(refused[0])
    patient = ask_crowd(url, 30, Retry(tries=1000, longest_s=0.2))
    assert [answer.item_ids[0] for answer in patient] == [100 * row for row in range(30)]


def test_the_deadline_reaches_the_queue_of_a_member(url: str) -> None:
    """Who is still in the queue at his deadline is dropped there; whichever side notices first,
    the client is told in its own words."""
    users = 3  # two at work and one in the queue
    for answer in ask_crowd(url, users, Retry(tries=1), deadline_s=0.01):
        assert isinstance(answer, DeadlineExceeded | Unavailable)
    assert all(isinstance(answer, Recommendation) for answer in ask_crowd(url, users, Retry(9)))


def test_one_sync_client_serves_many_threads(url: str) -> None:
    answers: dict[int, list[int]] = {}
    with Recommender(url, deadline_s=60) as recommender:

        def ask(base: int) -> None:
            answers[base] = recommender.recommend({"base": base}).item_ids.tolist()

        threads = [threading.Thread(target=ask, args=(base,)) for base in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {base: expected_ids({"base": base}) for base in range(12)}


def test_asyncio_calls_overlap_and_can_be_cancelled(url: str) -> None:
    async def ask() -> list[Recommendation]:
        async with AsyncRecommender(url, deadline_s=60) as recommender:
            await recommender.layout()
            slow = asyncio.create_task(recommender.recommend({"wish": "sleep:0.3"}))
            await asyncio.sleep(0.05)
            slow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow
            return await asyncio.gather(*(recommender.recommend({"base": n}) for n in range(20)))

    found = asyncio.run(ask())
    assert [answer.item_ids[0] for answer in found] == [100 * n for n in range(20)]


def test_users_come_from_a_generator(url: str, client: Client) -> None:
    with client(url, deadline_s=30) as recommender:
        found = recommender.recommend_many({"base": row} for row in range(MAX_BATCH + 1))
    assert [answer.item_ids[0] for answer in found] == [100 * row for row in range(MAX_BATCH + 1)]


def test_an_asyncio_client_belongs_to_one_loop(url: str) -> None:
    recommender = AsyncRecommender(url, deadline_s=30)

    async def ask() -> Recommendation:
        return await recommender.recommend({"base": 1})

    assert asyncio.run(ask()).item_ids[0] == 100
    advice = "belongs to the event loop of its first call.* make a client inside it"
    for _ in range(2):
        with pytest.raises(RecommendError, match=advice) as caught:
            asyncio.run(ask())
        assert isinstance(caught.value, RuntimeError)
    asyncio.run(recommender.close())
    asyncio.run(recommender.close())


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_closed_client_says_so(url: str, client: Client, asked_before: bool) -> None:
    recommender = client(url, deadline_s=30)
    with recommender:
        if asked_before:
            recommender.recommend({})
        own = getattr(recommender, "_twin", recommender)
        loop = getattr(recommender, "_loop", None)
        for _ in range(2):
            loop.run_until_complete(own.close()) if loop else own.close()
        with pytest.raises(RecommendError, match="has been closed: make another"):
            recommender.recommend({})


# --- TLS: a proxy that ends TLS in front of the server, as production has it


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server certificate for 127.0.0.1, a client's, and a stranger's authority."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("ca", "stranger"):
        openssl(
            "req",
            "-x509",
            *new,
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.pem",
            "-days",
            "2",
            "-subj",
            f"/CN={name}",
        )
    for name in ("server", "client"):
        (folder / f"{name}.ext").write_text("subjectAltName=IP:127.0.0.1\n")
        openssl(
            "req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        openssl(
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            f"{name}.ext",
            "-out",
            f"{name}.pem",
        )
    return folder


@pytest.fixture(scope="module")
def tls_url(url: str, certificates: Path) -> Iterator[str]:
    """The server behind TLS 1.2 or later that wants to know its clients."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates / "ca.pem")
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # the other side has hung up, which ends this one too
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = url.split(":")
        there, back = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, back), pump(there, writer))

    async def listen() -> asyncio.Server:
        return await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context)

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result()
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def end() -> None:
        server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(end(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_tls_both_ways(tls_url: str, certificates: Path, client: Client) -> None:
    tls = Tls(*(certificates / name for name in ("ca.pem", "client.key", "client.pem")))
    with client(tls_url, deadline_s=30, tls=tls) as recommender:
        assert recommender.recommend({"base": 5}).item_ids[0] == 500


@pytest.mark.parametrize("files", [("stranger.pem", "client.key", "client.pem"), ("ca.pem",), None])
def test_tls_refuses_strangers(
    tls_url: str, certificates: Path, client: Client, files: tuple[str, ...] | None
) -> None:
    """A server of another authority, a client without a certificate, a client in clear."""
    tls = None if files is None else Tls(*(certificates / name for name in files))
    retry = Retry(tries=2, first_s=0.01)
    with (
        client(tls_url, deadline_s=30, tls=tls, retry=retry) as recommender,
        pytest.raises(Unavailable),
    ):
        recommender.recommend({})


def test_tls_on_the_command_line(
    tls_url: str, certificates: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--tls-ca", "ca.pem", "--tls-key", "client.key", "--tls-cert", "client.pem")
    options = [name if name.startswith("--") else str(certificates / name) for name in files]
    arguments = ["--url", tls_url, "--user", '{"base": 2}', "--json", *options]
    assert status(recommend.main, arguments) == 0
    assert json.loads(capsys.readouterr().out)["item_ids"][0] == 200
    assert status(recommend.main, ["--url", tls_url, "--user", "{}", *options[:4]]) == 1
    assert "come together" in capsys.readouterr().err


# --- command lines


def test_the_command_prints_a_table_with_titles(url: str, tmp_path: Path) -> None:
    titles = tmp_path / "titles.csv"
    titles.write_text('item_id,title\n300,Heat (1995)\n301,"City of Lost Children, The"\n')
    done = subprocess.run(
        [sys.executable, "-m", "clients.recommend", "--url", url, "--user",
         '{"base": 3, "items": 2}', "--titles", str(titles)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        'user {"base": 3, "items": 2}',
        "rank  item id  title                        score",
        "   1      300  Heat (1995)                 1.0000",
        "   2      301  City of Lost Children, The  0.5000",
        "      no more than 2 are left",
        "",
    ]


def test_the_command_draws_users(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--url", url, "--random", "6", "--seed", "3", "--json"]
    assert status(recommend.main, arguments) == 0
    first = capsys.readouterr().out
    lines = [json.loads(line) for line in first.splitlines()]
    assert len(lines) == 6
    assert {name for line in lines for name in line["user"]} == {"base", "items", "wish", "tags"}
    assert status(recommend.main, arguments) == 0
    assert capsys.readouterr().out == first
    users = tmp_path / "users.jsonl"
    users.write_text('{"base": 4}\n{"base": 5}\n')
    drawn_from = ["--random", "2", "--users", str(users)]
    assert status(recommend.main, ["--url", url, *drawn_from, "--json"]) == 0
    drawn = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(line["item_ids"][0] for line in drawn) == [400, 500]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--user", '{"bse": 3}'], "unknown feature 'bse': did you mean 'base'?"),
        (["--user", "{"], "--user 1: not JSON"),
        (["--user", '{"wish": "refuse"}'], "feature wish: refused"),
        (["--random", "--users", "absent.jsonl"], "absent.jsonl"),
        (["--random", "--titles", "absent.csv"], "absent.csv"),
        (["--random", "--tls-key", "absent.pem"], "come together"),
    ],
)
def test_the_command_fails_in_one_line(
    url: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(recommend.main, ["--url", url, *arguments]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert message in said.err
    assert said.err.count("\n") == 1


def write_users(path: Path, wishes: list[str | None]) -> None:
    rows = len(wishes)
    table = pa.table(
        {
            "uid": [f"u{row}" for row in range(rows)],
            "base": pa.array(range(rows), pa.int32()),
            "wish": pa.array(wishes, pa.string()),
            "tags": pa.array([["a", "b"][: row % 3] for row in range(rows)], pa.list_(pa.string())),
            "label": [1.0] * rows,
        }
    )
    pq.write_table(table, path, row_group_size=25)


def test_a_file_of_users_is_answered_in_order(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wishes = [f"busy:{unique()}:1" if row % 40 == 7 else None for row in range(130)]
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    write_users(source, wishes)
    files = [str(source), str(target)]
    options = ["--url", url, "--batch-size", "6", "--concurrency", "3", "--keep", "uid"]
    assert status(batch.main, [*files, *options]) == 0
    found = pq.read_table(target)
    assert found.column_names == ["uid", "item_ids", "scores", "error"]
    assert found["uid"].to_pylist() == [f"u{row}" for row in range(130)]
    assert found["item_ids"].to_pylist() == [
        expected_ids({"base": row, "wish": wishes[row] or "", "tags": ["a", "b"][: row % 3]})
        for row in range(130)
    ]
    assert found["error"].null_count == 130
    said = capsys.readouterr().err
    assert "sent as missing: items" in said
    assert "130/130" in said  # the progress bar
    assert "130 rows, 0 refused" in said


def test_refused_rows_say_why_and_their_neighbours_are_answered(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {0, 5, 6, 18}
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    write_users(source, ["refuse" if row in bad else None for row in range(19)])
    arguments = [str(source), str(target), "--url", url, "--batch-size", "8", "--no-progress"]
    assert status(batch.main, arguments) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-2].endswith("19 rows, 4 refused")
    assert said[-1].startswith(f"error: {source}, row 1: ")
    assert "feature wish: refused" in said[-1]
    found = pq.read_table(target).to_pylist()
    for row, answer in enumerate(found):
        if row in bad:
            assert answer["item_ids"] is None
            assert answer["error"].endswith("feature wish: refused")
        else:
            assert answer["item_ids"][0] == 100 * row
            assert answer["error"] is None
    assert status(batch.main, [*arguments, "--allow-errors"]) == 0


def test_a_csv_file_is_answered_as_json_lines(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.jsonl"
    key = 2**53 + 1
    source.write_text(f"uid,base,tags\n{key},4,a|b\n{-key},old,\n,,\n")
    arguments = [str(source), str(target), "--url", url, "--keep", "uid", "--no-progress"]
    assert status(batch.main, arguments) == 1
    said = capsys.readouterr().err
    assert f"error: {source}, row 2: feature base: 'old' (str) came; expected a number" in said
    found = [json.loads(line) for line in target.open()]
    assert [row["uid"] for row in found] == [key, -key, None]
    assert found[0]["item_ids"] == expected_ids({"base": 4, "tags": ["a", "b"]})
    assert found[1]["item_ids"] is None
    assert found[2]["item_ids"] == expected_ids({})


def test_a_failing_server_leaves_no_output(
    url: str, closed_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    write_users(source, ["crash" if row == 30 else None for row in range(60)])
    assert status(batch.main, [str(source), str(target), "--url", url, "--no-progress"]) == 1
    assert "the model is broken" in capsys.readouterr().err
    closed = ["--url", closed_url, "--deadline-ms", "500", "--no-progress"]
    assert status(batch.main, [str(source), str(target), *closed]) == 1
    assert "unavailable" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]
