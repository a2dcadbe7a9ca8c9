"""The clients without a server: values to arrays, retries, tables and files."""

from __future__ import annotations

import asyncio
import json
import math
import random
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from cascade import encoding, spec
from cascade.client import (
    DeadlineExceeded,
    InvalidInput,
    Recommendation,
    RecommendError,
    Retry,
    Tls,
    Unavailable,
    split,
)
from cascade.client.layout import Layout
from cascade.client.plan import Answer, Request, filter_tensors, recommendations
from cascade.client.session import LAYOUT_AGE_S, Session, run
from cascade.encoding import Encoder
from cascade.layout import IdFeature, RequestLayout
from cascade.schema import Feature, Schema
from clients import batch, recommend
from clients.answers import answer_file
from clients.tables import open_users
from tests.programs import status

ROOT = Path(__file__).parents[2]
SCHEMA = Schema(
    "shop",
    (
        Feature("age", "user", "dense", "identity"),
        Feature("visits", "user", "dense", "log1p"),
        Feature("country", "user", "categorical", "hash", buckets=50),
        Feature("history", "user", "bag", "hash", length=3, buckets=50),
        Feature("price", "item", "dense", "identity"),
    ),
)
LAYOUT = Layout(
    ("age", "visits"),
    (IdFeature("country"), IdFeature("history", "bag", 3)),
    max_batch_size=3,
    layout_hash=SCHEMA.layout_hash,
    filters=True,
)


def config_of(schema: Schema, max_batch_size: int = 3) -> Any:
    """What the server would say about the ensemble of this schema."""
    config = model_config_pb2.ModelConfig(name=spec.ENSEMBLE, max_batch_size=max_batch_size)
    for tensor in spec.stages(schema, spec.Sizes())[0].inputs:
        config.input.add(name=tensor.name, dims=tensor.dims, optional=tensor.optional)
    config.parameters["features"].string_value = RequestLayout.of(schema).to_json()
    config.parameters["layout_hash"].string_value = schema.layout_hash
    return config


# --- layout and values


def test_the_layout_is_read_off_the_configuration() -> None:
    assert Layout.from_config(config_of(SCHEMA)) == LAYOUT
    assert not Layout.from_config(config_of(SCHEMA)).string_ids
    assert Layout.from_config(config_of(replace(SCHEMA, string_ids=True))).string_ids
    assert LAYOUT.names == ("age", "visits", "country", "history")


def test_a_foreign_model_is_refused() -> None:
    with pytest.raises(RecommendError, match="which features it takes"):
        Layout.from_config(model_config_pb2.ModelConfig(name="other"))
    narrow = config_of(SCHEMA)
    narrow.input[0].dims[0] = 7
    with pytest.raises(RecommendError, match=r"'dense': \[7\].*'dense': \[2\]"):
        Layout.from_config(narrow)
    with pytest.raises(RecommendError, match="batches of 0"):
        Layout.from_config(config_of(SCHEMA, max_batch_size=0))


def test_users_become_the_two_tensors_in_schema_order() -> None:
    users = [
        {"history": ["a", 7, "c", "d"], "country": "fr", "age": 31},
        {"visits": np.float64(2.5), "country": 49, "history": "x||y"},
        {"age": None, "country": None, "history": []},
        {"age": math.nan, "country": math.nan, "history": np.array([1, 2])},
    ]
    dense, categorical = LAYOUT.arrays(users)
    assert dense.dtype == np.float32
    np.testing.assert_array_equal(
        dense, [[31, np.nan], [np.nan, 2.5], [np.nan, np.nan], [np.nan, np.nan]]
    )
    assert categorical.tolist() == [
        [b"fr", b"a|7|c"],
        [b"49", b"x|y"],
        [b"", b""],
        [b"", b"1|2"],
    ]


def test_a_sequence_keeps_its_order_and_sends_its_newest_members() -> None:
    schema = Schema(
        "player",
        (
            Feature("played", "user", "sequence", "hash", length=3, buckets=9),
            Feature("genre", "item", "categorical", "hash", buckets=9),
        ),
    )
    layout = Layout.from_config(config_of(schema))
    _, categorical = layout.arrays([{"played": ["a", 7, "c", "d"]}, {"played": "b|a"}, {}])
    assert categorical.tolist() == [[b"7|c|d"], [b"b|a"], [b""]]


def test_a_user_without_numbers_sends_one_unused_column() -> None:
    schema = Schema(
        "ids",
        (
            Feature("id", "user", "categorical", "hash", buckets=9),
            Feature("genre", "item", "categorical", "hash", buckets=9),
        ),
    )
    layout = Layout.from_config(config_of(schema))
    dense, categorical = layout.arrays([{"id": "7"}])
    assert np.isnan(dense).tolist() == [[True]]
    assert categorical.tolist() == [[b"7"]]


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ({"age": "31"}, r"feature age: '31' \(str\) came; expected a number"),
        ({"age": True}, r"feature age: True \(bool\)"),
        ({"age": np.True_}, r"feature age: .*bool"),
        ({"age": math.inf}, "feature age: inf .*finite"),
        ({"age": 1e39}, "feature age: .*3.4e"),
        ({"age": 10**400}, "feature age: .*finite"),
        ({"age": [1]}, r"feature age: \[1\] \(list\)"),
        ({"country": False}, "feature country: False"),
        ({"country": 1.5}, "feature country: 1.5 .*a string or an int"),
        ({"country": ["fr"]}, "feature country: .*only a bag or a sequence takes several"),
        ({"country": "\ud800"}, "feature country: .*UTF-8"),
        ({"country": b"\xff"}, "feature country: .*UTF-8"),
        ({"history": 3}, "feature history: 3 .*a list"),
        ({"history": ["a|b"]}, r"feature history: 'a\|b'.*separates"),
        ({"history": ["a", None]}, "feature history: None"),
        ({"history": {"a"}}, r"feature history: \{'a'\} \(set\)"),
        ({"contry": "fr"}, "unknown feature 'contry': did you mean 'country'"),
        ({"price": 3}, "unknown feature 'price': known are age, visits, country, history"),
        ("age", "a user is a dict .* a str came"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_feature(user: Any, message: str) -> None:
    with pytest.raises(encoding.InvalidInput, match=message) as caught:
        LAYOUT.arrays([user])
    assert "user 0" not in str(caught.value)
    with pytest.raises(encoding.InvalidInput, match=f"^user 1: {message}"):
        LAYOUT.arrays([{}, user])


numbers = st.none() | st.floats(width=32, allow_infinity=False) | st.integers(-(2**24), 2**24)
texts = st.text(st.characters(exclude_characters="|", exclude_categories=["Cs"]), max_size=5)
users_of_layout = st.fixed_dictionaries(
    {},
    optional={
        "age": numbers,
        "visits": numbers,
        "country": st.none() | texts | st.integers(),
        "history": st.none() | st.lists(texts | st.integers(), max_size=5),
    },
)


@given(st.lists(users_of_layout, max_size=4))
def test_the_server_reads_what_the_user_said(users: list[dict[str, Any]]) -> None:
    dense, categorical = LAYOUT.arrays(users)
    _, ids = Encoder(SCHEMA, {}).encode("user", dense, categorical)
    for row, user in enumerate(users):
        for column, name in enumerate(LAYOUT.dense):
            said = user.get(name)
            expected = np.float32(np.nan if said is None else said)
            np.testing.assert_array_equal(dense[row, column], expected)
        country = user.get("country")
        assert categorical[row, 0].decode() == ("" if country is None else str(country))
        members = [str(member) for member in user.get("history") or () if member != ""][:3]
        assert categorical[row, 1].decode() == "|".join(members)
        assert np.count_nonzero(ids[row, 1:]) == len(members)


def test_pads_are_cut_off_each_list() -> None:
    ids = np.array([[5, 3, -1], [8, -1, -1], [-1, -1, -1], [1, 2, 3]])
    scores = np.array([[0.5, 0.25, 0], [0.125, 0, 0], [0, 0, 0], [3, 2, 1]], np.float32)
    found = recommendations(Answer(ids, scores, np.full((4, 1), 7)), 4)
    assert [one.item_ids.tolist() for one in found] == [[5, 3], [8], [], [1, 2, 3]]
    assert [one.scores.tolist() for one in found] == [[0.5, 0.25], [0.125], [], [3, 2, 1]]
    assert [one.release for one in found] == [7, 7, 7, 7]


def test_strings_are_decoded() -> None:
    ids = np.array([["ö".encode(), b"2"], [b"2", b""], [b"", b""]], object)
    found = recommendations(Answer(ids, np.zeros((3, 2), np.float32)), 3)
    assert [one.item_ids.tolist() for one in found] == [["ö", "2"], ["2"], []]
    assert [one.short for one in found] == [False, True, True]
    assert {one.item_ids.dtype for one in found} == {np.dtype(object)}


def test_tasks_come_by_name_in_the_order_of_the_items() -> None:
    ids, scores = np.array([[5, 3, -1]]), np.zeros((1, 3), np.float32)
    tasks = np.arange(6, dtype=np.float32).reshape(1, 3, 2)
    answer = Answer(ids, scores, task_scores=tasks)
    (found,) = recommendations(answer, 1, ("ctr", "buy"))
    assert found.task_scores is not None
    assert {k: v.tolist() for k, v in found.task_scores.items()} == {"ctr": [0, 2], "buy": [1, 3]}
    assert recommendations(answer, 1)[0].task_scores is None  # the names are not known
    assert recommendations(Answer(ids, scores), 1, ("ctr", "buy"))[0].task_scores is None


def test_an_answer_to_other_users_is_refused() -> None:
    with pytest.raises(RecommendError, match=r"\(1, 2\).* to 2 users"):
        recommendations(Answer(np.zeros((1, 2), np.int64), np.zeros((1, 2), np.float32)), 2)
    with pytest.raises(RecommendError, match="None"):
        recommendations(Answer(np.zeros((1, 2), np.int64), None), 1)


# --- session


@dataclass(frozen=True)
class AskConfig:
    """What a `World` was asked for, as below."""

    timeout_s: float


@dataclass(frozen=True)
class AskItems:
    model: str
    tensors: Any
    timeout_s: float

    @property
    def ending(self) -> str:
        return self.model.removeprefix(spec.ENSEMBLE).removeprefix("_user")


@dataclass(frozen=True)
class Wait:
    seconds: float


class World:
    """A server and a clock that exist only in this test: asking takes `ask_s`, and the outcomes
    come from a list (an exception is thrown; when the list is empty, item i is item i of the
    request's first number)."""

    def __init__(self, outcomes: list[Any] | None = None, ask_s: float = 0.0) -> None:
        self.outcomes = outcomes or []
        self.ask_s = ask_s
        self.now = 100.0
        self.steps: list[Any] = []
        self.model_config = config_of(SCHEMA)

    def session(self, deadline_s: float = 10.0, retry: Retry | None = None) -> Session:
        return Session(
            self, deadline_s, retry, clock=lambda: self.now, jitter=lambda low, high: high
        )

    async def config(self, model: str, timeout_s: float) -> Any:
        self.steps.append(AskConfig(timeout_s))
        self.now += self.ask_s
        return self.model_config

    async def infer(self, model: str, tensors: Any, timeout_s: float, request_id: str) -> Answer:
        self.steps.append(AskItems(model, tensors, timeout_s))
        self.now += self.ask_s
        if self.outcomes and (outcome := self.outcomes.pop(0)) is not None:
            raise outcome
        first = tensors["user_id" if "user_id" in tensors else "dense"][:, :1]
        ids = first.astype(np.int64) + np.arange(10)
        scores = np.linspace(1, 0, 10, dtype=np.float32)[None].repeat(len(ids), 0)
        return Answer(ids, scores, None, ids[:, :1] > 4 if "user" in model else None)

    async def sleep(self, seconds: float) -> None:
        self.steps.append(Wait(seconds))
        self.now += seconds


class Tasks(World):
    """A server of rankers of several tasks, by release; the first is live until the second is."""

    def __init__(self, *names: tuple[str, ...]) -> None:
        super().__init__()
        self.names, self.release = names, 1

    async def config(self, model: str, timeout_s: float) -> Any:
        self.model_config = config_of(SCHEMA)
        step = self.model_config.ensemble_scheduling.step.add(model_name="rank")
        step.model_version = self.release
        names = json.dumps(self.names[self.release - 1])
        self.model_config.parameters["tasks"].string_value = names
        return await super().config(model, timeout_s)

    async def infer(self, *asked: Any) -> Answer:
        answer = await super().infer(*asked)
        assert answer.item_ids is not None
        shape = (*answer.item_ids.shape, len(self.names[self.release - 1]))
        release = np.full((len(answer.item_ids), 1), self.release)
        return replace(answer, release=release, task_scores=np.zeros(shape, np.float32))


def test_names_of_tasks_are_those_of_the_release_that_answered() -> None:
    world = Tasks(("ctr", "buy"), ("buy", "ctr"))
    session = world.session()

    def names() -> list[str]:
        (found,) = run(session.ask(Request([{"age": 1}])))
        return [*(found.task_scores or {})]

    assert names() == names() == ["ctr", "buy"]
    assert run(session.layout()).tasks == ("ctr", "buy")
    world.release = 2
    assert names() == names() == ["buy", "ctr"]
    world.release = 1
    assert names() == ["ctr", "buy"]
    assert sum(isinstance(step, AskConfig) for step in world.steps) == 3  # layout, two releases


def failure(status: str, message: str = "no") -> InferenceServerException:
    return InferenceServerException(message, status=f"StatusCode.{status}")


def test_users_beyond_the_largest_batch_go_out_in_several_requests() -> None:
    world = World()
    session = world.session()
    found = run(session.ask(Request([{"age": age} for age in range(7)])))
    assert [one.item_ids[0] for one in found] == list(range(7))
    asked = [step for step in world.steps if isinstance(step, AskItems)]
    assert [len(step.tensors["dense"]) for step in asked] == [3, 3, 1]
    assert [len(step.tensors["categorical"]) for step in asked] == [3, 3, 1]


def test_entries_for_users_come_from_any_iterable() -> None:
    """Generators, too, which have no length and can be read only once."""
    world = World([failure("UNAVAILABLE")])
    users = ({"age": age} for age in range(5))
    exclude = ([] for _ in range(5))
    found = run(world.session().ask(Request(users, exclude=exclude, keys=iter("abcde"))))
    assert [one.item_ids[0] for one in found] == list(range(5))
    contexts = ({"age": age} for age in range(4))
    allow = (None for _ in range(4))
    by_id = Request((), (n for n in range(4)), contexts, allow=allow)
    assert [one.item_ids[0] for one in run(world.session().ask(by_id))] == list(range(4))
    for some in ({1: 0, 2: 0}.keys(), np.array([1, 2]), (1, 2)):
        assert [one.item_ids[0] for one in run(world.session().ask(Request((), some)))] == [1, 2]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Request({"age": 1}), r"users: \{'age': 1\} \(dict\) came; expected a list"),
        (Request("ab"), r"users: 'ab' \(str\) came"),
        (Request(5), r"users: 5 \(int\) came"),
        (Request((), "17"), r"user_ids: '17' \(str\) came"),
        (Request((), b"17"), r"user_ids: b'17' \(bytes\) came"),
        (Request((), [1], {"age": 1}), r"contexts: \{'age': 1\} \(dict\) came"),
        (Request([{}], keys="a"), r"keys: 'a' \(str\) came"),
        (Request([{}], exclude=5), "exclude: expected a list"),
    ],
)
def test_what_is_of_one_user_is_no_list_of_users(asked: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        run(World().session().ask(asked))


def test_users_by_id_go_out_likewise() -> None:
    world = World()
    contexts = [None, {"age": np.float32(3), "history": ["a", 7]}, {}, *[None] * 4]
    found = run(world.session().ask(Request((), [*range(6), "6"], contexts)))
    assert [one.item_ids[0] for one in found] == list(range(7))
    assert [one.cold_start for one in found] == [False] * 5 + [True] * 2
    asked = [step.tensors for step in world.steps if isinstance(step, AskItems)]
    assert [tensors["user_id"][:, 0].tolist() for tensors in asked] == [
        [b"0", b"1", b"2"],
        [b"3", b"4", b"5"],
        [b"6"],
    ]
    assert asked[0]["context"][:, 0].tolist() == [b"", b'{"age": 3.0, "history": ["a", 7]}', b""]
    run(world.session().ask(Request((), [1], [None])))
    assert "context" not in world.steps[-1].tensors  # nothing is sent


@pytest.mark.parametrize(
    ("ids", "contexts", "message"),
    [
        ([1, 2], [None], "1 contexts came for 2 users"),
        ([1, 2], [None, {"contry": "fr"}], "user 1: unknown feature 'contry'"),
        ([1], [{"age": "old"}], "feature age: 'old'"),
        ([1], ["age"], "a user is a dict"),
        ([True], None, "user_id: True"),
        ([1.5], None, "user_id: 1.5"),
    ],
)
def test_ids_and_contexts_are_checked(ids: Any, contexts: Any, message: str) -> None:
    world = World()
    with pytest.raises(InvalidInput, match=message):
        run(world.session().ask(Request((), ids, contexts)))


def test_the_layout_is_asked_for_once() -> None:
    world = World()
    session = world.session()
    for _ in range(3):
        run(session.ask(Request([{"age": 1}])))
    assert run(session.layout()) == LAYOUT
    assert [type(step) for step in world.steps] == [AskConfig, AskItems, AskItems, AskItems]


def test_no_users_no_askedfor_items() -> None:
    world = World()
    assert run(world.session().ask(Request([]))) == []
    assert [type(step) for step in world.steps] == [AskConfig]


def test_unavailable_is_asked_again_after_growing_waits() -> None:
    world = World([failure("UNAVAILABLE")] * 4)
    retry = Retry(tries=5, first_s=0.1, longest_s=0.5)
    found = run(world.session(retry=retry).ask(Request([{"age": 4}])))
    assert found[0].item_ids[0] == 4
    waits = [step.seconds for step in world.steps if isinstance(step, Wait)]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.5])


def test_unavailable_for_too_long_says_how_often_and_how_long() -> None:
    world = World([failure("UNAVAILABLE", "queue is full")] * 9)
    retry = Retry(tries=3, first_s=0.25)
    with pytest.raises(Unavailable, match=r"asked 3 times in 0\.75 s: queue is full$") as caught:
        run(world.session(retry=retry).ask(Request([{}])))
    assert caught.value.tries == 3
    assert caught.value.waited_s == pytest.approx(0.75)
    assert isinstance(caught.value, ConnectionError)


@given(
    deadline_s=st.floats(0.01, 5),
    ask_s=st.floats(0, 1),
    tries=st.integers(1, 8),
    first_s=st.floats(0, 2),
    seed=st.integers(0, 99),
)
def test_nothing_is_begun_after_the_deadline(
    deadline_s: float, ask_s: float, tries: int, first_s: float, seed: int
) -> None:
    world = World([failure("UNAVAILABLE")] * 20, ask_s)
    retry = Retry(tries, first_s, longest_s=1.0)
    session = Session(
        world, deadline_s, retry, clock=lambda: world.now, jitter=random.Random(seed).uniform
    )
    with pytest.raises((Unavailable, DeadlineExceeded)):
        run(session.ask(Request([{}])))
    now = 100.0
    waited = 0
    for step in world.steps:
        if isinstance(step, Wait):
            waited += 1
            assert 0 <= step.seconds <= min(1.0, first_s * 2 ** (waited - 1))
            now += step.seconds
        else:
            assert step.timeout_s == pytest.approx(100 + deadline_s - now)
            assert step.timeout_s > 0
            now += ask_s
    assert sum(isinstance(step, AskItems) for step in world.steps) <= tries


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("INVALID_ARGUMENT", InvalidInput),
        ("DEADLINE_EXCEEDED", DeadlineExceeded),
        ("CANCELLED", DeadlineExceeded),
        ("INTERNAL", RecommendError),
        ("NOT_FOUND", RecommendError),
    ],
)
def test_other_failures_are_not_asked_again(status: str, kind: type[Exception]) -> None:
    said = "feature age: wrong\n\nAt:\n  /models/rank/1/model.py(3): execute\n"
    world = World([failure(status, said)])
    with pytest.raises(RecommendError, match=r"feature age: wrong$") as caught:
        run(world.session().ask(Request([{}])))
    assert type(caught.value) is kind
    assert [type(step) for step in world.steps] == [AskConfig, AskItems]


def test_the_deadline_is_for_all_parts_of_a_call() -> None:
    world = World(ask_s=0.4)  # the configuration and two of three requests fit
    with pytest.raises(DeadlineExceeded):
        run(world.session(1.0).ask(Request([{"age": 1}] * 9)))
    timeouts = [step.timeout_s for step in world.steps]
    assert timeouts == pytest.approx([1.0, 0.6, 0.2])


@pytest.mark.parametrize("deadline_s", [0, -1, math.nan, math.inf])
def test_a_deadline_must_be_a_time(deadline_s: float) -> None:
    with pytest.raises(ValueError, match="positive number of seconds"):
        Session(World(), deadline_s)
    with pytest.raises(ValueError, match="positive number of seconds"):
        run(World().session().ask(Request([]), deadline_s))


def test_retries_must_make_sense() -> None:
    with pytest.raises(ValueError, match="at least one try"):
        Retry(tries=0)


def test_tls_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="come together"):
        Tls(client_key=tmp_path)
    with pytest.raises(ValueError, match=r"no file .*absent\.pem"):
        Tls(root_ca=tmp_path / "absent.pem")


# --- python -m clients.recommend


def answer_of(*ids: int) -> Recommendation:
    scores = np.linspace(0.9, 0.1, len(ids), dtype=np.float32)
    return Recommendation(np.array(ids, np.int64), scores)


def test_the_table_shows_rank_item_title_and_score() -> None:
    lines = recommend.table({"age": 3}, answer_of(260, 1), {260: "Star\nWars", 1: "Toy"}, 80)
    assert lines == [
        'user {"age": 3}',
        "rank  item id  title       score",
        "   1      260  Star Wars  0.9000",
        "   2        1  Toy        0.1000",
        "",
    ]
    without = recommend.table({}, answer_of(260), None, 80)
    assert without[1:3] == ["rank  item id   score", "   1      260  0.9000"]


@given(
    st.lists(st.text(max_size=60), min_size=1, max_size=10),
    st.integers(40, 120),
    st.text(max_size=200),
)
def test_the_table_fits_the_terminal(titles: list[str], width: int, text: str) -> None:
    answer = answer_of(*range(10**6, 10**6 + len(titles)))
    named = {10**6 + i: title for i, title in enumerate(titles)}
    lines = recommend.table({"history": text}, answer, named, width)
    assert len(lines) == 3 + len(titles)
    assert max(map(len, lines)) <= width
    assert not any("\n" in line for line in lines)


def test_json_output_has_the_answer_and_its_titles() -> None:
    line = recommend.as_json({"age": 3}, answer_of(7, 8), {7: "Seven"})
    assert json.loads(line) == {
        "user": {"age": 3},
        "item_ids": [7, 8],
        "scores": [0.9, 0.1],
        "release": None,
        "short": False,
        "titles": ["Seven", None],
    }


def test_titles_are_read_and_their_faults_named(tmp_path: Path) -> None:
    path = tmp_path / "titles.csv"
    path.write_text('year,item_id,title\n1977,260,"Star Wars, Episode IV"\n1995,1,Toy Story\n')
    assert recommend.read_titles(path) == {260: "Star Wars, Episode IV", 1: "Toy Story"}
    path.write_text("item_id,title\n1,Toy\nx,Heat\n")
    assert recommend.read_titles(path, string_ids=True) == {"1": "Toy", "x": "Heat"}
    with pytest.raises(ValueError, match=r"line 3: item_id 'x' is not an integer"):
        recommend.read_titles(path)
    path.write_text("movieId,title\n1,Toy\n")
    with pytest.raises(ValueError, match=r"expected a header .*'movieId'"):
        recommend.read_titles(path)


@given(st.integers(0, 10_000))
def test_made_up_users_are_valid_and_repeatable(seed: int) -> None:
    user = recommend.made_up(LAYOUT, random.Random(seed))
    LAYOUT.arrays([user])
    assert user == recommend.made_up(LAYOUT, random.Random(seed))


def test_made_up_users_use_every_feature() -> None:
    generator = random.Random(1)
    users = [recommend.made_up(LAYOUT, generator) for _ in range(50)]
    assert {name for user in users for name in user} == set(LAYOUT.names)


def test_users_are_drawn_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    path.write_text('{"age": 1}\n\n{"age": 2}\n{"age": 3}\n')
    drawn = recommend.from_file(path, 3, random.Random(0))
    assert sorted(user["age"] for user in drawn) == [1, 2, 3]
    assert len(recommend.from_file(path, 5, random.Random(0))) == 5
    path.write_text('\n{"age": }\n')
    with pytest.raises(ValueError, match=r"users\.jsonl, line 2: not JSON"):
        recommend.from_file(path, 1, random.Random(0))
    for line, message in (
        ("[" * 100_000, "not JSON that can be read"),
        ('{"age": 1, "age": 2}', "an object that has 'age' twice"),
    ):
        path.write_text(f"{line}\n")
        with pytest.raises(ValueError, match=f"line 1: {message}"):
            recommend.from_file(path, 1, random.Random(0))
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match="line 1: expected a JSON object"):
        recommend.from_file(path, 1, random.Random(0))
    path.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        recommend.from_file(path, 1, random.Random(0))


@pytest.mark.parametrize("program", [recommend, batch])
def test_usage_errors_end_with_2(program: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        program.main([])
    assert caught.value.code == 2
    assert "required" in capsys.readouterr().err


# --- python -m clients.batch


@given(bad=st.lists(st.booleans(), min_size=1, max_size=20))
def test_bad_rows_get_a_reason_and_their_neighbours_an_answer(bad: list[bool]) -> None:
    users = [{"age": row, "bad": is_bad} for row, is_bad in enumerate(bad)]

    async def ask(some: Any) -> list[Recommendation]:
        refused = [user["age"] for user in some if user["bad"]]
        if refused:
            raise InvalidInput(f"user {refused[0]} is bad")
        return [answer_of(user["age"]) for user in some]

    for row, answer in enumerate(asyncio.run(batch.settle(ask, users))):
        if bad[row]:
            assert answer == f"user {row} is bad"
        else:
            assert isinstance(answer, Recommendation)
            assert answer.item_ids.tolist() == [row]


def test_batches_overlap_up_to_the_limit_and_come_back_in_order() -> None:
    under_way, most = 0, 0

    async def ask(users: Any) -> list[Recommendation]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(random.Random(users[0]["age"]).randrange(1, 20)):
            await asyncio.sleep(0)
        under_way -= 1
        return [answer_of(user["age"]) for user in users]

    async def collect() -> list[tuple[int, int]]:
        batches = (([{"age": number}], number) for number in range(60))
        return [
            (passed, answers[0].item_ids[0])  # type: ignore[union-attr]
            async for passed, answers in batch.in_order(ask, batches, 3)
        ]

    assert asyncio.run(collect()) == [(number, number) for number in range(60)]
    assert most == 3


def test_one_failing_batch_stops_the_others() -> None:
    finished = []

    async def ask(users: Any) -> list[Recommendation]:
        if users[0]["age"] == 0:
            raise Unavailable("gone", 3, 0.5)
        await asyncio.sleep(60)
        finished.append(users)
        return []

    async def collect() -> None:
        async for _ in batch.in_order(ask, (([{"age": n}], n) for n in range(9)), 2):
            pass

    with pytest.raises(Unavailable):
        asyncio.run(collect())
    assert finished == []


def write_users(path: Path, rows: int, **more: Any) -> None:
    columns = {
        "age": pa.array([float(row) for row in range(rows)], pa.float32()),
        "history": pa.array([["a", "b"]] * rows, pa.list_(pa.string())),
        "uid": pa.array([f"u{row}" for row in range(rows)]),
        "label": pa.array([1.0] * rows),
        **more,
    }
    pq.write_table(pa.table(columns), path, row_group_size=7)


def test_users_stream_out_of_a_parquet_file(tmp_path: Path) -> None:
    write_users(tmp_path / "in.parquet", 20)
    users = open_users(tmp_path / "in.parquet", LAYOUT, ["uid", "uid", "age"])
    assert users.absent == ["visits", "country"]
    assert users.rows == 20
    batches = list(users.batches(6))
    assert max(len(some) for some, _ in batches) <= 6
    rows = [user for some, _ in batches for user in some]
    assert rows == [{"age": float(row), "history": ["a", "b"]} for row in range(20)]
    kept = pa.Table.from_batches([kept for _, kept in batches])
    assert kept.column_names == ["uid", "age"]
    assert kept["uid"].to_pylist() == [f"u{row}" for row in range(20)]


def test_faults_of_the_input_are_named(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    path.write_text("age,country\n")
    with pytest.raises(ValueError, match="not a Parquet file"):
        open_users(path, LAYOUT, [])
    pq.write_table(pa.table({"AGE": [1], "x": [2]}), path)
    with pytest.raises(ValueError, match=r"none of the features age, .* columns are AGE, x"):
        open_users(path, LAYOUT, [])
    write_users(path, 3, error=pa.array(["", "", ""]))
    with pytest.raises(ValueError, match="unknown column 'uit': did you mean 'uid'"):
        open_users(path, LAYOUT, ["uit"])
    with pytest.raises(ValueError, match="--keep error: the output has a column"):
        open_users(path, LAYOUT, ["error"])


def test_answers_are_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.answers.GROUP_ROWS", 4)
    target = tmp_path / "out.parquet"
    with answer_file(target, {"uid": pa.string()}) as write:
        for row in range(5):
            kept = pa.record_batch({"uid": [f"a{row}", f"b{row}"]})
            write(kept, [answer_of(row, row + 1), "refused"])
            assert not target.exists()
    table = pq.read_table(target)
    assert table.schema.types == [
        pa.string(),
        pa.list_(pa.int64()),
        pa.list_(pa.float32()),
        pa.string(),
    ]
    assert table["uid"].to_pylist() == [f"{side}{row}" for row in range(5) for side in "ab"]
    assert table["item_ids"].to_pylist()[::2] == [[row, row + 1] for row in range(5)]
    assert table["item_ids"].to_pylist()[1::2] == [None] * 5
    assert table["error"].to_pylist() == [None, "refused"] * 5
    assert pq.ParquetFile(target).num_row_groups == 3
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_run_leaves_the_old_output(tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"
    target.write_text("old")

    def fail() -> None:
        with answer_file(target, {"uid": pa.string()}) as write:
            write(pa.record_batch({"uid": ["a"]}), ["refused"])
            raise Unavailable("gone", 1, 0.0)

    with pytest.raises(Unavailable):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_input_without_rows_makes_an_output_without_rows(tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"
    with answer_file(target, {}):
        pass
    assert pq.read_table(target).num_rows == 0
    assert pq.read_table(target).column_names == ["item_ids", "scores", "error"]


@pytest.mark.parametrize("package", ["pyarrow", "tqdm"])
def test_a_missing_package_is_named_with_its_remedy(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    assert status(batch.main, ["in.parquet", "out.parquet"]) == 1
    said = capsys.readouterr().err
    assert f"needs {package}" in said
    assert "pip install 'cascade[batch]'" in said


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("absent.parquet", "out.parquet", "there is no file"),
        ("in.parquet", "absent/out.parquet", "there is no folder"),
        ("in.parquet", "in.parquet", "both input and output"),
    ],
)
def test_paths_are_checked_before_the_server_is_asked(
    source: str, target: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_users(tmp_path / "in.parquet", 1)
    assert status(batch.main, [str(tmp_path / source), str(tmp_path / target)]) == 1
    assert message in capsys.readouterr().err


# --- what a client needs


@pytest.mark.parametrize("module", ["clients.recommend", "clients.batch"])
def test_a_client_starts_without_the_heavy_packages(module: str) -> None:
    program = f"""
import runpy, sys
import clients
sys.argv = ["{module}", "--help"]
try:
    runpy.run_module("{module}", run_name="__main__")
except SystemExit as end:
    assert end.code == 0
heavy = {{"torch", "pyarrow", "onnx", "onnxruntime", "faiss", "tqdm", "pandas", "scipy"}}
print("loaded:", sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--deadline-ms" in done.stdout
    assert done.stdout.endswith("loaded: []\n")


def test_waits_of_full_jitter_double_up_to_the_longest() -> None:
    retry = Retry(tries=9, first_s=0.05, longest_s=1.0)
    waits = [retry.longest_wait_s(tries) for tries in range(1, 9)]
    assert waits[0] == 0.05
    assert all(later == min(1.0, 2 * earlier) for earlier, later in pairwise(waits))


# --- filters

WITH_ITEMS = replace(LAYOUT, items=("genre", "studio"))


def test_filters_become_two_tensors() -> None:
    found = filter_tensors(
        WITH_ITEMS,
        3,
        [None, [7, np.int64(3), 7], np.array([2**62])],
        [{"genre": ["Comédie", 5], "studio": {"A"}}, {}, None],
    )
    exclude, allow = found["exclude"], found["allow"]
    assert exclude.shape == allow.shape == (3, 1)
    ids = [np.frombuffer(value, "<i8").tolist() for value in exclude[:, 0]]
    assert ids == [[], [3, 7], [2**62]]
    assert json.loads(allow[0, 0]) == {"genre": ["Comédie", "5"], "studio": ["A"]}
    assert allow[1:, 0].tolist() == [b"", b""]
    assert filter_tensors(WITH_ITEMS, 2, None, None) == {}
    assert filter_tensors(WITH_ITEMS, 2, [None, []], [{}, None]) == {}


@pytest.mark.parametrize(
    ("exclude", "allow", "complaint"),
    [
        (range(1001), None, "1001 ids came; at most 1000"),
        ("123", None, "expected a list of item ids"),
        ([1.5], None, r"1.5 \(float\) came; expected ints"),
        ([True], None, r"True \(bool\) came"),
        ([2**63], None, "ids of 64 bits"),
        (7, None, "expected a list of item ids"),
        (None, {"gener": ["x"]}, "unknown item feature 'gener': did you mean 'genre'?"),
        (None, {"genre": "Comedy"}, "feature genre: 'Comedy' .* expected a list of values"),
        (None, {"genre": [None]}, r"None \(NoneType\) came; expected strings and ints"),
        (None, {"genre": ["\ud800"]}, "text that UTF-8 can hold"),
        (None, {"genre": [str(i) for i in range(1001)]}, "1001 values came; at most 1000"),
        (None, ["genre"], "expected a dict of lists"),
    ],
)
def test_a_filter_that_no_server_could_read_is_refused(
    exclude: Any, allow: Any, complaint: str
) -> None:
    with pytest.raises(encoding.InvalidInput, match=complaint):
        filter_tensors(WITH_ITEMS, 1, [exclude], [allow])
    with pytest.raises(encoding.InvalidInput, match=f"user 1: .*{complaint}"):
        filter_tensors(WITH_ITEMS, 2, [None, exclude], [None, allow])


def test_there_is_one_filter_for_every_user() -> None:
    with pytest.raises(
        encoding.InvalidInput, match="exclude: expected a list with one entry for each of"
    ):
        filter_tensors(WITH_ITEMS, 2, [[1], [2], [3]], None)
    with pytest.raises(encoding.InvalidInput, match="allow: expected a list"):
        filter_tensors(WITH_ITEMS, 1, None, {"genre": ["Comedy"]})  # type: ignore[arg-type]


def test_a_server_without_filters_is_not_asked_for_any() -> None:
    old = config_of(SCHEMA)
    del old.input[2:]
    layout = Layout.from_config(old)
    assert filter_tensors(layout, 1, [[]], [None]) == {}
    with pytest.raises(RecommendError, match="takes no filters: export it again"):
        filter_tensors(layout, 1, [[7]], None)


def test_filters_go_out_with_their_users() -> None:
    world = World()
    exclude = [[age] for age in range(7)]
    users = [{"age": age} for age in range(7)]
    run(world.session().ask(Request(users, exclude=exclude)))
    asked = [step for step in world.steps if isinstance(step, AskItems)]
    sent = [
        np.frombuffer(value, "<i8")[0] for step in asked for value in step.tensors["exclude"][:, 0]
    ]
    assert sent == list(range(7))
    assert not any("allow" in step.tensors for step in asked)


@pytest.mark.parametrize("filtered", ["", "recommend_filtered"])
def test_requests_with_a_filter_go_to_the_model_that_takes_them(filtered: str) -> None:
    """Of an earlier release that is `recommend`."""
    world, genre = World(), Feature("genre", "item", "categorical", "hash", buckets=9)
    world.model_config = config_of(replace(SCHEMA, features=(*SCHEMA.features, genre)))
    if filtered:
        del world.model_config.input[2:]
        world.model_config.parameters["filtered"].string_value = filtered
    ask = world.session().ask
    for exclude, allow in ((None, None), ([[]], [None]), ([[7]], None), (None, [{"genre": ["a"]}])):
        run(ask(Request([{"age": 1}], exclude=exclude, allow=allow)))
    run(ask(Request((), [17], [None], [[7]])))
    asked = [step.model for step in world.steps if isinstance(step, AskItems)]
    takes = filtered or "recommend"
    assert asked == ["recommend", "recommend", takes, takes, "recommend_user"]


def test_filters_follow_a_release_that_takes_them_by_another_model() -> None:
    """The release that was live when the client asked for the layout took them as `recommend`."""
    refusal = failure("INVALID_ARGUMENT", "unexpected inference input 'exclude'")
    world = World([None, refusal, None, failure("INVALID_ARGUMENT", "exclude: bad")])
    session, request = world.session(), Request([{"age": 1}], exclude=[[7]])
    run(session.ask(request))
    world.model_config.parameters["filtered"].string_value = "recommend_filtered"
    assert len(run(session.ask(request))) == 1
    with pytest.raises(RecommendError, match="exclude: bad"):
        run(session.ask(request))
    asked = [step.model for step in world.steps if isinstance(step, AskItems)]
    assert asked == ["recommend", "recommend", "recommend_filtered", "recommend_filtered"]


def test_a_bad_filter_is_not_asked_twice_of_an_earlier_release() -> None:
    world = World([failure("INVALID_ARGUMENT", "exclude: bad")])
    with pytest.raises(RecommendError, match="exclude: bad"):
        run(world.session().ask(Request([{"age": 1}], exclude=[[7]])))
    assert len([step for step in world.steps if isinstance(step, AskItems)]) == 1


def test_a_short_answer_says_so() -> None:
    ids = np.array([[1, 2, 3], [1, 2, -1], [-1, -1, -1]])
    found = recommendations(Answer(ids, np.zeros((3, 3), np.float32)), 3)
    assert [one.short for one in found] == [False, True, True]
    lines = recommend.table({}, found[1], None, 80)
    assert lines[-2:] == ["      no more than 2 are left", ""]


# --- two releases at once


def split_world(share: str) -> World:
    world = World()
    config = config_of(SCHEMA)
    config.parameters[spec.CHALLENGER_SHARE].string_value = share
    world.model_config = config
    return world


def test_a_user_always_gets_the_same_release() -> None:
    keys = [f"user-{number}" for number in range(4000)]
    (_, live), (_, challenged) = split.arms(keys, len(keys), 0.25)
    assert len(live) + len(challenged) == len(keys)
    assert 0.22 < len(challenged) / len(keys) < 0.28
    assert split.arms(keys, len(keys), 0.25)[1][1].tolist() == challenged.tolist()
    # A larger share takes more users, and none away.
    assert {*challenged} < {*split.arms(keys, len(keys), 0.5)[1][1]}
    assert split.arms(None, 3, 0.5)[0][1].tolist() == [0, 1, 2]


def test_users_go_out_to_both_releases_and_come_back_in_order() -> None:
    world = split_world("0.5")
    users = [{"age": age} for age in range(20)]
    found = run(world.session().ask(Request(users, keys=[*range(20)])))
    assert [one.item_ids[0] for one in found] == list(range(20))
    endings = [step.ending for step in world.steps if isinstance(step, AskItems)]
    assert {*endings} == {"", "_b"}
    found = run(world.session().ask(Request((), [*range(20)])))
    assert [one.item_ids[0] for one in found] == list(range(20))
    with pytest.raises(ValueError, match="1 keys came for 2 users"):
        run(world.session().ask(Request(users[:2], keys=["a"])))


def test_a_challenger_that_is_gone_costs_nothing() -> None:
    world = split_world("0.999")
    world.outcomes = [failure("NOT_FOUND")]
    session = world.session()
    assert run(session.ask(Request([{"age": 7}], keys=["a"])))[0].item_ids[0] == 7
    assert [step.ending for step in world.steps[1:]] == ["_b", ""]
    world.model_config = config_of(SCHEMA)
    run(session.ask(Request([{"age": 7}], keys=["a"])))
    assert [type(step) for step in world.steps[3:]] == [AskConfig, AskItems]
    assert world.steps[-1].ending == ""


def test_the_layout_is_asked_for_again_after_a_while() -> None:
    world = World()
    session = world.session()
    run(session.ask(Request([{"age": 1}])))
    world.now += LAYOUT_AGE_S + 1
    world.outcomes = []
    run(session.ask(Request([{"age": 1}])))
    run(session.ask(Request([{"age": 1}])))
    kinds = [type(step) for step in world.steps]
    assert kinds == [AskConfig, AskItems, AskConfig, AskItems, AskItems]
