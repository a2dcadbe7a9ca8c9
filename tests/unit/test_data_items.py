"""Items numbered by their features, vocabularies counted in chunks: against plain dicts."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.data.distinct import DistinctItems, ListedItems, Vocabularies, hash_rows
from cascade.data.source import DataError
from cascade.schema import Feature, Schema

SCHEMA = Schema(
    "test",
    (
        Feature("age", "user", "dense", "log1p"),
        Feature("price", "item", "dense", "log1p"),
        Feature("brand", "item", "categorical", "vocabulary"),
        Feature("tags", "item", "bag", "vocabulary", length=3),
    ),
)
WORDS = st.one_of(st.none(), st.text("ab\0é", max_size=20))
ITEMS = st.tuples(st.one_of(st.none(), st.integers(0, 3)), WORDS, WORDS)


def table(rows):
    columns = list(zip(*rows, strict=True)) if rows else [[]] * 3
    types = (pa.float32(), pa.string(), pa.string())
    arrays = [pa.array(c, t) for c, t in zip(columns, types, strict=True)]
    return pa.table(arrays, ["price", "brand", "tags"])


def plain(row):
    return (row[0], row[1] or "", row[2] or "")  # null and empty are both missing


@given(st.lists(st.lists(ITEMS, max_size=8), max_size=6))
def test_distinct_items_are_numbered_as_they_appear(tmp_path_factory, chunks):
    known: dict = {}
    items = DistinctItems(SCHEMA, tmp_path_factory.mktemp("items") / "items")
    for rows in chunks:
        expected = [known.setdefault(plain(row), len(known)) for row in rows]
        assert items.rows(table(rows)).tolist() == expected
    assert items.count == len(known)
    written = [tuple(row.values()) for part in items.tables() for row in part.to_pylist()]
    assert [plain(row) for row in written] == list(known)
    assert [row[-1] for row in written] == list(range(len(known)))


def test_many_items_over_many_chunks(tmp_path):
    random = np.random.default_rng(0)
    known: dict = {}
    items = DistinctItems(SCHEMA, tmp_path / "items")
    for _ in range(30):
        codes = random.integers(0, 5000, 400)
        rows = [(float(code % 7), f"{code:08x}", None) for code in codes]
        expected = [known.setdefault(row, len(known)) for row in rows]
        assert items.rows(table(rows)).tolist() == expected
    runs = [len(run[0]) for run in items._runs]
    assert sum(runs) == items.count == len(known)
    assert all(long >= 2 * short for long, short in pairwise(runs))


def test_hash_tells_columns_lengths_and_padding_apart():
    rows = [(None, "a", "b"), (None, "b", "a"), (None, "ab", ""), (None, "", "ab")]
    rows += [(None, "a\0", ""), (None, "a", ""), (None, "12345678", ""), (None, "12345678\0", "")]
    rows += [(1, "", ""), (None, "1", ""), (None, "x" * 17, ""), (None, "x" * 16 + "y", "")]
    hashes = hash_rows(table(rows))
    assert len(set(hashes.tolist())) == len(rows)


def test_hash_of_a_slice_is_that_of_the_whole():
    rows = table([(None, word, "x") for word in ("zero", "one", "two and a half", "three")])
    np.testing.assert_array_equal(hash_rows(rows.slice(1, 2)), hash_rows(rows)[1:3])


def test_listed_items_are_found_by_id():
    items = ListedItems(pa.table({"item_id": [30, 10, 20]}))
    assert items.rows(pa.table({"item_id": [10, 20, 30, 10]})).tolist() == [1, 2, 0, 1]
    with pytest.raises(DataError, match="item 25 is shown"):
        items.rows(pa.table({"item_id": [10, 25]}))
    with pytest.raises(DataError, match="item 31 is shown"):
        items.rows(pa.table({"item_id": [31]}))
    with pytest.raises(DataError, match="names item 10 more than once"):
        ListedItems(pa.table({"item_id": [10, 20, 10]}))


def brands(min_count):
    brand = Feature("brand", "item", "categorical", "vocabulary", min_count=min_count)
    return Schema("brands", (SCHEMA.features[0], brand))


@given(st.lists(st.lists(WORDS, max_size=10), max_size=6), st.integers(1, 3))
def test_counts_equal_a_counter(chunks, min_count):
    counts = Vocabularies(brands(min_count), ("item",))
    for words in chunks:
        counts.add(pa.table({"brand": pa.array(words, pa.string())}))
    counter = Counter(word.encode() for words in chunks for word in words if word)
    expected = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    assert counts.fitted() == {"brand": [word for word, n in expected if n >= min_count]}


def test_counts_merge_as_they_grow(monkeypatch):
    monkeypatch.setattr("cascade.data.distinct.COMPACT_AT", 10)
    counts = Vocabularies(brands(5), ("item",))
    for start in range(100):
        counts.add(pa.table({"brand": [str(value) for value in range(start, start + 5)]}))
        merged, *since = map(len, counts._counts["brand"])
        assert sum(since) <= max(10, merged)
    assert sorted(map(int, counts.fitted()["brand"])) == list(range(4, 100))


def test_bags_count_member_by_member():
    vocabularies = Vocabularies(SCHEMA, ("item",))
    vocabularies.add(table([(1, "x", "b|a"), (1, "x", "|b|"), (1, None, None), (1, "y", "")]))
    assert vocabularies.fitted() == {"brand": [b"x", b"y"], "tags": [b"b", b"a"]}


def test_value_with_a_line_feed_is_refused():
    vocabularies = Vocabularies(SCHEMA, ("item",))
    vocabularies.add(table([(1, "two\nlines", None)]))
    with pytest.raises(DataError, match=r"feature brand: the value .*line feed"):
        vocabularies.fitted()
