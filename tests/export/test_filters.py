"""What an export writes for the filters: every row of every value, in the order of the release."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cascade.artifact import ArtifactError
from cascade.data.parts import fixed_size_list
from cascade.encoding import Encoder, InvalidInput
from cascade.schema import Feature, Schema
from cascade.spec import RETRIEVE
from cascade.stages.filters.items import FilterItems
from export.artifacts import filters
from export.context import Source, read_catalogue
from tests.filter_cases import Shop

SCHEMA = Schema(
    "films",
    (
        Feature("age", "user", "dense", "identity"),
        Feature("genres", "item", "bag", "vocabulary", length=2),
        Feature("studio", "item", "categorical", "vocabulary"),
        Feature("director", "item", "categorical", "hash", buckets=3),
    ),
)
RAW = {
    "genres": ["Drama|Comedy|War", "Comedy|Comedy", "", None],
    "studio": ["A", "Bé", "A", ""],
    "director": ["x", "y", "z", "x"],
}
IDS = np.array([40, 10, 30, 20])
VOCABULARIES = {"genres": [b"Comedy", b"Drama"], "studio": [b"A"]}


def catalogue(folder: Path, raw: dict[str, list[Any]], vocabularies: Any = None) -> Encoder:
    """Write checkpoints that hold a catalogue alone; its raw columns are those of `raw`."""
    encoder = Encoder.fit(SCHEMA, vocabularies or VOCABULARIES)
    dense, ids = encoder.encode_table("item", pa.table({**RAW, **raw}))
    encoded = {"dense": fixed_size_list(dense), "ids": fixed_size_list(ids.astype(np.int32))}
    pq.write_table(pa.table({"item_id": IDS, **raw, **encoded}), folder / "catalogue.parquet")
    return encoder


def write(folder: Path, encoder: Encoder, wanted: list[str] | None = None) -> FilterItems:
    order = np.array([2, 0, 3, 1])
    items = read_catalogue(folder).take(order)
    filters.write(Source(folder, encoder, items, order), folder, wanted)
    return FilterItems(folder, encoder.schema.hash)


def ids_having(items: FilterItems, allow: dict[str, list[bytes]]) -> list[int]:
    return sorted(IDS[[2, 0, 3, 1]][items.having(allow)].tolist())


def test_raw_values_are_exact_whatever_their_encoding(tmp_path: Path) -> None:
    items = write(tmp_path, catalogue(tmp_path, RAW))
    assert ids_having(items, {"genres": [b"Comedy"]}) == [10, 40]
    assert ids_having(items, {"genres": [b"War"]}) == [40]  # beyond what the model reads of a bag
    assert ids_having(items, {"studio": ["Bé".encode()]}) == [10]  # in no vocabulary
    assert ids_having(items, {"director": [b"x"]}) == [20, 40]  # hashed
    assert ids_having(items, {"director": [b"x", b"y"]}) == [10, 20, 40]
    assert ids_having(items, {"director": [b"x", b"y"], "genres": [b"Comedy"]}) == [10, 40]
    assert ids_having(items, {"studio": [b"", b"a", b"AA", b"Z"]}) == []
    assert ids_having(items, {"studio": []}) == []
    assert ids_having(items, {}) == [10, 20, 30, 40]
    ids = np.array([20, 99, 40, 20, -5])
    assert set(items.rows(ids)) == {1, 2}
    assert items.named(np.array([0, 2, 3, 1]), ids).tolist() == [False, True, False, True]
    assert items.named(np.array([0, 3]), ids).tolist() == [False, False]
    assert items.named(np.array([], np.int64), ids).tolist() == []


def test_encoded_values_are_decoded_where_that_is_exact(tmp_path: Path) -> None:
    vocabularies = {"genres": [b"Comedy", b"Drama", b"War"], "studio": ["Bé".encode(), b"A"]}
    items = write(tmp_path, catalogue(tmp_path, {}, vocabularies))
    assert ids_having(items, {"studio": [b"A"]}) == [30, 40]
    assert ids_having(items, {"studio": ["Bé".encode()]}) == [10]
    with pytest.raises(InvalidInput, match=r"director cannot be asked for: .*hashes of its values"):
        items.having({"director": [b"x"]})
    with pytest.raises(InvalidInput, match="genres cannot be asked for: a bag of 2 members or mor"):
        items.having({"genres": [b"Comedy"]})


def test_a_value_beyond_the_vocabulary_makes_a_feature_ambiguous(tmp_path: Path) -> None:
    encoder = catalogue(tmp_path, {})
    with pytest.raises(
        InvalidInput, match=r"studio cannot be asked for: .*vocabulary does not know"
    ):
        write(tmp_path, encoder).having({"studio": [b"A"]})
    with pytest.raises(ArtifactError, match="feature studio cannot be filtered by: some items"):
        write(tmp_path, encoder, ["studio"])


def test_features_may_be_left_out(tmp_path: Path) -> None:
    encoder = catalogue(tmp_path, RAW)
    items = write(tmp_path, encoder, ["studio"])
    assert ids_having(items, {"studio": [b"A"]}) == [30, 40]
    with pytest.raises(InvalidInput, match="genres cannot be asked for: it was left out"):
        items.having({"genres": [b"War"]})
    nothing = write(tmp_path, encoder, [])
    assert sorted(nothing.rows(IDS)) == [0, 1, 2, 3]
    with pytest.raises(InvalidInput, match="called 'actor'; known: none"):
        nothing.having({"actor": [b"x"]})
    with pytest.raises(ArtifactError, match=r"called actor; known: \['genres', 'studio', 'dir"):
        write(tmp_path, encoder, ["actor"])


def test_an_id_of_two_items_is_refused(tmp_path: Path) -> None:
    encoder = catalogue(tmp_path, RAW)
    items = read_catalogue(tmp_path).take(np.array([0, 1, 2, 2]))
    source = Source(tmp_path, encoder, items, np.arange(4))
    with pytest.raises(ArtifactError, match="item 30 is in the catalogue more than once"):
        filters.write(source, tmp_path, None)


@pytest.mark.parametrize("index", ["ivf", "exact"])
def test_rows_are_those_of_the_release(make_cascade: Callable[..., Any], index: str) -> None:
    cascade = make_cascade(items=400, users=40, index=index)
    shop = Shop.of(cascade.checkpoints, cascade.schema)
    ids = cascade.pipeline().item_ids
    items = FilterItems(cascade.repository / RETRIEVE / "1", cascade.schema.hash)
    assert set(ids[items.rows(shop.ids[5:9])]) == set(shop.ids[5:9])
    for feature, values in list(shop.values.items())[:3]:
        for value in ("3", "nobody's"):
            value = f"{feature}-{value}"
            expected = {int(i) for i, mine in zip(shop.ids, values, strict=True) if value in mine}
            assert set(ids[items.having({feature: [value.encode()]})]) == expected
