"""The planted click model: what it says of itself is true of the rows it draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from cascade.data import synthetic
from cascade.data.criteo import SCHEMA
from cascade.data.source import SPLITS, DataError
from cascade.data.synthetic import MISSING_SHARE, USER_CATEGORIES, Synthetic, Users

WORLD = Synthetic(rows=42_000, items=2000, seed=5)


@pytest.fixture(scope="module")
def train():
    return pa.concat_tables(WORLD.chunks("train"))


def users_of(table: pa.Table) -> Users:
    """Read the users back from what is observed of them."""
    numbers = np.stack([table[f"I{i + 1}"].to_numpy() for i in range(13)], axis=1)
    columns = []
    for position, size in enumerate(USER_CATEGORIES):
        every = np.arange(size)[:, None].repeat(len(USER_CATEGORIES), axis=1)
        values = synthetic._hex_columns(1, every, USER_CATEGORIES)[f"C{position + 1}"].to_pylist()
        codes = {"": -1, **{value: code for code, value in enumerate(values)}}
        columns.append([codes[value] for value in table[f"C{position + 1}"].to_pylist()])
    return Users(numbers.astype(np.float64), np.array(columns).T)


def test_a_seed_is_a_world():
    small = Synthetic(rows=700, items=50, seed=1)
    again, other = replace(small), replace(small, seed=2)
    for split in SPLITS:
        tables = [pa.concat_tables(world.chunks(split)) for world in (small, again, other)]
        for name in tables[0].column_names:
            first, second, third = (table[name].to_numpy() for table in tables)
            np.testing.assert_array_equal(second, first)
            assert (third != first).any()
    assert small.catalogue().equals(again.catalogue())
    assert not small.catalogue().equals(other.catalogue())
    assert small.fingerprint == again.fingerprint != other.fingerprint


def test_splits_have_the_rows_that_were_asked_for(monkeypatch):
    monkeypatch.setattr(synthetic, "CHUNK_ROWS", 200)
    small = Synthetic(rows=1001, items=50)
    tables = {split: pa.concat_tables(small.chunks(split)) for split in SPLITS}
    rows = {split: table.num_rows for split, table in tables.items()}
    assert rows == {"train": 858, "validation": 71, "test": 72}
    assert small.total_rows == sum(rows.values())
    everything = pa.concat_tables(tables.values())
    numbers = np.stack([everything[f"I{i}"].to_numpy() for i in range(1, 14)], axis=1)
    assert len(np.unique(numbers, axis=0)) == 1001  # no chunk is drawn twice


def test_rows_have_the_criteo_schema(train):
    names = [feature.name for feature in SCHEMA.features]
    assert train.column_names == ["label", "item_id", "probability", *names]
    types = {name: train.schema.field(name).type for name in names}
    assert all(types[f.name] == pa.float32() for f in SCHEMA.dense("user"))
    ids = (*SCHEMA.ids("user"), *SCHEMA.ids("item"))
    assert all(types[feature.name] == pa.string() for feature in ids)
    assert {len(value) for value in train["C1"].to_pylist()} == {0, 8}


def test_an_item_looks_the_same_in_every_row(train):
    catalogue = WORLD.catalogue()
    assert catalogue["item_id"].to_pylist() == list(range(2000))
    shown = catalogue.take(train["item_id"].combine_chunks())
    for feature in SCHEMA.ids("item"):
        assert train[feature.name].to_pylist() == shown[feature.name].to_pylist()
    assert len(set(catalogue["C26"].to_pylist())) == 2000


def test_probability_is_a_function_of_what_is_observed(train):
    users, items = users_of(train), train["item_id"].to_numpy()
    expected = train["probability"].to_numpy()
    np.testing.assert_allclose(WORLD.probability(users, items), expected, rtol=0, atol=1e-6)


def test_labels_are_drawn_from_the_probability(train):
    label, probability = train["label"].to_numpy(), train["probability"].to_numpy()
    assert set(np.unique(label)) == {0.0, 1.0}
    variance = probability * (1 - probability)
    assert abs(label.mean() - probability.mean()) < 4 * np.sqrt(variance.sum()) / len(label)
    for group in np.array_split(np.argsort(probability), 10):
        error = np.sqrt(variance[group].sum()) / len(group)
        assert abs(label[group].mean() - probability[group].mean()) < 4 * error
    assert 0.15 < label.mean() < 0.35


def test_no_sum_over_user_and_item_reaches_the_best_auc(train):
    """Given every effect of the user and of the item, additively: more than a logistic regression
    on the raw features can know."""
    users, items = users_of(train), train["item_id"].to_numpy()
    u, a = WORLD.user_effects(users)
    v, c = (effect[items] for effect in WORLD.item_effects)
    label = train["label"].to_numpy()
    additive = LogisticRegression(C=1e6).fit(np.column_stack((u, a, v, c)), label)
    best = roc_auc_score(label, train["probability"].to_numpy())
    logistic = roc_auc_score(label, additive.decision_function(np.column_stack((u, a, v, c))))
    assert best > 0.75
    assert best - logistic > 0.03
    assert logistic > 0.6


def test_few_items_take_many_rows(train):
    counts = np.sort(np.bincount(train["item_id"].to_numpy(), minlength=2000))[::-1]
    assert counts[:20].sum() > 5 * 0.01 * len(train)  # the first hundredth of the items
    assert (counts > 0).mean() > 0.95


def test_values_are_missing_as_often_as_said(train):
    rows = len(train)
    slack = 5 * (MISSING_SHARE / rows) ** 0.5
    for i in range(1, 14):
        assert np.isnan(train[f"I{i}"].to_numpy()).mean() == pytest.approx(MISSING_SHARE, abs=slack)
    for feature in SCHEMA.ids("user"):
        empty = np.mean([value == "" for value in train[feature.name].to_pylist()])
        assert empty == pytest.approx(MISSING_SHARE, abs=slack)
    missing = WORLD.item_categories == -1
    assert missing[:, :-1].mean() == pytest.approx(MISSING_SHARE, abs=0.005)
    assert not missing[:, -1].any()


def test_further_tasks_change_no_feature_and_no_click(train):
    several = pa.concat_tables(replace(WORLD, tasks=3).chunks("train"))
    further = {
        f"{what}.{name}" for what in ("@task", "@truth") for name in ("engagement", "revenue")
    }
    assert {*several.column_names} - {*train.column_names} == further
    for name in train.column_names:
        np.testing.assert_array_equal(several[name].to_numpy(), train[name].to_numpy())
    assert "tasks" not in WORLD.fingerprint  # a folder from before is still good
    assert replace(WORLD, tasks=3).schema.tasks == synthetic.TASKS
    assert WORLD.schema == SCHEMA


def test_labels_of_further_tasks_follow_their_truth():
    table = pa.concat_tables(replace(WORLD, tasks=3).chunks("train"))
    click, chance = table["label"].to_numpy() > 0, table["probability"].to_numpy()
    for name in ("engagement", "revenue"):
        label, truth = (table[f"@{what}.{name}"].to_numpy() for what in ("task", "truth"))
        assert not label[~click].any()
        assert (truth <= chance * (synthetic.AMOUNT_MEAN if name == "revenue" else 1)).all()
        error = label.std() / len(label) ** 0.5
        assert abs(label.mean(dtype=float) - truth.mean(dtype=float)) < 4 * error
        for group in np.array_split(np.argsort(truth), 10):
            error = label[group].std() / len(group) ** 0.5
            assert abs(label[group].mean() - truth[group].mean()) < 4 * error
        own = roc_auc_score(label > 0, truth)
        assert own - roc_auc_score(label > 0, chance) > 0.03  # it has effects of its own
        assert own > 0.75
    assert (table["@task.revenue"].to_numpy() == 0).mean() > 0.85


def test_options():
    assert Synthetic.parse("") == Synthetic(rows=1_400_000, items=100_000, seed=0)
    assert Synthetic.parse("seed=3,rows=500") == Synthetic(rows=500, items=100_000, seed=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("row=500", "'row=500' is not an option; give rows"),
        ("rows=many", "'rows=many' is not an option"),
        ("rows=-500", "'rows=-500' is not an option"),
        ("rows", "'rows' is not an option"),
        ("seed=1,items=2.5", "'items=2.5' is not an option"),
        ("rows=99", "100 rows and 1 item at least; got 'rows=99'"),
        ("items=0", "100 rows and 1 item at least"),
        ("tasks=0", "1 to 3 tasks; got 'tasks=0'"),
        ("tasks=4", "1 to 3 tasks"),
    ],
)
def test_options_that_are_not_understood(options, message):
    with pytest.raises(DataError, match=message):
        Synthetic.parse(options)
