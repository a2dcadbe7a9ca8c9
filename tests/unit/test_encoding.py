"""Raw values to tensors: the bulk form equals the wire form, whatever comes."""

import zlib
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.encoding import FIRST, MAX_VALUE_BYTES, MISSING, UNKNOWN, Encoder, InvalidInput
from cascade.schema import Feature, Schema, SchemaError

SCHEMA = Schema(
    "test",
    (
        Feature("visits", "user", "dense", "log1p"),
        Feature("city", "user", "categorical", "vocabulary"),
        Feature("score", "user", "dense", "identity"),
        Feature("likes", "user", "bag", "vocabulary", length=3),
        Feature("agent", "user", "categorical", "hash", buckets=7),
        Feature("tags", "user", "bag", "hash", length=2, buckets=5),
        Feature("played", "user", "sequence", "vocabulary", length=3),
        Feature("id", "item", "categorical", "vocabulary"),
    ),
)
VOCABULARIES = {
    "city": [b"Roma", b"K\xc3\xb6ln", b"a"],
    "likes": [b"b", b"a", b"\xc3\xa9"],
    "id": [b"1", b"2"],
    "played": [b"a", b"b", b"c", b"d"],
}
ENCODER = Encoder.fit(SCHEMA, VOCABULARIES)

NUMBERS = st.one_of(st.just(float("nan")), st.floats(-5, 1e6, width=32))
WORDS = st.one_of(
    st.none(),
    st.just(""),
    st.sampled_from(["Roma", "Köln", "a"]),
    st.text("abé\U0001f600", max_size=4),
)
BAGS = st.one_of(st.none(), st.lists(st.sampled_from(["a", "b", "é", "zz", ""])).map("|".join))
USERS = st.lists(st.tuples(NUMBERS, WORDS, NUMBERS, BAGS, WORDS, BAGS, BAGS), max_size=12)


def wire(value):
    return (value or "").encode()


@given(USERS)
def test_bulk_encoding_equals_wire_encoding(rows):
    names = [feature.name for feature in SCHEMA.side("user")]
    columns = list(zip(*rows, strict=True)) if rows else [[]] * len(names)
    table = pa.table(
        {
            name: pa.array(column, pa.float32() if name in ("visits", "score") else pa.string())
            for name, column in zip(names, columns, strict=True)
        }
    )
    dense = np.array([[row[0], row[2]] for row in rows], np.float32).reshape(-1, 2)
    categorical = np.array([[wire(row[i]) for i in (1, 3, 4, 5, 6)] for row in rows], object)
    expected = ENCODER.encode("user", dense, categorical.reshape(-1, 5))
    bulk = ENCODER.encode_table("user", table)
    np.testing.assert_array_equal(bulk[0], expected[0])
    np.testing.assert_array_equal(bulk[1], expected[1])
    assert bulk[0].dtype == np.float32
    assert bulk[1].dtype == np.int64


def test_null_number_is_missing_like_nan():
    columns = {f.name: pa.array([None], pa.string()) for f in SCHEMA.side("user")}
    columns |= {name: pa.array([None], pa.float32()) for name in ("visits", "score")}
    dense, ids = ENCODER.encode_table("user", pa.table(columns))
    np.testing.assert_array_equal(dense, [[0, 0]])
    np.testing.assert_array_equal(ids, np.full((1, 10), MISSING))


def test_unknown_values_are_counted_by_user_and_feature():
    """Of those that are read; hashed values are all known."""
    schema = ENCODER.schema
    names = [feature.name for feature in schema.ids("user")]
    rows = [
        [b"Roma", b"a|zz|b|a", b"x", b"p", b"a|b|c|d"],
        [b"nowhere", b"zz|yy|", b"", b"", b"zz|a|b|c"],
        [b"", b"", b"", b"", b"xx|yy|zz"],
    ]
    unknown = np.zeros((3, len(names)), np.int64)
    dense = np.zeros((3, schema.dense_width("user")))
    _, ids = ENCODER.encode("user", dense, np.array(rows, object), unknown)
    column = 0
    for place, feature in enumerate(schema.ids("user")):
        block = ids[:, column : column + feature.length]
        np.testing.assert_array_equal(unknown[:, place], (block == UNKNOWN).sum(1))
        column += feature.length
    assert unknown.sum() > 4


def test_known_answers():
    dense = np.array([[np.e - 1, -2.5], [np.nan, np.nan], [-3, 1]])
    categorical = np.array(
        [
            [b"Roma", b"a|zz|b|a", b"x", b"p", b"a|b|c|d"],
            [b"", b"", b"", b"", b""],
            [b"Paris", b"|a||b|", "Köln".encode(), b"p|q|r", b"|b||a|"],
        ],
        object,
    )
    encoded, ids = ENCODER.encode("user", dense, categorical)
    np.testing.assert_allclose(encoded, [[1, -2.5], [0, 0], [0, 1]], rtol=1e-6)

    def bucket(value, buckets):
        return FIRST + zlib.crc32(value) % buckets

    a, b = FIRST + 1, FIRST
    p, q = bucket(b"p", 5), bucket(b"q", 5)
    np.testing.assert_array_equal(
        ids,
        [
            [FIRST, a, UNKNOWN, b, bucket(b"x", 7), p, 0, 3, 4, 5],
            [MISSING, 0, 0, 0, MISSING, 0, 0, 0, 0, 0],
            [UNKNOWN, a, b, 0, bucket("Köln".encode(), 7), p, q, 0, 3, 2],
        ],
    )


def test_a_sequence_keeps_its_order_its_newest_members_and_pads_in_front():
    played = SCHEMA.ids("user")[-1]
    a, b, c, d = range(FIRST, FIRST + 4)
    values = {b"": [0, 0, 0], b"a": [0, 0, a], b"a|b": [0, a, b], b"b|a": [0, b, a]}
    values |= {b"a|b|c|d": [b, c, d], b"||d|zz||a|": [d, UNKNOWN, a]}
    assert ENCODER.ids(played, [*values]).tolist() == [*values.values()]


def test_encoding_leaves_its_input_alone():
    dense = np.array([[np.nan, 3]], np.float32)
    ENCODER.encode_dense("user", dense)
    np.testing.assert_array_equal(dense, np.array([[np.nan, 3]], np.float32))


@pytest.mark.parametrize(
    ("dense", "city", "message"),
    [
        ([1, np.inf], b"", r"feature score: inf .*NaN"),
        ([-np.inf, 1], b"", r"feature visits: -inf"),
        ([1, 1], b"\xff\xfe", r"feature city: .*not UTF-8"),
        ([1, 1], b"x" * (MAX_VALUE_BYTES + 1), rf"feature city: .*{MAX_VALUE_BYTES + 1} bytes"),
    ],
)
def test_unreadable_value_is_refused_by_feature(dense, city, message):
    with pytest.raises(InvalidInput, match=message):
        ENCODER.encode("user", np.array([dense]), np.array([[city, b"", b"", b"", b""]], object))


@given(
    st.lists(
        st.binary(min_size=1, max_size=5).filter(lambda value: b"\n" not in value),
        unique=True,
        max_size=5,
    )
)
def test_encoder_survives_the_disk(tmp_path_factory, cities):
    folder = tmp_path_factory.mktemp("encoder")
    encoder = Encoder.fit(SCHEMA, {**VOCABULARIES, "city": cities})
    encoder.save(folder)
    loaded = Encoder.load(folder)
    assert loaded.schema == encoder.schema
    feature = loaded.schema.ids("user")[0]
    expected = np.arange(FIRST, FIRST + len(cities))[:, None]
    np.testing.assert_array_equal(loaded.ids(feature, cities), expected)


def test_fitted_schema_counts_its_tables():
    rows = {f.name: f.cardinality for f in ENCODER.schema.features if f.kind != "dense"}
    assert rows == {"city": 5, "likes": 5, "agent": 9, "tags": 7, "played": 6, "id": 4}
    other = Encoder.fit(SCHEMA, {**VOCABULARIES, "id": [b"2", b"1"]}).schema
    assert other.hash != ENCODER.schema.hash
    assert other.layout_hash == ENCODER.schema.layout_hash == SCHEMA.layout_hash


def test_server_needs_the_users_vocabularies_only(tmp_path):
    ENCODER.save(tmp_path)
    (tmp_path / "vocabulary" / "id.txt").unlink()
    assert Encoder.load(tmp_path, ("user",)).schema == ENCODER.schema
    with pytest.raises(SchemaError, match=r"feature id: its vocabulary .*id\.txt is missing"):
        Encoder.load(tmp_path)


ODD_NAMES = (
    *("ciudad_año", "城市", "geo/city", "../up", "a.b", ".", "..", "", ".txt", "a b", "a%20b", "%"),
    *("x" * 300, "x" * 301, "é" * 100, "é" * 300, "nul\0", "line\nend", "City", "city", "\ud800"),
)


def test_features_of_any_name_have_files_of_their_own(tmp_path):
    features = [Feature(name, "user", "categorical", "vocabulary") for name in ODD_NAMES]
    item = Feature("item", "item", "dense", "identity")
    words = {name: [f"word {i}".encode()] for i, name in enumerate(ODD_NAMES)}
    numbers = {name: np.array([5 + i]) for i, name in enumerate(ODD_NAMES)}
    encoder = Encoder.fit(Schema("odd", (*features, item)), words, numbers)
    (tmp_path / "inner").mkdir()
    encoder.save(tmp_path / "inner")
    loaded = Encoder.load(tmp_path / "inner")
    for feature in features:
        assert loaded.vocabulary(feature) == encoder.vocabulary(feature)
    (inner,) = tmp_path.iterdir()
    names = [path.name for path in (inner / "vocabulary").iterdir()]
    assert {*inner.iterdir()} == {inner / "schema.json", inner / "vocabulary"}
    assert len(names) == 2 * len(ODD_NAMES)
    assert {"city.txt", "a.b.txt", "geo%2Fcity.txt"} <= {*names}  # plain names stay
    assert all(name.isascii() and len(name) < 255 for name in names)


def test_vocabularies_of_earlier_versions_lie_under_the_names_themselves(tmp_path):
    names = ("ciudad_año", "a b")
    features = [Feature(name, "user", "categorical", "vocabulary") for name in names]
    item = Feature("item", "item", "dense", "identity")
    words, numbers = {name: [b"x"] for name in names}, {"a b": np.array([7])}
    encoder = Encoder.fit(Schema("earlier", (*features, item)), words, numbers)
    encoder.save(tmp_path)
    for path in (tmp_path / "vocabulary").iterdir():
        path.rename(path.with_name(unquote(path.name)))
    assert Encoder.load(tmp_path).vocabulary(features[1]) == {b"x": 7}


def test_vocabulary_of_another_fit_is_refused(tmp_path):
    ENCODER.save(tmp_path)
    (tmp_path / "vocabulary" / "city.txt").write_bytes(b"Roma")
    with pytest.raises(SchemaError, match=r"feature city: the vocabulary \(1 values\)"):
        Encoder.load(tmp_path)
    with pytest.raises(SchemaError, match="feature likes: there is no vocabulary"):
        Encoder(ENCODER.schema, {"city": VOCABULARIES["city"]})


def test_a_number_that_is_infinite_once_it_is_scaled_is_refused():
    narrow = Feature("height", "user", "dense", "identity", mean=1.0, std=1e-3)
    encoder = Encoder.fit(Schema("scaled", (narrow, SCHEMA.features[-1])), VOCABULARIES)
    with pytest.raises(InvalidInput, match=r"feature height: 1e\+37 is too large"):
        encoder.encode_dense("user", np.array([[1e37]]))
