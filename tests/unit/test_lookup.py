"""The stage `lookup` without a server: what it hands on, what it counts, when it asks its store."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis

from cascade.config import Product, Serving
from cascade.encoding import InvalidInput
from cascade.layout import RequestLayout
from cascade.spec import LOOKUP, TOPOLOGIES
from cascade.stages.context import Contexts
from cascade.stages.load import load_stages
from cascade.stages.lookup import CircuitBreaker, Lookup
from cascade.store import OtherLayout, StoreError, UserStore, open_backend
from export.releases.rewire import rewire, serving_of
from export.users import layout_of
from tests.cascades import BAGS
from tests.redis_server import RedisServer

LAYOUT = RequestLayout.of(BAGS)


@pytest.fixture
def redis(tmp_path: Path) -> Any:
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis") as server:
        with UserStore.create(server.url(), LAYOUT) as store:
            dense, categorical = LAYOUT.empty(2)
            dense[:, 0], categorical[:, 0] = (31, 32), (b"paris", b"rome")
            store.put([0, 1], dense, categorical)
        yield server


def texts(*values: str | bytes) -> Any:
    made = [value.encode() if isinstance(value, str) else value for value in values]
    return np.array(made, object).reshape(-1, 1)


def counted(found: int = 0, cold: int = 0, failed: int = 0) -> dict[str, int]:
    return {"users_found": found, "cold_starts": cold, "store_failures": failed}


def ask(lookup: Lookup, ids: Any, contexts: Any = None) -> Any:
    """Users by id alone."""
    contexts = texts(*[""] * len(ids)) if contexts is None else contexts
    return lookup(*LAYOUT.empty(len(ids)), ids, contexts)


def test_it_hands_on_what_is_stored_with_what_the_request_says(redis: Any) -> None:
    lookup = Lookup(LAYOUT, open_backend(f"{redis.url()}?timeout_ms=2000"))
    context = json.dumps({"city": "oslo", "history": ["a", 2], "visits": 3, "age": None})
    ids = texts("1", "0", "7", "0")
    dense, categorical, cold = ask(lookup, ids, texts("", context, context, ""))
    age, visits = 0, 1
    np.testing.assert_array_equal(dense[:, age], np.float32([32, np.nan, np.nan, 31]))
    np.testing.assert_array_equal(dense[:, visits], np.float32([np.nan, 3, 3, np.nan]))
    assert categorical[:, 0].tolist() == [b"rome", b"oslo", b"oslo", b"paris"]
    assert categorical[:, 2].tolist() == [b"", b"a|2", b"a|2", b""]
    assert (dense.dtype, cold.dtype) == (np.float32, np.bool_)
    assert cold.tolist() == [[False], [False], [True], [False]]
    assert lookup.counts() == counted(found=3, cold=1)


def test_a_bad_context_is_not_counted(redis: Any) -> None:
    """The server runs the others of its batch again."""
    lookup = Lookup(LAYOUT, open_backend(redis.url()))
    with pytest.raises(InvalidInput, match="context: unknown feature 'town'"):
        ask(lookup, texts("0", "1"), texts("", '{"town": "x"}'))
    assert lookup.counts() == counted()


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ("{", "context: b'{' is not JSON: "),
        ("[" * 50_000, "is not JSON that can be read: it is nested too deeply"),
        ('{"visits": 1, "visits": 2}', "is an object that has 'visits' twice; give it one value"),
        ('{"visits": {"x": 1, "x": 2}}', "is an object that has 'x' twice; give it one value"),
        (r'{"city": "\ud800"}', "feature city: .* expected text that UTF-8 can hold"),
        (r'{"\ud800": 1}', r"unknown feature '\\ud800'"),
    ],
)
def test_a_context_that_cannot_be_read_is_refused(context: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Contexts(LAYOUT).read(texts(context))


def test_a_store_that_is_gone_is_asked_three_times_and_then_once_in_a_while(
    redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    breaker = CircuitBreaker(failures=3, pause_s=1.0, clock=lambda: now)
    backend = open_backend(f"{redis.url()}?timeout_ms=2000")
    lookup = Lookup(LAYOUT, backend, breaker, clock=lambda: now)
    asked = 0
    get = backend.get

    def counting(ids: Sequence[bytes]) -> Any:
        nonlocal asked
        asked += 1
        return get(ids)

    backend.get = counting  # type: ignore[method-assign]
    redis.kill()
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            _, categorical, cold = ask(lookup, texts("0", "1"), texts("", '{"city": "oslo"}'))
            assert cold.all()
            assert categorical[:, 0].tolist() == [b"", b"oslo"]
    assert asked == 3
    assert lookup.counts() == counted(failed=100)
    assert lookup.levels() == {"store_up": 0, "store_ours": 1}
    assert len(caplog.records) == 1
    now = 1.0
    ask(lookup, texts("0"))
    assert asked == 4  # one tries, and pays for it
    ask(lookup, texts("0"))
    assert asked == 4
    redis.start()
    ask(lookup, texts("0"))
    assert asked == 4  # nobody knows yet
    now = 2.0
    assert not ask(lookup, texts("0"))[2].any()
    assert not ask(lookup, texts("1"))[2].any()
    assert lookup.counts() == counted(found=2, failed=103)
    assert lookup.levels() == {"store_up": 1, "store_ours": 1}


def test_records_of_another_layout_are_nobody(redis: Any, caplog: pytest.LogCaptureFixture) -> None:
    other = RequestLayout(("height",), (), "0123456789abcdef")
    lookup = Lookup(LAYOUT, open_backend(f"{redis.url()}?timeout_ms=2000"))
    with UserStore.create(redis.url(), other, replace=True) as store:
        store.put(["0"], *other.empty())
    assert ask(lookup, texts("0", "1", "2"), texts("", "", ""))[2].tolist() == [
        [True],
        [False],
        [True],
    ]
    assert lookup.counts() == counted(found=1, cold=1, failed=1)
    assert "holds users that are not of" in caplog.text
    with pytest.raises(OtherLayout, match="was written for layout 0123456789abcdef"):
        Lookup(LAYOUT, open_backend(redis.url()))


def test_a_store_that_is_emptied_or_replaced_is_told(
    redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    url = f"{redis.url()}?timeout_ms=2000"
    lookup = Lookup(LAYOUT, open_backend(url), clock=lambda: now)
    other = RequestLayout(("height",), (), "0123456789abcdef")

    def ours() -> float:
        nonlocal now
        now += 60
        ask(lookup, texts("0"))
        return lookup.levels()["store_ours"]

    assert ours() == 1
    with Redis.from_url(redis.url()) as client:
        client.flushdb()
        assert ours() == 0
        assert "is empty" in caplog.text
        with UserStore.create(url, other) as store:
            store.put(["7"], *other.empty())
        assert ours() == 0
        assert "was written for layout 0123456789abcdef" in caplog.text
        client.set("cascade:layout", "garbage")
        assert ours() == 0
        with UserStore.create(url, LAYOUT, replace=True):
            pass
        assert ours() == 1  # user 0 is unknown, in a store of ours


@pytest.mark.parametrize("topology", ["ensemble", "fused"])
def test_the_stages_behind_it_are_as_they_were(
    criteo: Any, topology: Any, tmp_path: Path, assert_same_answers: Callable[..., None]
) -> None:
    """Users with features, users by id and both at once through one process."""
    store = f"lmdb:{tmp_path / 'users'}"
    rewire(criteo.repository, tmp_path, replace(serving_of(criteo.repository), topology=topology))
    ((model, process), *_) = TOPOLOGIES[topology].items()
    held = process.stages
    folder, serving = tmp_path / model / "1", Serving(threads=1)
    layout = layout_of(tmp_path)
    with UserStore.create(store, layout) as users:
        users.put(range(4), criteo.dense[:4], criteo.categorical[:4])
    plain = load_stages(held, folder, serving, 1000)
    first = load_stages((LOOKUP, *held), folder, serving, 1000, product=Product(store=store))
    assert first.inputs == (*plain.inputs, "user_id", "context")
    assert first.outputs == (*plain.outputs, "cold_start")
    assert first.schema_hash == plain.schema_hash
    expected = plain(criteo.dense[:8], criteo.categorical[:8])
    dense, categorical = layout.empty(8)
    dense[4:], categorical[4:] = criteo.dense[4:8], criteo.categorical[4:8]
    ids = texts("0", "1", "2", "3", "", "", "", "")
    *found, cold = first(dense, categorical, ids, texts(*[""] * 8))
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
    assert cold[:, 0].tolist() == [False] * 4 + [True] * 4
    assert np.isnan(dense[:4]).all()  # what came is left as it is


def test_an_error_of_the_store_says_which_it_is(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=str(tmp_path)):
        open_backend(f"lmdb:{tmp_path / 'no'}").get([b"0"])
