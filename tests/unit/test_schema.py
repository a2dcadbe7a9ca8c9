"""One description, two hashes: what makes schemas differ, and what must not."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.data.criteo import SCHEMA as CRITEO
from cascade.schema import Feature, Schema, SchemaError, vocabulary_digest

NAMES = st.text("abcdefghij_é", min_size=1, max_size=6)


@st.composite
def features(draw, side):
    kind = draw(st.sampled_from(["dense", "categorical", "bag", "sequence"]))
    if kind == "dense":
        encoding = draw(st.sampled_from(["log1p", "identity"]))
        return Feature(draw(NAMES), side, kind, encoding)
    encoding = draw(st.sampled_from(["vocabulary", "hash"]))
    return Feature(
        draw(NAMES),
        side,
        kind,
        encoding,
        length=draw(st.integers(1, 5)) if kind in ("bag", "sequence") else 1,
        min_count=draw(st.integers(1, 9)),
        buckets=draw(st.integers(1, 1000)) if encoding == "hash" else 0,
    )


@st.composite
def schemas(draw):
    drawn = draw(st.lists(st.sampled_from(["user", "item"]).flatmap(features), max_size=6))
    drawn += [draw(features("user")), draw(features("item"))]
    named = [replace(feature, name=f"{feature.name}{i}") for i, feature in enumerate(drawn)]
    return Schema(draw(NAMES), tuple(named))


@given(schemas())
def test_schema_survives_json(tmp_path_factory, schema):
    path = tmp_path_factory.mktemp("schema") / "schema.json"
    schema.save(path)
    loaded = Schema.load(path)
    assert loaded == schema
    assert (loaded.hash, loaded.layout_hash) == (schema.hash, schema.layout_hash)


@given(schemas(), st.lists(st.binary(min_size=1, max_size=4), unique=True, max_size=4))
def test_fitting_changes_the_hash_and_keeps_the_layout(schema, values):
    ids = [feature for feature in schema.features if feature.kind != "dense"]
    fitted = schema.fitted({f.name: (2 + len(values), vocabulary_digest(values)) for f in ids})
    assert (fitted.hash != schema.hash) == bool(ids)
    assert fitted.layout_hash == schema.layout_hash
    assert all(f.cardinality == 2 + len(values) for f in fitted.features if f.kind != "dense")
    assert [replace(f, cardinality=0, digest="") for f in fitted.features] == list(schema.features)


@given(schemas())
def test_widths_follow_from_the_features(schema):
    for side in ("user", "item"):
        mine = [feature for feature in schema.features if feature.side == side]
        assert list(schema.side(side)) == mine
        assert schema.dense_width(side) == max(1, sum(f.kind == "dense" for f in mine))
        assert schema.wire_width(side) == max(1, sum(f.kind != "dense" for f in mine))
        lengths = sum(f.length for f in mine if f.kind != "dense")
        assert schema.ids_width(side) == max(1, lengths)


def test_hashes_do_not_change():
    """Releases on disk name the schema that they were made for by these."""
    fitted = CRITEO.fitted(
        {f.name: (77, "digest") for f in CRITEO.ids("user") + CRITEO.ids("item")}
    )
    assert (CRITEO.hash, CRITEO.layout_hash) == ("66e962a183640080", "9f9fa67db5e5e50a")
    assert fitted.hash == "791735668eccbaba"


def test_layout_hash_tells_requests_apart():
    schema = Schema(
        "s",
        (
            Feature("age", "user", "dense", "log1p"),
            Feature("likes", "user", "bag", "vocabulary", length=3),
            Feature("id", "item", "categorical", "vocabulary"),
        ),
    )
    longer = replace(schema.features[1], length=4)
    other = replace(schema, features=(schema.features[0], longer, schema.features[2]))
    swapped = replace(schema, features=(schema.features[1], *schema.features[::2]))
    assert len({schema.layout_hash, other.layout_hash, swapped.layout_hash}) == 3
    assert replace(schema, name="t").layout_hash == schema.layout_hash


def test_vocabulary_digest_sees_order_and_boundaries():
    assert vocabulary_digest([b"a", b"b"]) != vocabulary_digest([b"b", b"a"])
    assert vocabulary_digest([b"ab"]) != vocabulary_digest([b"a", b"b"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", "shop", "dense", "log1p"), "'user' or 'item'"),
        (("x", "user", "sparse", "log1p"), "kind is 'sparse'"),
        (("x", "user", "dense", "vocabulary"), "encoded by one of"),
        (("x", "user", "categorical", "vocabulary", 2), "cannot have length 2"),
        (("x", "user", "bag", "vocabulary", 0), "cannot have length 0"),
        (("x", "user", "sequence", "vocabulary", 0), "cannot have length 0"),
        (("x", "user", "categorical", "hash"), "needs `buckets`"),
    ],
)
def test_contradictory_feature_is_refused_by_name(arguments, message):
    with pytest.raises(SchemaError, match=message) as caught:
        Feature(*arguments)
    assert "feature x" in str(caught.value)


def test_contradictory_schema_is_refused():
    user, item = Feature("a", "user", "dense", "log1p"), Feature("b", "item", "dense", "log1p")
    with pytest.raises(SchemaError, match=r"occur twice: \['a'\]"):
        Schema("s", (user, replace(user, encoding="identity"), item))
    with pytest.raises(SchemaError, match="no item feature"):
        Schema("s", (user,))


def test_unreadable_schema_file_is_refused(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text("{")
    with pytest.raises(SchemaError, match=r"schema\.json: not a schema"):
        Schema.load(path)
    path.write_text(json.dumps({"name": "s", "features": [{"colour": "red"}]}))
    with pytest.raises(SchemaError, match=r"not a schema.*colour"):
        Schema.load(path)


def test_check_same_names_both_hashes():
    user, item = Feature("a", "user", "dense", "log1p"), Feature("b", "item", "dense", "log1p")
    schema = Schema("s", (user, item))
    schema.check_same(schema.hash, "ranker.json")
    with pytest.raises(SchemaError, match=f"ranker.json.*0123.*{schema.hash}"):
        schema.check_same("0123", "ranker.json")
