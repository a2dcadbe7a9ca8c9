"""Running statistics of users: what had happened strictly before an event, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cascade.data import DataError, prepare
from cascade.data.past import PRIOR_EVENTS, Log
from tests.own_tables import SCHEMA, STRING_SCHEMA, raw, shop, write_shop

REAL = Path(__file__).parents[3] / "shared" / "data" / "ml-latest-small"
NAMES = ["past_events", "past_positive_rate", "past_days"]
NONE = float("nan")


def columns(user: Any, time: Any, value: Any) -> npt.NDArray[np.float32]:
    """[R, 3]: events, mean and days; a day is ten units of time."""
    past = Log(np.array(user, np.int64), np.array(time, np.int64), value=np.array(value)).before()
    return np.stack([past.events(), past.mean("value"), past.since_last(10)], axis=1)


def test_a_log_by_hand() -> None:
    log = [
        # user, time, label: events, positives of them, mean of all earlier events, days
        (1, 0, 1, None),
        (2, 5, 0, None),
        (1, 20, 1, (1, 1, 1 / 2, 2.0)),
        (1, 20, 0, (1, 1, 1 / 2, 2.0)),  # at one time with the one above
        (2, 20, 1, (1, 0, 1 / 2, 1.5)),
        (-1, 21, 1, None),  # nobody has no past, and is a part of the mean of all
        (-1, 22, 1, None),
        (1, 25, 0, (3, 2, 5 / 7, 0.5)),
        (2, 30, 0, (2, 1, 5 / 8, 1.0)),
        (3, 31, 0, None),
    ]
    user, time, label, known = zip(*log, strict=True)
    expected = [
        (NONE, NONE, NONE)
        if row is None
        else (row[0], (row[1] + PRIOR_EVENTS * row[2]) / (row[0] + PRIOR_EVENTS), row[3])
        for row in known
    ]
    np.testing.assert_allclose(columns(user, time, label), expected, rtol=1e-6)
    assert columns([], [], []).shape == (0, 3)
    with pytest.raises(DataError, match="not in the order of their times"):
        columns([1, 1], [2, 1], [0, 1])


EVENTS = st.lists(
    st.tuples(st.integers(-1, 3), st.integers(0, 12), st.integers(0, 1)), min_size=1, max_size=40
)


@given(EVENTS, EVENTS, st.integers(0, 12))
def test_no_later_event_changes_a_value(log: Any, other: Any, now: int) -> None:
    """What comes at a moment or after it may be anything else."""
    log, other = (sorted(events, key=lambda event: event[1]) for events in (log, other))
    before = [event for event in log if event[1] < now]
    at_once = [(user, now, 0) for user in range(-1, 4)]
    later = [event for event in other if event[1] >= now]
    one = columns(*zip(*before, *at_once, strict=True))
    changed = columns(*zip(*before, *at_once, *later, strict=True))
    np.testing.assert_array_equal(changed[: len(one)], one)


@given(EVENTS, st.integers(1, 4), st.booleans())
def test_the_latest_items_are_those_of_strictly_earlier_events(log: Any, most: int, text: bool):
    log = sorted(log, key=lambda event: event[1])
    user, time, item = (np.array(column) for column in zip(*log, strict=True))
    names = pa.array([f"i{one}" for one in item]) if text else pa.array(item)
    found = Log(user, time, names).before().latest(most)
    expected = []
    for now, event in enumerate(log):
        own = [place for place in range(now) if log[place][0] == event[0] != -1]
        earlier = [str(names[place]) for place in own if log[place][1] < event[1]]
        expected.append("|".join(earlier[-most:]))
    assert found.to_pylist() == expected


def test_a_table_with_users_and_times_has_a_past(tmp_path: Path) -> None:
    dataset = prepare("table", tmp_path / "out", schema_file=write_shop(tmp_path))
    assert [feature.name for feature in dataset.schema.dense("user")] == ["age", *NAMES]
    clicks, rows = shop()["clicks"], raw(tmp_path)
    last = clicks["user_id"][-1]
    earlier = [row for row, user in enumerate(clicks["user_id"][:-1]) if user == last]
    assert rows["past_events"][-1].as_py() == len(earlier)
    hours = 600 - 1 - earlier[-1]
    assert rows["past_days"][-1].as_py() == pytest.approx(hours / 24)
    level = np.mean(clicks["clicked"][:-1])
    liked = sum(clicks["clicked"][row] for row in earlier)
    expected = (liked + PRIOR_EVENTS * level) / (len(earlier) + PRIOR_EVENTS)
    assert rows["past_positive_rate"][-1].as_py() == pytest.approx(expected)
    first = clicks["user_id"].index(last)
    assert [rows[name][first].as_py() for name in NAMES] == [None, None, None]


@pytest.mark.parametrize(
    ("old", "new", "left"),
    [
        ("title: name\n", "title: name\npast: false\n", []),
        ("time: at\n", "", []),
        ("label: clicked\n", "", ["past_events", "past_days"]),
        (
            "features:\n",
            "features:\n- {name: past_days, side: user, kind: categorical, column: device}\n",
            ["past_events", "past_positive_rate"],
        ),
    ],
)
def test_a_past_is_told_where_it_can_be(
    tmp_path: Path, old: str, new: str, left: list[str]
) -> None:
    schema = write_shop(tmp_path, SCHEMA.replace(old, new))
    dataset = prepare("table", tmp_path / "out", schema_file=schema)
    assert [feature.name for feature in dataset.schema.dense("user")] == ["age", *left]


@pytest.mark.parametrize(
    ("label", "log", "there"),
    [(True, "", False), (True, "choices", True), (False, "", True), (False, "impressions", False)],
)
def test_a_table_of_choices_has_the_items_that_a_user_met(
    tmp_path: Path, label: bool, log: str, there: bool
) -> None:
    schema = SCHEMA if label else SCHEMA.replace("label: clicked\n", "")
    schema += f"log: {log}\n" if log else ""
    dataset = prepare("table", tmp_path / "out", schema_file=write_shop(tmp_path, schema))
    assert ("past_items" in [f.name for f in dataset.schema.ids("user")]) == there
    if there:
        clicks, rows = shop()["clicks"], raw(tmp_path)
        last = clicks["user_id"][-1]
        own = [i for i, u in zip(clicks["item_id"], clicks["user_id"], strict=True) if u == last]
        assert rows["past_items"][-1].as_py() == "|".join(map(str, own[-21:-1]))


def test_an_id_that_no_list_can_hold_is_told(tmp_path: Path) -> None:
    def change(tables: dict[str, dict[str, list[Any]]]) -> None:
        for table, column in (("clicks", "item_id"), ("items", "item_id")):
            tables[table][column] = [f"a|{one}" for one in tables[table][column]]

    schema = STRING_SCHEMA.replace("label: clicked\n", "")
    schema = schema.replace(
        "- {name: product, side: item, kind: categorical, column: item_id}\n", ""
    )
    with pytest.raises(DataError, match=r"item id 'a\|\d+': expected none with \| or a line feed"):
        prepare("table", tmp_path / "out", schema_file=write_shop(tmp_path, schema, change))


@pytest.mark.skipif(not REAL.exists(), reason="the real ratings are not here")
def test_the_past_lifts_the_auc_on_real_ratings(tmp_path: Path) -> None:
    dataset = prepare(f"movielens:{REAL}", tmp_path / "out")
    names = [feature.name for feature in dataset.schema.dense("user")]
    assert names == ["positives", *NAMES, "past_rating"]
    train, test = dataset.read("train"), dataset.read("test")
    found = {}
    for width in (1, len(names)):
        model = make_pipeline(StandardScaler(), LogisticRegression())
        model.fit(train.user_dense[:, :width], train.label)
        found[width] = roc_auc_score(
            test.label, model.predict_proba(test.user_dense[:, :width])[:, 1]
        )
    print(f"AUC of a logistic regression on {names[:1]}: {found[1]:.3f}; on {names}: "
          f"{found[len(names)]:.3f}")  # fmt: skip
    assert found[len(names)] > max(found[1], 1 - found[1]) + 0.05
