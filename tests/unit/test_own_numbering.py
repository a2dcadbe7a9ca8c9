"""Features as a team that trained elsewhere numbers them."""

import hashlib
import zlib

import numpy as np
import pyarrow as pa
import pytest
from sklearn.utils import murmurhash3_32

from cascade.encoding import Encoder, InvalidInput
from cascade.schema import REFUSED, Feature, Schema, SchemaError
from cascade.transforms import HASHES

ITEM = Feature("sku", "item", "categorical", "integer", cardinality=9, missing_id=0, unknown_id=8)


def encoder(*features, **numbers):
    vocabularies = {f.name: [b"a", b"b", b"c"] for f in features if f.encoding == "vocabulary"}
    ids = {name: np.array(value, np.int64) for name, value in numbers.items()}
    return Encoder.fit(Schema("own", (*features, ITEM)), vocabularies, ids)


def ids(made, name, *values):
    feature = next(f for f in made.schema.features if f.name == name)
    return made.ids(feature, [value.encode() for value in values]).tolist()


def test_a_vocabulary_has_the_ids_that_the_team_gave():
    city = Feature("city", "user", "categorical", "vocabulary", missing_id=7, unknown_id=3)
    made = encoder(city, city=[5, 0, 4])
    assert ids(made, "city", "a", "b", "c", "", "x") == [[5], [0], [4], [7], [3]]
    assert made.schema.features[0].cardinality == 8


def test_own_ids_are_saved_and_belong_to_what_identifies_a_schema(tmp_path):
    city = Feature("city", "user", "categorical", "vocabulary")
    made, other = encoder(city, city=[5, 0, 4]), encoder(city, city=[5, 4, 0])
    assert made.schema.hash != other.schema.hash
    made.save(tmp_path)
    assert ids(Encoder.load(tmp_path), "city", "a", "b") == [[5], [0]]
    np.save(tmp_path / "vocabulary" / "city.npy", np.array([5, 4, 0]))
    with pytest.raises(SchemaError, match="is not the one"):
        Encoder.load(tmp_path)


def test_integers_are_ids_already():
    age = Feature("age", "user", "categorical", "integer", offset=-10, cardinality=5, unknown_id=4)
    made = encoder(age)
    assert ids(made, "age", "10", "13", "15", "9", "ten", "") == [[0], [3], [4], [4], [4], [0]]


@pytest.mark.parametrize(
    ("hashing", "expected"),
    [
        ("crc32", zlib.crc32(b"berlin") % 50),
        ("md5", int(hashlib.md5(b"berlin").hexdigest(), 16) % 50),
        ("murmur3", murmurhash3_32(b"berlin", 0, positive=True) % 50),
    ],
)
def test_hashes_find_the_bucket_that_their_library_finds(hashing, expected):
    city = Feature("city", "user", "categorical", "hash", buckets=50, hashing=hashing, offset=4)
    made = encoder(city)
    assert ids(made, "city", "berlin") == [[4 + expected]]
    assert made.schema.features[0].cardinality == 54


def test_murmur3_of_all_lengths():
    for length in range(20):
        value = bytes(range(length))
        assert HASHES["murmur3"](value, 1 << 32) == murmurhash3_32(value, 0, positive=True)


def test_an_integer_modulo_the_buckets():
    user = Feature("user", "user", "categorical", "hash", buckets=10, hashing="modulo", offset=0)
    assert ids(encoder(user), "user", "123", "-1", "x") == [[3], [9], [1]]


def test_pads_stand_on_the_side_that_a_feature_says():
    seen = Feature("seen", "user", "sequence", "vocabulary", length=3, missing_id=9)
    right = Feature("right", "user", "sequence", "vocabulary", length=3, pad_side="right")
    made = encoder(seen, right, seen=[1, 2, 3])
    assert ids(made, "seen", "a|b", "a|b|c|a", "") == [[9, 1, 2], [2, 3, 1], [9, 9, 9]]
    assert ids(made, "right", "a|b", "a|b|c|a") == [[2, 3, 0], [3, 4, 2]]


def test_a_value_without_a_row_is_refused():
    city = Feature("city", "user", "categorical", "vocabulary", unknown_id=REFUSED)
    seen = Feature("seen", "user", "bag", "vocabulary", length=2, missing_id=REFUSED)
    made = encoder(city, seen)
    with pytest.raises(InvalidInput, match="feature city: 'x' came, which is none of the values"):
        ids(made, "city", "x")
    with pytest.raises(InvalidInput, match="feature seen: nothing came; expected 2 members"):
        ids(made, "seen", "a")
    table = pa.table({"city": ["a"], "seen": ["a|b"]})
    assert made.encode_table("user", table)[1].tolist() == [[2, 2, 3]]


def test_numbers_are_filled_scaled_and_put_into_buckets():
    made = encoder(
        Feature("price", "user", "dense", "identity", fill=4.0, mean=2.0, std=0.5),
        Feature("visits", "user", "dense", "log1p", mean=1.0),
        Feature("age", "user", "dense", "buckets", boundaries=(18.0, 30.0)),
        Feature("plain", "user", "dense", "identity"),
    )
    nan = float("nan")
    found = made.encode_dense("user", np.array([[3, 0, 18, 5], [nan, 7, 17.9, nan]]))
    expected = [[2, -1, 1, 5], [4, np.log1p(7) - 1, 0, 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_schemas_of_before_keep_their_hash():
    old = Schema("old", (Feature("x", "user", "dense", "log1p"), ITEM))
    assert old.to_dict()["features"][0] == {
        "name": "x", "side": "user", "kind": "dense", "encoding": "log1p", "length": 1,
        "min_count": 1, "buckets": 0, "cardinality": 0, "digest": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "dense", "encoding": "buckets"}, "buckets need `boundaries`"),
        ({"kind": "dense", "encoding": "identity", "std": 0.0}, "std is 0"),
        (
            {"kind": "categorical", "encoding": "hash", "buckets": 3, "hashing": "sha9"},
            "hashing is 'sha9'",
        ),
    ],
)
def test_a_feature_that_contradicts_itself(options, message):
    with pytest.raises(SchemaError, match=message):
        Feature("x", "user", **options)
