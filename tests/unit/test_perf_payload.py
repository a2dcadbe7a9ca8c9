import json
from pathlib import Path

import numpy as np
import pytest

from cascade import pbtxt
from cascade.client.layout import Layout
from cascade.config import Serving
from cascade.layout import IdFeature, RequestLayout
from cascade.schema import Feature, Schema
from cascade.spec import ENSEMBLE, Sizes
from perf.harness.payload import PayloadError, generated, load

SCHEMA = Schema(
    "shop",
    (
        Feature("age", "user", "dense", "identity"),
        Feature("history", "user", "bag", "vocabulary", length=4),
        Feature("visits", "user", "dense", "log1p"),
        Feature("city", "user", "categorical", "vocabulary"),
        Feature("brand", "item", "categorical", "vocabulary"),
    ),
)
FEATURES = Layout.from_config(pbtxt.configs(SCHEMA, Sizes(), Serving(), 1)[ENSEMBLE])


def write(path: Path, *users: object) -> Path:
    file = path / "users.jsonl"
    file.write_text("".join(json.dumps(user) + "\n" for user in users))
    return file


def test_features_keep_the_schema_order_and_know_the_bags() -> None:
    assert FEATURES.dense == ("age", "visits")
    assert [(f.name, f.multivalued) for f in FEATURES.categorical] == [
        ("history", True),
        ("city", False),
    ]


def test_users_become_the_two_tensors_of_a_request(tmp_path: Path) -> None:
    users = [
        {"visits": 3, "age": 41.5, "city": "Köln", "history": ["a", "b"]},
        {"age": None, "history": []},
        {},
    ]
    payload = load(write(tmp_path, *users), FEATURES)
    np.testing.assert_array_equal(
        payload.dense, np.array([[41.5, 3], [np.nan, np.nan], [np.nan, np.nan]], np.float32)
    )
    assert payload.categorical.tolist() == [[b"a|b", "Köln".encode()], [b"", b""], [b"", b""]]
    assert payload.describe() == {"source": "users.jsonl", "rows": 3}


def test_input_data_is_strict_json_in_the_order_of_the_rows(tmp_path: Path) -> None:
    payload = load(write(tmp_path, {"age": 7, "city": "Köln"}, {"visits": 2.5}), FEATURES)
    payload.write(tmp_path / "data.json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    data = json.loads((tmp_path / "data.json").read_text(), parse_constant=refuse)
    assert data == {
        "data": [
            {"dense": [7.0, 0.0], "categorical": ["", "Köln"]},
            {"dense": [0.0, 2.5], "categorical": ["", ""]},
        ]
    }


def test_a_side_without_features_still_sends_one_column(tmp_path: Path) -> None:
    only_numbers = RequestLayout(("age",), (), "")
    payload = load(write(tmp_path, {"age": 7}), only_numbers)
    assert payload.categorical.tolist() == [[b""]]
    only_text = RequestLayout((), (IdFeature("city"),), "")
    payload = load(write(tmp_path, {"city": "x"}), only_text)
    assert payload.dense.shape == (1, 1)
    assert np.isnan(payload.dense).all()


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ({"age": "old"}, "feature age: 'old' (str) came"),
        ({"age": True}, "feature age: True (bool) came"),
        ({"age": float("inf")}, "feature age: inf (float) came; expected a finite number"),
        ({"city": 0.5}, "feature city: 0.5 (float) came"),
        ({"history": 5.0}, "feature history: 5.0 (float) came"),
        ({"history": ["a", {}]}, "feature history: {} (dict) came"),
        ({"brand": "x"}, "unknown feature 'brand'"),
        ([1], "a list came"),
    ],
)
def test_a_value_that_cannot_be_sent_is_named_with_its_line(
    tmp_path: Path, user: object, message: str
) -> None:
    with pytest.raises(PayloadError, match="line 2: ") as caught:
        load(write(tmp_path, {}, user), FEATURES)
    assert message in str(caught.value)


def test_files_that_hold_no_users_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PayloadError, match="no such file"):
        load(tmp_path / "none.jsonl", FEATURES)
    with pytest.raises(PayloadError, match="is empty"):
        load(write(tmp_path), FEATURES)
    (tmp_path / "users.jsonl").write_text("{}\n{'age': 3}\n")
    with pytest.raises(PayloadError, match="line 2: "):
        load(tmp_path / "users.jsonl", FEATURES)


def test_generated_users_differ_repeat_by_seed_and_miss_some_values() -> None:
    payload = generated(FEATURES, rows=300)
    assert len({(row.tobytes(), *text) for row, text in zip(*arrays(payload), strict=True)}) == 300
    for ours, again in zip(arrays(payload), arrays(generated(FEATURES, rows=300)), strict=True):
        np.testing.assert_array_equal(ours, again)
    assert 0.02 < np.isnan(payload.dense).mean() < 0.3
    assert 0.02 < (payload.categorical[:, 1] == b"").mean() < 0.3
    assert any(b"|" in bag for bag in payload.categorical[:, 0])
    assert not any(b"|" in city for city in payload.categorical[:, 1])
    assert payload.describe() == {"source": "generated", "rows": 300}


def arrays(payload: object) -> tuple[np.ndarray, np.ndarray]:
    return payload.dense, payload.categorical  # type: ignore[attr-defined]
