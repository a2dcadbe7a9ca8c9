"""The stage `lookup` without a server: what it hands on, what it counts, when it asks its store."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascade.encoding import InvalidInput
from cascade.serving.lookup import LAYOUT_FILE, Lookup, LookupCounts
from cascade.serving.runtime import ArtifactError
from cascade.serving.stages import load_stage, load_stages
from cascade.spec import LOOKUP, Serving, wire_features
from cascade.store import OtherLayout, StoreError, UserLayout, UserStore, open_backend
from cascade.store.breaker import Breaker
from perf.resilience.redis_server import RedisServer
from tests.conftest import BAGS

LAYOUT = UserLayout.from_features(wire_features(BAGS), BAGS.layout_hash)
NONE = np.array([[b""]], object)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / LAYOUT_FILE).write_text(LAYOUT.to_json())
    return tmp_path


@pytest.fixture
def redis(tmp_path: Path) -> Any:
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis") as server:
        with UserStore.create(server.url(), LAYOUT) as store:
            dense, categorical = LAYOUT.nobody(2)
            dense[:, 0], categorical[:, 0] = (31, 32), (b"paris", b"rome")
            store.put([0, 1], dense, categorical)
        yield server


def texts(*values: str | bytes) -> Any:
    made = [value.encode() if isinstance(value, str) else value for value in values]
    return np.array(made, object).reshape(-1, 1)


def test_it_hands_on_what_is_stored_with_what_the_request_says(folder: Path, redis: Any) -> None:
    lookup = Lookup(folder, open_backend(f"{redis.url()}?timeout_ms=2000"))
    context = json.dumps({"city": "oslo", "history": ["a", 2], "visits": 3, "age": None})
    ids = texts("1", "0", "7", "0")
    dense, categorical, cold = lookup(ids, texts("", context, context, ""))
    age, visits = 0, 1
    np.testing.assert_array_equal(dense[:, age], np.float32([32, np.nan, np.nan, 31]))
    np.testing.assert_array_equal(dense[:, visits], np.float32([np.nan, 3, 3, np.nan]))
    assert categorical[:, 0].tolist() == [b"rome", b"oslo", b"oslo", b"paris"]
    assert categorical[:, 2].tolist() == [b"", b"a|2", b"a|2", b""]
    assert (dense.dtype, cold.dtype) == (np.float32, np.bool_)
    assert cold.tolist() == [[False], [False], [True], [False]]
    assert lookup.counts == LookupCounts(found=3, cold=1)


def test_a_bad_context_is_not_counted(folder: Path, redis: Any) -> None:
    """The server runs the others of its batch again."""
    lookup = Lookup(folder, open_backend(redis.url()))
    with pytest.raises(InvalidInput, match="context: unknown feature 'town'"):
        lookup(texts("0", "1"), texts("", '{"town": "x"}'))
    assert lookup.counts == LookupCounts()


def test_a_store_that_is_gone_is_asked_three_times_and_then_once_in_a_while(
    folder: Path, redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    breaker = Breaker(failures=3, pause_s=1.0, clock=lambda: now)
    backend = open_backend(f"{redis.url()}?timeout_ms=2000")
    lookup = Lookup(folder, backend, breaker, clock=lambda: now)
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
            _, categorical, cold = lookup(texts("0", "1"), texts("", '{"city": "oslo"}'))
            assert cold.all()
            assert categorical[:, 0].tolist() == [b"", b"oslo"]
    assert asked == 3
    assert lookup.counts == LookupCounts(failed=100)
    assert len(caplog.records) == 1
    now = 1.0
    lookup(texts("0"), NONE)
    assert asked == 4  # one tries, and pays for it
    lookup(texts("0"), NONE)
    assert asked == 4
    redis.start()
    lookup(texts("0"), NONE)
    assert asked == 4  # nobody knows yet
    now = 2.0
    assert not lookup(texts("0"), NONE)[2].any()
    assert not lookup(texts("1"), NONE)[2].any()
    assert lookup.counts == LookupCounts(found=2, failed=103)


def test_records_of_another_layout_are_nobody(
    folder: Path, redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    other = UserLayout(("height",), (), {}, "0123456789abcdef")
    lookup = Lookup(folder, open_backend(f"{redis.url()}?timeout_ms=2000"))
    with UserStore.create(redis.url(), other, replace=True) as store:
        store.put(["0"], *other.nobody())
    assert lookup(texts("0", "1", "2"), texts("", "", ""))[2].tolist() == [[True], [False], [True]]
    assert lookup.counts == LookupCounts(found=1, cold=1, failed=1)
    assert "holds users that are not of" in caplog.text
    with pytest.raises(OtherLayout, match="was written for layout 0123456789abcdef"):
        Lookup(folder, open_backend(redis.url()))


def test_it_is_loaded_like_every_stage(folder: Path, tmp_path: Path) -> None:
    serving = Serving(store=f"lmdb:{tmp_path / 'users'}")
    for stage in (
        load_stage(LOOKUP, folder, serving, 0),
        load_stages([LOOKUP], folder, serving, 0),
    ):
        dense, categorical, cold = stage(texts("a", "b"), texts("", ""))
        assert cold.all()
        assert np.isnan(dense).all()
        assert not categorical.any()
    with pytest.raises(ValueError, match="expected lmdb:PATH"):
        load_stage(LOOKUP, folder, Serving(), 0)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"dense": 3}'])
def test_a_damaged_folder_is_named(folder: Path, text: str) -> None:
    (folder / LAYOUT_FILE).write_text(text)
    with pytest.raises(ArtifactError, match=rf"{LAYOUT_FILE}: not a layout of users"):
        load_stage(LOOKUP, folder, Serving(store="lmdb:x"), 0)
    (folder / LAYOUT_FILE).unlink()
    with pytest.raises(ArtifactError, match="Export again with --store"):
        load_stage(LOOKUP, folder, Serving(store="lmdb:x"), 0)


def test_an_error_of_the_store_says_which_it_is(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=str(tmp_path)):
        open_backend(f"lmdb:{tmp_path / 'no'}").get([b"0"])
