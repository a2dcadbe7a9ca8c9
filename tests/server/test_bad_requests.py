"""A bad request is refused in words that help, and its neighbours in the batch get their answers.

The server waits for batches of four, so each case is known to have shared one with good requests:
the statistics of the first stage say so.
"""

from __future__ import annotations

import asyncio
import json
import queue
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from cascade.client import (
    AsyncRecommender,
    DeadlineExceeded,
    Recommendation,
    Recommender,
    transport,
)
from cascade.server.launcher import Server
from cascade.spec import DEADLINE, ENSEMBLE, RECOMMEND_FILTERED

FULL = 4  # the server's max_batch_size
TIMEOUT_S = 30.0
AGE, VISITS = range(2)
CITY, AGENT, HISTORY, TAGS = range(4)

Inputs = list[grpc.InferInput]
Users = tuple[Any, Any]


def tensor(name: str, values: Any, dtype: str) -> grpc.InferInput:
    made = grpc.InferInput(name, list(values.shape), dtype)
    made.set_data_from_numpy(values)
    return made


def request(dense: Any, categorical: Any) -> Inputs:
    return [tensor("dense", dense, "FP32"), tensor("categorical", categorical, "BYTES")]


@dataclass(frozen=True)
class Traffic:
    """Sends requests at the same time, and counts the batches of a stage."""

    client: grpc.InferenceServerClient

    def send(
        self, requests: list[Inputs], model: str = ENSEMBLE, of_last: dict[str, Any] | None = None
    ) -> list[Any]:
        """An answer or an error for each request, in their order. The last has parameters."""
        done: queue.Queue[tuple[int, Any]] = queue.Queue()
        for number, inputs in enumerate(requests):

            def note(result: Any, error: Any, number: int = number) -> None:
                done.put((number, error or result))

            parameters = of_last if inputs is requests[-1] else None
            self.client.async_infer(
                model, inputs, note, client_timeout=TIMEOUT_S, parameters=parameters
            )
        outcomes = dict(done.get(timeout=2 * TIMEOUT_S) for _ in requests)
        return [outcomes[number] for number in range(len(requests))]

    def batches(self, stage: str = "retrieve") -> Counter[int]:
        """How many batches of each size the stage has run."""
        (found,) = self.client.get_inference_statistics(stage).model_stats
        return Counter({b.batch_size: b.compute_infer.count for b in found.batch_stats})

    def ran_since(self, before: Counter[int], stage: str = "retrieve") -> dict[int, int]:
        """The batches since then; the server counts a batch only after it has answered it."""
        deadline = time.monotonic() + TIMEOUT_S
        while not (ran := self.batches(stage) - before):
            assert time.monotonic() < deadline, "no batch was counted"
            time.sleep(0.01)
        return dict(ran)


@pytest.fixture(scope="module")
def traffic(patient_server: Server) -> Iterator[Traffic]:
    with grpc.InferenceServerClient(patient_server.url) as client:
        yield Traffic(client)


@pytest.fixture(scope="module")
def pipeline(seven: Any) -> Any:
    return seven.pipeline()


@pytest.fixture
def among_good(
    seven: Any, pipeline: Any, traffic: Traffic, assert_same_answers: Callable[..., None]
) -> Callable[..., Any]:
    """Sends a request with three good ones; checks those and returns what became of it."""

    def send(bad: Inputs, reaches_the_stage: bool, parameters: dict[str, Any] | None = None) -> Any:
        dense, categorical = seven.dense[:3], seven.categorical[:3]
        good = [request(dense[i : i + 1], categorical[i : i + 1]) for i in range(3)]
        before = traffic.batches()
        *answers, outcome = traffic.send([*good, bad], of_last=parameters)
        assert traffic.ran_since(before) == {3 + reaches_the_stage: 1}
        got = tuple(
            np.concatenate([answer.as_numpy(name) for answer in answers])
            for name in ("item_ids", "scores")
        )
        assert_same_answers(got, pipeline(dense, categorical))
        return outcome

    return send


def changed(users: Users, **values: Any) -> Users:
    """One user with other values: by the name of the feature."""
    dense, categorical = (part[3:4].copy() for part in users)
    for name, value in values.items():
        if name in ("age", "visits"):
            dense[0, ("age", "visits").index(name)] = value
        else:
            categorical[0, ("city", "agent", "history", "tags").index(name)] = value
    return dense, categorical


def refused(outcome: Any, *words: str) -> None:
    """Refused as the caller's mistake, in all these words, without the inside of the server."""
    assert isinstance(outcome, InferenceServerException), outcome
    message = outcome.message()
    assert outcome.status() == "StatusCode.INVALID_ARGUMENT", message
    for word in words:
        assert word in message
    no_inside(message)


def no_inside(message: str) -> None:
    for word in ("Traceback", 'File "', "At:", ".py"):
        assert word not in message


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"age": np.inf}, ("age", "inf is not a finite number", "send NaN")),
        ({"visits": -np.inf}, ("visits", "-inf is not a finite number", "send NaN")),
        ({"city": b"\xff\xfe"}, ("city", r"b'\xff\xfe' is not UTF-8", "send text in UTF-8")),
        ({"agent": b"caf\xe9"}, ("agent", "is not UTF-8")),
        ({"history": b"history-1|\xc3"}, ("history", "is not UTF-8")),
        ({"city": b"x" * (1 << 20)}, ("city", "1048576 bytes came", "at most 8192")),
        ({"tags": b"a|" * (1 << 19)}, ("tags", "1048576 bytes came", "at most 8192")),
    ],
)
def test_a_value_that_no_model_can_read(
    seven: Any, among_good: Callable[..., Any], values: dict[str, Any], words: tuple[str, ...]
) -> None:
    users = changed((seven.dense, seven.categorical), **values)
    refused(among_good(request(*users), reaches_the_stage=True), *words)


@pytest.mark.parametrize(
    ("values", "as_if"),
    [
        ({"age": np.nan}, {"age": 0}),
        ({"visits": np.nan}, {"visits": 0}),
        ({"visits": -5}, {"visits": 0}),
        ({"city": b"nowhere"}, {"city": "Überall".encode()}),
        ({"city": b"x" * 8192}, {"city": b"nowhere"}),
        ({"history": b""}, {"history": b"||"}),
        ({"tags": b""}, {"tags": b"|"}),
        ({"history": b"h1|h2"}, {"history": b"never|seen"}),
        ({"history": b"history-1|" * 99}, {"history": b"history-1|" * 4}),
    ],
)
def test_what_is_missing_or_unknown_is_no_mistake(
    seven: Any,
    pipeline: Any,
    among_good: Callable[..., Any],
    assert_same_answers: Callable[..., None],
    values: dict[str, Any],
    as_if: dict[str, Any],
) -> None:
    both = seven.dense, seven.categorical
    answer = among_good(request(*changed(both, **values)), reaches_the_stage=True)
    assert not isinstance(answer, InferenceServerException)
    got = answer.as_numpy("item_ids"), answer.as_numpy("scores")
    assert_same_answers(got, pipeline(*changed(both, **as_if)))


@pytest.mark.parametrize("deadline", ["soon", True, 1.5, "", float("nan")])
def test_a_deadline_that_is_none(
    seven: Any, among_good: Callable[..., Any], deadline: object
) -> None:
    users = seven.dense[3:4], seven.categorical[3:4]
    outcome = among_good(request(*users), True, {DEADLINE: deadline})
    refused(outcome, "deadline_us", "send whole microseconds since 1970")


@pytest.mark.parametrize("deadline", [0, -1, 10**9])
def test_what_nobody_waits_for_is_not_computed(
    seven: Any, among_good: Callable[..., Any], deadline: int
) -> None:
    users = seven.dense[3:4], seven.categorical[3:4]
    outcome = among_good(request(*users), True, {DEADLINE: deadline})
    assert isinstance(outcome, InferenceServerException)
    assert outcome.status() == "StatusCode.CANCELLED"
    assert "its deadline passed before retrieve began" in outcome.message()


@pytest.mark.parametrize("parameters", [{DEADLINE: 2**62}, {"of": DEADLINE}])
def test_a_deadline_to_come_changes_nothing(
    seven: Any, pipeline: Any, among_good: Callable[..., Any], parameters: dict[str, Any]
) -> None:
    users = seven.dense[3:4], seven.categorical[3:4]
    answer = among_good(request(*users), True, parameters)
    assert not isinstance(answer, InferenceServerException)
    np.testing.assert_array_equal(answer.as_numpy("item_ids"), pipeline(*users)[0])


def test_a_whole_batch_that_is_too_late(seven: Any, traffic: Traffic) -> None:
    late = request(seven.dense[:FULL], seven.categorical[:FULL])
    (outcome,) = traffic.send([late], of_last={DEADLINE: 1})
    assert isinstance(outcome, InferenceServerException)
    assert outcome.status() == "StatusCode.CANCELLED"


def test_a_client_says_by_when_it_wants_its_answer(
    seven: Any, patient_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = seven.users[0]

    def sync(deadline_s: float) -> Recommendation:
        with Recommender(patient_server.url, send_deadline=True) as client:
            return client.recommend(user, deadline_s=deadline_s)

    async def in_asyncio(deadline_s: float) -> Recommendation:
        async with AsyncRecommender(patient_server.url, send_deadline=True) as client:
            return await client.recommend(user, deadline_s=deadline_s)

    ids = sync(TIMEOUT_S).item_ids, asyncio.run(in_asyncio(TIMEOUT_S)).item_ids
    np.testing.assert_array_equal(*ids)
    now = time.time_ns
    monkeypatch.setattr(
        transport.time, "time_ns", lambda: now() - 3600 * 10**9
    )  # a clock that is slow
    for ask in (sync, lambda deadline_s: asyncio.run(in_asyncio(deadline_s))):
        with pytest.raises(DeadlineExceeded, match="its deadline passed before retrieve began"):
            ask(TIMEOUT_S)


def test_a_huge_number_is_answered(seven: Any, among_good: Callable[..., Any]) -> None:
    users = changed((seven.dense, seven.categorical), age=3e38)
    answer = among_good(request(*users), reaches_the_stage=True)
    assert not isinstance(answer, InferenceServerException)
    ids = answer.as_numpy("item_ids")[0]
    assert len(set(ids[ids >= 0])) == (ids >= 0).sum()


def raw(inputs: Inputs, content: bytes) -> Inputs:
    """The same request with other bytes for its strings."""
    inputs[1]._raw_content = content
    return inputs


def strings(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


MALFORMED: dict[str, tuple[Callable[[Any, Any], Inputs], tuple[str, ...]]] = {
    "too few numbers": (
        lambda d, c: request(d[:1, :1], c[:1]),
        ("'dense'", "Expected [-1,2], got [1,1]"),
    ),
    "too many categories": (
        lambda d, c: request(d[:1], np.tile(c[:1], 2)),
        ("'categorical'", "Expected [-1,4], got [1,8]"),
    ),
    "another type": (
        lambda d, c: [tensor("dense", d[:1].astype(np.float64), "FP64"), request(d, c[:1])[1]],
        ("'dense'", "is 'FP64'", "expects 'FP32'"),
    ),
    "numbers for strings": (
        lambda d, c: [request(d[:1], c)[0], tensor("categorical", d[:1].repeat(2, 1), "FP32")],
        ("'categorical'", "is 'FP32'", "expects 'BYTES'"),
    ),
    "more users than a batch": (
        lambda d, c: request(d[: FULL + 1], c[: FULL + 1]),
        ("batch-size must be <= 4",),
    ),
    "no user": (
        lambda d, c: request(d[:0], c[:0]),
        ("expected 4 string elements", "'categorical'", "got 0"),
    ),
    "unequal numbers of users": (
        lambda d, c: request(d[:2], c[:1]),
        ("'dense' batch size does not match",),
    ),
    "an unknown tensor": (
        lambda d, c: [request(d[:1], c)[0], tensor("user_id", d[:1], "FP32")],
        ("unexpected inference input 'user_id'",),
    ),
    "a filter": (
        lambda d, c: [request(d[:1], c)[0], tensor("exclude", c[:1, :1], "BYTES")],
        ("unexpected inference input 'exclude'", "'recommend'"),
    ),
    "a tensor too many": (
        lambda d, c: [*request(d[:1], c[:1]), tensor("user_id", d[:1], "FP32")],
        ("between 0 and 2 but got 3", "user_id"),
    ),
    "too many strings": (
        lambda d, c: raw(request(d[:1], c[:1]), strings(*[b"a"] * 5)),
        ("number of string elements 5", "expecting 4"),
    ),
    "half a string's length": (
        lambda d, c: raw(request(d[:1], c[:1]), strings(*[b"a"] * 3) + b"\x01"),
        ("incomplete string length", "'categorical'"),
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_never_reaches_a_stage(
    seven: Any, among_good: Callable[..., Any], name: str
) -> None:
    make, words = MALFORMED[name]
    bad = make(seven.dense, seven.categorical)
    refused(among_good(bad, reaches_the_stage=False), *words)


def named(*values: Any) -> grpc.InferInput:
    """The input `context`: raw values by name, an object for each user."""
    texts = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]
    return tensor("context", np.array(texts, object).reshape(-1, 1), "BYTES")


@pytest.mark.parametrize(
    ("left", "words"),
    [
        ([0], ("input categorical is missing", "in the input context")),
        ([1], ("input dense is missing", "in the input context")),
        ([], ("input dense and categorical is missing",)),
    ],
)
def test_a_user_of_whom_half_is_missing(
    seven: Any, traffic: Traffic, left: list[int], words: tuple[str, ...]
) -> None:
    users = request(seven.dense[:1], seven.categorical[:1])
    exclude = tensor("exclude", np.array([[b"[]"]], object), "BYTES")
    (outcome,) = traffic.send([[*(users[i] for i in left), exclude]], RECOMMEND_FILTERED)
    refused(outcome, *words)


@pytest.mark.parametrize("left", [(), (0,), (1,), (0, 1)])
def test_values_by_name_lie_over_the_tensors(
    seven: Any,
    pipeline: Any,
    traffic: Traffic,
    assert_same_answers: Callable[..., None],
    left: tuple[int, ...],
) -> None:
    dense, categorical = changed((seven.dense, seven.categorical))
    values = {"age": None, "city": "city-3", "history": ["history-1", "history-2"]}
    inputs = [request(dense, categorical)[i] for i in left]
    (answer,) = traffic.send([[*inputs, named(values)]], RECOMMEND_FILTERED)
    assert not isinstance(answer, InferenceServerException)
    if 0 not in left:
        dense[:] = np.nan
    if 1 not in left:
        categorical[:] = b""
    expected = changed(
        (dense.repeat(4, 0), categorical.repeat(4, 0)),
        age=np.nan,
        city=b"city-3",
        history=b"history-1|history-2",
    )
    got = answer.as_numpy("item_ids"), answer.as_numpy("scores")
    assert_same_answers(got, pipeline(*expected))


@pytest.mark.parametrize(
    ("contexts", "words"),
    [
        ([b"{"], ("context: b'{' is not JSON",)),
        ([{}, {"cty": "x"}], ("user 1: context: unknown feature 'cty': did you mean 'city'?",)),
        ([{"age": "old"}], ("context: feature age: 'old'", "expected a number")),
    ],
)
def test_values_by_name_that_nobody_can_read(
    seven: Any, traffic: Traffic, contexts: list[Any], words: tuple[str, ...]
) -> None:
    good = request(seven.dense[:2], seven.categorical[:2])
    answer, outcome = traffic.send([good, [named(*contexts)]], RECOMMEND_FILTERED)
    refused(outcome, *words)
    assert not isinstance(answer, InferenceServerException)


def test_a_string_longer_than_its_tensor(seven: Any, traffic: Traffic) -> None:
    """No client library makes such a request. The Python backend of server 2.51 finds it out only
    when it hands the batch to the model, and then refuses the whole batch; it says so, and goes on.
    """
    users = seven.dense[:1], seven.categorical[:1]
    cut_off = strings(b"", b"", b"") + struct.pack("<I", 100) + b"ab"
    good, bad = traffic.send([request(*users), raw(request(*users), cut_off)])
    for outcome in (bad, good):
        refused(outcome, "incomplete string data", "length 100", "only 2 bytes available")
    (again,) = traffic.send([request(*users)])
    assert not isinstance(again, InferenceServerException)


def test_two_mistakes_in_one_batch_are_told_to_those_who_made_them(
    seven: Any, pipeline: Any, traffic: Traffic, assert_same_answers: Callable[..., None]
) -> None:
    both = seven.dense, seven.categorical
    good = [tuple(part[i : i + 1] for part in both) for i in range(2)]
    before = traffic.batches()
    first, infinite, second, binary = traffic.send(
        [
            request(*good[0]),
            request(*changed(both, age=np.inf)),
            request(*good[1]),
            request(*changed(both, city=b"\xff")),
        ]
    )
    assert traffic.ran_since(before) == {FULL: 1}
    refused(infinite, "age")
    refused(binary, "city")
    got = tuple(
        np.concatenate([answer.as_numpy(name) for answer in (first, second)])
        for name in ("item_ids", "scores")
    )
    assert_same_answers(got, pipeline(seven.dense[:2], seven.categorical[:2]))


def rows_request(user: Any, rows: Any) -> Inputs:
    dense, ids = user
    return [
        tensor("user_dense", dense, "FP32"),
        tensor("user_ids", ids, "INT64"),
        tensor("candidates", rows, "INT64"),
    ]


@pytest.mark.parametrize("mistake", ["row", "id"])
def test_a_stage_asked_directly_for_what_it_does_not_have(
    seven: Any, pipeline: Any, traffic: Traffic, patient_server: Server, mistake: str
) -> None:
    dense, ids, rows = pipeline.retrieve(seven.dense[:4], seven.categorical[:4])
    wrong_rows, wrong_ids = rows.copy(), ids.copy()
    if mistake == "row":
        wrong_rows[0, 3] = 7  # the catalogue has rows 0 to 6
    else:
        wrong_ids[0, 0] = 1_000_000
    cases = [((dense[:1], wrong_ids[:1]), wrong_rows[:1])]
    cases += [((dense[i : i + 1], ids[i : i + 1]), rows[i : i + 1]) for i in (1, 2, 3)]
    before = traffic.batches("prerank")
    outcome, *answers = traffic.send([rows_request(*case) for case in cases], "prerank")
    assert traffic.ran_since(before, "prerank") == {FULL: 1}
    survivors = np.concatenate([answer.as_numpy("survivors") for answer in answers])
    np.testing.assert_array_equal(survivors, pipeline.prerank(dense[1:], ids[1:], rows[1:]))
    assert isinstance(outcome, InferenceServerException)
    if mistake == "row":
        refused(outcome, "candidates: row 7 came", "the catalogue has 7 items", "one release?")
    else:
        assert outcome.status() == "StatusCode.INTERNAL"
        assert "prerank failed" in outcome.message()
        assert "the server's log says why" in outcome.message()
        no_inside(outcome.message())
        assert "Traceback (most recent call last)" in patient_server.log_path.read_text()


def test_after_all_that_the_server_answers_as_before(
    seven: Any, pipeline: Any, traffic: Traffic, assert_same_answers: Callable[..., None]
) -> None:
    dense, categorical = seven.dense[:FULL], seven.categorical[:FULL]
    (answer,) = traffic.send([request(dense, categorical)])
    got = answer.as_numpy("item_ids"), answer.as_numpy("scores")
    assert_same_answers(got, pipeline(dense, categorical))
