"""A repository of models that were trained elsewhere, judged on a held-out table alone: every
figure is computed once more in NumPy from the weights of the files."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from onnx import numpy_helper
from sklearn.metrics import log_loss, roc_auc_score

from cascade.errors import CascadeError
from cascade.evaluation.__main__ import main
from cascade.evaluation.served.table import read
from cascade.item_keys import key_of
from cascade.schema import Feature, Schema
from cascade.spec import Sizes
from cascade.stages.pipeline import Pipeline
from export.build import write_release
from export.context import Build
from export.described import file
from tests.export.described_files import ITEMS, USERS, dump, write

SIZES = Sizes(candidates=20, survivors=20, results=10)


def export(folder, described, name="repository"):
    found = file.write(dump(described, folder), folder / f"{name}-checkpoints")
    build = Build(
        folder / f"{name}-checkpoints", folder / name, sizes=SIZES, index="flat", state="float32",
        weights="float32", measure_batching=False, foreign=found.foreign, preranks=found.preranks,
    )  # fmt: skip
    write_release(build)
    return build.repository


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of the models, their repository, and what cascade.yaml holds."""
    folder = tmp_path_factory.mktemp("held out")
    described = write(folder)
    return folder, export(folder, described), described


@pytest.fixture(scope="module")
def logits(made):
    """[users, items] of the ranker, and the same without the user's age: what retrieves."""
    folder, _, _ = made
    weights = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.load(folder / "rank.onnx").graph.initializer
    }
    rows = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("user", "sku")}
    users, items = (
        pq.read_table(folder / f"{name}.parquet").to_pydict() for name in ("users", "items")
    )
    vectors = weights["items"][[rows["sku"][sku] for sku in items["sku"]]]
    vectors = vectors * np.array(items["price"], np.float32)[:, None]
    near = weights["users"][[rows["user"][user] for user in users["user"]]] @ vectors.T
    return near + np.float32(0.01) * np.array(users["age"], np.float32)[:, None], near


def rows_of(folder, count=300, seed=3):
    """Drawn rows -> the table, and the user, item and label of each, int [count]."""
    random = np.random.default_rng(seed)
    users = pq.read_table(folder / "users.parquet").to_pydict()
    user, item = random.integers(USERS, size=count), random.integers(ITEMS, size=count)
    label = random.integers(2, size=count)
    table = pa.table(
        {
            "user": [users["user"][u] for u in user],
            "age": [users["age"][u] for u in user],
            "item_id": 100 + item,
            "label": label,
        }
    )
    return table, user, item, label


def judged(out, *words):
    main([*map(str, words), "--out", str(out)])
    return json.loads((out / "evaluation.json").read_text())


def expected_lists(near, logits, user, item):
    """By stage: share left, recall@10, NDCG@10 and MRR@10, mean over the users with a positive."""
    found = []
    for u in np.unique(user):
        liked = set(item[user == u].tolist())
        retrieved = np.argsort(-near[u], kind="stable")[:20]
        ranked = retrieved[np.argsort(-logits[u][retrieved], kind="stable")][:10]
        ideal = sum(1 / np.log2(place + 2) for place in range(min(10, len(liked))))
        for answer in (retrieved, ranked):
            hits = [place for place, row in enumerate(answer[:10].tolist()) if row in liked]
            found.append(
                (
                    len(liked & set(answer.tolist())) / len(liked),
                    len(hits) / len(liked),
                    sum(1 / np.log2(place + 2) for place in hits) / ideal,
                    1 / (hits[0] + 1) if hits else 0,
                )
            )
    return np.array(found).reshape(-1, 2, 4).mean(axis=0)


def test_every_figure_is_that_of_plain_numpy(made, logits, tmp_path):
    folder, repository, _ = made
    table, user, item, label = rows_of(folder)
    pq.write_table(table, tmp_path / "held.parquet")
    found = judged(
        tmp_path / "out", "--held-out", tmp_path / "held.parquet", "--repository", repository
    )
    positive = label == 1
    wanted = expected_lists(logits[1], logits[0], user[positive], item[positive])
    for stage, values in zip(("retrieve", "rank"), wanted, strict=True):
        names = ("left", "recall_at_10", "ndcg_at_10", "mrr_at_10")
        came = [found[f"{name}_{stage}"] for name in names]
        np.testing.assert_allclose(came, values, atol=1e-6)
    chance = 1 / (1 + np.exp(-logits[0][user, item].astype(np.float64)))
    loss = log_loss(label, chance)
    rate = label.mean()
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert found["auc"] == pytest.approx(roc_auc_score(label, chance), abs=1e-6)
    assert found["log_loss"] == pytest.approx(loss, abs=1e-5)
    assert found["normalized_entropy"] == pytest.approx(loss / entropy, abs=1e-5)
    assert found["calibration"] == pytest.approx(chance.sum() / label.sum(), abs=1e-5)
    for name, (low, high) in found["intervals"].items():
        assert low <= found[name] <= high, name
    assert (found["scored_rows"], found["rows_of_unknown_items"]) == (300, 0)
    assert any("no popularity list" in note for note in found["notes"])
    text = (tmp_path / "out" / "evaluation.md").read_text()
    assert f"{found['auc']:.4f}" in text
    assert f"{found['left_rank']:.3f}" in text
    assert (tmp_path / "out" / "evaluation.png").read_bytes().startswith(b"\x89PNG")


def test_csv_and_json_lines_say_the_same(made, tmp_path):
    folder, repository, _ = made
    table, user, item, label = rows_of(folder)
    pq.write_table(table, tmp_path / "held.parquet")
    pa.csv.write_csv(table, tmp_path / "held.csv")
    lines = "\n".join(json.dumps(row) for row in table.to_pylist())
    (tmp_path / "held.jsonl").write_text(lines)
    schema = Pipeline.load(repository).schema
    names = [*table["user"].to_pylist()]
    for kind in ("parquet", "csv", "jsonl"):
        held = read(tmp_path / f"held.{kind}", schema)
        assert held.item.tolist() == (100 + item).tolist()
        assert held.positive.tolist() == (label == 1).tolist()
        assert held.labelled
        assert len(held.categorical) == len(np.unique(user))
        assert [name.decode() for name in held.categorical[held.user, 0]] == names
        assert held.dense[held.user, 0].tolist() == table["age"].to_pylist()


def test_popularity_counts_the_users_who_are_not_asked(made, tmp_path):
    folder, repository, _ = made
    table, user, item, label = rows_of(folder)
    pq.write_table(table, tmp_path / "held.parquet")
    words = ("--held-out", tmp_path / "held.parquet", "--repository", repository, "--users", 19)
    found = judged(tmp_path / "out", *words, "--rows", 50)
    assert (found["users"], found["users_with_positives"], found["scored_rows"]) == (19, 20, 50)
    left = [set(item[(user == u) & (label == 1)].tolist()) for u in range(USERS)]
    asked = [u for u in range(USERS) if found["positives"] == sum(map(len, left)) - len(left[u])]
    assert asked  # all users but one of these, whose items are the popularity list
    shares = [
        np.mean([len(mine & left[out]) / len(mine) for u, mine in enumerate(left) if u != out])
        for out in asked
    ]
    assert any(found["left_popularity"] == pytest.approx(share) for share in shares)


def test_rows_without_labels_are_positives(made, logits, tmp_path):
    folder, repository, _ = made
    table, user, item, _ = rows_of(folder)
    unknown = pa.table({"user": ["u0"], "age": [40.0], "item_id": [7]})
    table = pa.concat_tables([table.drop_columns("label"), unknown])
    pq.write_table(table.rename_columns(["user", "age", "sku"]), tmp_path / "held.parquet")
    words = ("--held-out", tmp_path / "held.parquet", "--repository", repository)
    found = judged(tmp_path / "out", *words, "--item-column", "sku")
    wanted = expected_lists(logits[1], logits[0], user, item)
    assert found["left_retrieve"] == pytest.approx(wanted[0, 0])
    assert found["mrr_at_10_rank"] == pytest.approx(wanted[1, 3])
    assert found["rows_of_unknown_items"] == 1
    assert "auc" not in found
    assert any("1 rows, of 1 items that are not in the catalogue" in n for n in found["notes"])
    assert any("has no labels" in note for note in found["notes"])


def test_a_value_is_judged_by_its_order_alone(made, logits, tmp_path):
    folder, _, described = made
    of_value = {**described, "rank": {**described["rank"], "output": "value"}}
    of_value.pop("golden")
    repository = export(folder, of_value, "values")
    table, user, item, label = rows_of(folder)
    pq.write_table(table, tmp_path / "held.parquet")
    found = judged(
        tmp_path / "out", "--held-out", tmp_path / "held.parquet", "--repository", repository
    )
    assert found["auc"] == pytest.approx(roc_auc_score(label, logits[0][user, item]), abs=1e-6)
    assert "log_loss" not in found
    assert any("output is a value" in note for note in found["notes"])


def test_items_that_are_named_by_strings(made, logits, tmp_path):
    folder, _, described = made
    of_strings = {**described, "items": {"file": "items.parquet", "id": "sku"}}
    of_strings.pop("golden")
    repository = export(folder, of_strings, "strings")
    table, user, item, label = rows_of(folder)
    skus = pa.array([f"s{i}" for i in item])
    table = table.set_column(table.column_names.index("item_id"), "item_id", skus)
    pa.csv.write_csv(table, tmp_path / "held.csv")
    found = judged(
        tmp_path / "out", "--held-out", tmp_path / "held.csv", "--repository", repository
    )
    positive = label == 1
    wanted = expected_lists(logits[1], logits[0], user[positive], item[positive])
    assert found["left_rank"] == pytest.approx(wanted[1, 0])
    assert found["auc"] == pytest.approx(roc_auc_score(label, logits[0][user, item]), abs=1e-6)


def changed(**columns):
    def change(table):
        for name, values in columns.items():
            place = table.column_names.index(name)
            table = table.set_column(place, name, pa.array(values(table[name].to_pylist())))
        return table

    return change


WRONG = {
    "no item column": (
        lambda t: t.rename_columns(["user", "age", "item", "label"]),
        "unknown column 'item_id': did you mean 'item'? (--item-column)",
    ),
    "no feature": (lambda t: t.select(["item_id", "label"]), "none of the features age, user"),
    "no positive": (changed(label=lambda v: [0] * len(v)), "300 rows, and none is a positive"),
    "another label": (
        changed(label=lambda v: [*v[:4], 2, *v[5:]]),
        "row 5: label is 2; expected a label, 0 or 1",
    ),
    "a label is missing": (changed(label=lambda v: [None, *v[1:]]), "row 1: label is missing"),
    "an id is missing": (changed(item_id=lambda v: [None, *v[1:]]), "row 1: item_id is missing"),
    "ids that are text": (
        changed(item_id=lambda v: [f"s{i}" for i in v]),
        "the column item_id is string; expected the id of an item, an integer",
    ),
    "ids of others": (
        changed(item_id=lambda v: [7] * len(v)),
        "no positive is of an item of the catalogue; item 7 came first",
    ),
    "a number that is none": (
        changed(age=lambda v: ["x"] * len(v)),
        "the column age is string; expected a finite number",
    ),
    "no rows": (lambda t: t.slice(0, 0), "0 rows, and none is a positive"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_table_is_one_line(made, tmp_path, case):
    folder, repository, _ = made
    change, message = WRONG[case]
    path = tmp_path / "held.parquet"
    pq.write_table(change(rows_of(folder)[0]), path)
    with pytest.raises(CascadeError) as caught:
        judged(tmp_path / "out", "--held-out", path, "--repository", repository)
    text = str(caught.value)
    assert message in text
    assert text.startswith(str(path))
    assert "\n" not in text


def test_strings_are_known_by_their_keys(tmp_path):
    schema = Schema(
        "strings",
        (
            Feature("tags", "user", "bag", "hash", buckets=8, length=2),
            Feature("age", "user", "dense", "log1p"),
            Feature("price", "item", "dense", "log1p"),
        ),
        string_ids=True,
    )
    rows = [
        {"tags": ["a", "b"], "age": 3, "item_id": "x"},
        {"tags": ["a", "b"], "age": 3, "item_id": "y"},
        {"tags": None, "age": None, "item_id": "x"},
    ]
    (tmp_path / "held.jsonl").write_text("\n".join(map(json.dumps, rows)))
    held = read(tmp_path / "held.jsonl", schema)
    assert held.item.tolist() == [key_of("x"), key_of("y"), key_of("x")]
    assert held.user[0] == held.user[1] != held.user[2]
    assert held.categorical[held.user, 0].tolist() == [b"a|b", b"a|b", b""]
    np.testing.assert_array_equal(held.dense[held.user, 0], [3, 3, np.nan])
    assert held.positive.all()
    assert not held.labelled


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--held-out t.csv --data d", "--data came; it goes without --held-out"),
        ("--held-out t.csv --no-baselines", "--no-baselines came; it goes without --held-out"),
        ("--held-out t.csv --positives 7", "--positives came; it goes without --held-out"),
        ("--data d --checkpoints c --item-column i", "it goes with --held-out TABLE"),
        ("--data d", "expected --data DIR and --checkpoints DIR, or --held-out TABLE"),
        ("--held-out t.csv --users 0", "--users 0 came; expected 1 or more"),
    ],
)
def test_flags_of_both_forms_are_refused(words, message):
    with pytest.raises(CascadeError, match=message):
        main([*words.split(), "--repository", "r", "--out", "o"])


def test_the_command_ends_with_one_line(made, tmp_path):
    _, repository, _ = made
    words = ["--held-out", tmp_path / "no.csv", "--repository", repository, "--out", tmp_path]
    ended = subprocess.run(
        [sys.executable, "-m", "cascade.evaluation", *map(str, words)],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [f"error: there is no file {tmp_path / 'no.csv'}"]
