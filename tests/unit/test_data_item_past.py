"""Running statistics of items: training rows see what was before them, the catalogue sees all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cascade.data import DataError, Dataset, prepare
from cascade.data.past import ITEM, OfItems, day
from cascade.data.prepare import write
from cascade.schema import Feature, Schema
from tests.item_past import NAMES, UNLABELLED, Floats, Tables, by_days, log_of, shop, slow
from tests.own_tables import SCHEMA, raw, write_shop

REAL = Path(__file__).parents[3] / "shared" / "data" / "ml-latest-small"
HOUR = 3_600_000_000  # microseconds, in which a table counts timestamps
WITHOUT_ITEMS = SCHEMA.replace("items: items.csv\n", "").replace("title: name\n", "")


def with_prices(tables: Tables) -> None:
    """The items' features beside the clicks; a price changes with the time."""
    by_days(tables)
    tables["clicks"]["price"] = [1 + row // 100 for row in range(len(tables["clicks"]["at"]))]
    tables["clicks"]["tags"] = ["a|b"] * len(tables["clicks"]["at"])


def check(dataset: Dataset, names: list[str]) -> None:
    """Every row's and every item's past against the definition."""
    columns = [NAMES.index(name) for name in names]
    log, day = log_of(dataset), dataset.source["item_past"]["day"]
    rows, (dense, _) = dataset.read("train"), dataset.items()
    listed = pq.read_table(dataset.root / "catalogue.parquet")
    found = np.stack([listed[name].to_numpy() for name in names], axis=1)
    at_end = [slow(log, item, np.inf, day) for item in range(dataset.item_count)]
    for item, expected in enumerate(at_end):
        own = [time for other, _, time in log if other == item]
        expected[2] = (log[-1][2] - own[0]) / day if own else np.nan
    np.testing.assert_allclose(found, np.array(at_end)[:, columns], rtol=1e-5)
    # A model reads both the same way.
    numbers = np.zeros((len(rows), dense.shape[1]), np.float32)
    numbers[:, -len(names) :] = np.array([slow(log, i, t, day) for i, _, t in log])[:, columns]
    expected = dataset.encoder.encode_dense("item", numbers)[:, -len(names) :]
    assert rows.item_past is not None
    np.testing.assert_allclose(rows.item_past, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(rows.item_past, dense[rows.item][:, -len(names) :])
    assert dataset.read("validation").item_past is dataset.read("test").item_past is None


@pytest.mark.parametrize(
    ("schema", "change", "names"),
    [
        (SCHEMA, by_days, NAMES),
        (WITHOUT_ITEMS, with_prices, NAMES),
        (UNLABELLED, by_days, [NAMES[0], NAMES[2]]),
    ],
)
def test_a_table(tmp_path: Path, schema: str, change: Any, names: list[str]) -> None:
    dataset = shop(tmp_path, schema, change)
    assert [feature.name for feature in dataset.schema.dense("item")] == ["price", *names]
    assert dataset.source["item_past"] == {"features": names, "day": 24 * HOUR}
    check(dataset, names)


def test_a_table_without_users(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(
        "item,city,at,label\n" + "".join(f"{n % 7},Oslo,{n // 3},{n % 2}\n" for n in range(60))
    )
    (tmp_path / "schema.yaml").write_text(
        "interactions: log.csv\nitem: item\ntime: at\nlabel: label\nfeatures:\n"
        "- {name: city, side: user, kind: categorical}\n"
        "- {name: product, side: item, kind: categorical, column: item}\n"
    )
    dataset = prepare("table", tmp_path / "out", schema_file=tmp_path / "schema.yaml")
    assert [f.name for f in dataset.schema.features] == ["city", "product", *NAMES]
    assert dataset.source["item_past"]["day"] == 86_400
    check(dataset, NAMES)


@pytest.mark.parametrize(
    ("old", "new"), [("title: name\n", "title: name\npast: false\n"), ("time: at\n", "")]
)
def test_no_past_is_told(tmp_path: Path, old: str, new: str) -> None:
    dataset = shop(tmp_path, SCHEMA.replace(old, new))
    assert [feature.name for feature in dataset.schema.dense("item")] == ["price"]
    assert "item_past" not in dataset.source
    assert dataset.read("train").item_past is None


def test_a_feature_of_the_file_stands_in_place_of_a_computed_one(tmp_path: Path) -> None:
    own = "- {name: past_item_age, side: item, kind: dense, encoding: log1p, column: price}\n"
    dataset = shop(tmp_path, SCHEMA.replace("features:\n", f"features:\n{own}"))
    names = [feature.name for feature in dataset.schema.dense("item")]
    assert names == ["past_item_age", "price", *NAMES[:2]]
    check(dataset, NAMES[:2])
    listed = pq.read_table(dataset.root / "catalogue.parquet")
    assert listed["past_item_age"].equals(listed["price"])


def test_a_later_label_changes_no_earlier_value(tmp_path: Path) -> None:
    def other(tables: Tables) -> None:
        by_days(tables)
        clicked = tables["clicks"]["clicked"]
        clicked[400:] = [1 - label for label in clicked[400:]]

    one, changed = shop(tmp_path / "one"), shop(tmp_path / "other", change=other)
    rows, others = one.read("train"), changed.read("train")
    assert rows.time is not None
    known = rows.time <= rows.time[400]
    assert known.sum() > 400
    np.testing.assert_array_equal(rows.item_past[known], others.item_past[known])  # type: ignore[index]
    assert not np.array_equal(rows.item_past, others.item_past)  # type: ignore[arg-type]
    assert not np.array_equal(one.items()[0], changed.items()[0])


def test_a_folder_from_before_is_read(tmp_path: Path) -> None:
    root = shop(tmp_path).root
    source = json.loads((root / "source.json").read_text())
    del source["item_past"]
    (root / "source.json").write_text(json.dumps(source))
    assert Dataset.open(root).read("train").item_past is None


class Visits:
    """Items that are known by what they show; the last of them is new."""

    shown = Feature("price", "item", "dense", "log1p")
    city = Feature("city", "user", "categorical", "vocabulary")
    schema = Schema("visits", (city, shown, *ITEM))
    item_past = OfItems(ITEM, 10)
    time: Any = (0, 10, 10, 20)

    def catalogue(self) -> None:
        return None

    def chunks(self, split: str) -> Any:
        price = [5, 6, 5, 5] if split == "train" else [5, 6, 7, 7]
        chunk = {"label": [1, 0, 0, 1], "city": ["Oslo"] * 4, "price": price}
        time = {"@time": pa.array(self.time, pa.float64())} if self.time else {}
        yield pa.table({**chunk, **time})


def test_a_source_without_a_list_of_items(tmp_path: Path) -> None:
    described = write(Visits(), Visits.schema, tmp_path)  # type: ignore[arg-type]
    assert described["items"] == 3
    assert described["item_past"] == {"features": NAMES, "day": 10}
    listed = pq.read_table(tmp_path / "catalogue.parquet")
    found = [listed[name].to_pylist() for name in ("price", *NAMES)]
    rate = [pytest.approx((k + 5 / 2) / (n + 5)) for k, n in ((2, 3), (0, 1))]
    assert found == [[5, 6, 7], [3, 1, None], [*rate, None], [2, 1, None]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time": (0, 10, 9, 20)}, "the events are not in the order of their times"),
        ({"time": None}, "the past of items is wanted, and the source gives no @time"),
        ({"time": (0, 10, None, 20)}, "the events are not in the order of their times"),
        (
            {"schema": Schema("visits", (Visits.city, *ITEM, Visits.shown))},
            "the last numbers of the items in the schema have to be past_item_events, past_item_p",
        ),
    ],
)
def test_a_source_that_cannot_tell(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    source: Any = type("Wrong", (Visits,), changes)()
    with pytest.raises(DataError, match=message):
        write(source, source.schema, tmp_path)


def test_a_day_is_in_the_unit_of_the_log() -> None:
    assert day(5000.0) == 86_400
    assert day(1.7e9) == 86_400
    assert day(1.7e15) == 24 * HOUR


def test_the_rows_of_a_table_are_as_before(tmp_path: Path) -> None:
    """The columns of the items' past are neither the source's nor among its items."""
    write_shop(tmp_path, change=by_days)
    assert not {*NAMES} & {*raw(tmp_path).column_names}


@pytest.mark.skipif(not REAL.exists(), reason="the real ratings are not here")
def test_real_ratings_do_not_tell_their_labels(tmp_path: Path) -> None:
    """With the values of the catalogue a training row's label is known better than a test row's."""
    dataset = prepare(f"movielens:{REAL}", tmp_path / "out")
    train, test, (items, _) = dataset.read("train"), dataset.read("test"), dataset.items()
    assert train.item_past is not None

    def auc(own: Floats) -> tuple[float, float]:
        model = make_pipeline(StandardScaler(), LogisticRegression())
        rows = np.hstack((train.user_dense, own)), np.hstack((test.user_dense, items[test.item]))
        model.fit(rows[0], train.label)
        chances = [model.predict_proba(part)[:, 1] for part in rows]
        labels = (train.label, test.label)
        found = [roc_auc_score(*pair) for pair in zip(labels, chances, strict=True)]
        return found[0], found[1]

    (before, honest), (told, after) = auc(train.item_past), auc(items[train.item])
    print(f"AUC of train and test: {before:.3f}, {honest:.3f}; "
          f"with the catalogue's values: {told:.3f}, {after:.3f}")  # fmt: skip
    assert told > before + 0.03
    assert honest > after
