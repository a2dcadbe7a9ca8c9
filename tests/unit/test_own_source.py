"""`--data package.module:Class`: a source of a user's own, and what is told of a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cascade.data import Dataset, prepare
from cascade.data.__main__ import main
from tests.programs import last_error, status

OWN = """
from dataclasses import replace
import pyarrow as pa
from cascade.schema import Feature, Schema, Task

FEATURES = (
    Feature("city", "user", "categorical", "vocabulary"),
    Feature("price", "item", "dense", "log1p"),
)


class Visits:
    schema = Schema("visits", FEATURES)
    log = "impressions"

    def __init__(self, count="3"):
        self.count = int(count)

    @property
    def fingerprint(self):
        return {"count": self.count}

    def catalogue(self):
        return pa.table({"item_id": [2**60 + 1, 5], "price": [9.5, 20]})

    def chunks(self, split):
        yield pa.table({"label": [1, 0] * self.count, "item_id": [5, 2**60 + 1] * self.count,
                        "city": ["Oslo", None] * self.count})


class NoSchema(Visits):
    schema = "visits"


class NoTable(Visits):
    def chunks(self, split):
        yield {"label": [1]}


class NoLabel(Visits):
    def chunks(self, split):
        yield pa.table({"item_id": [5], "city": ["Oslo"]})


class WrongLabel(Visits):
    def chunks(self, split):
        yield pa.table({"label": [1, 1], "item_id": [5, 5], "city": ["Oslo"] * 2})
        yield pa.table({"label": [1, 4], "item_id": [5, 5], "city": ["Oslo"] * 2})


class TextLabel(Visits):
    def chunks(self, split):
        yield pa.table({"label": ["yes"], "item_id": [5], "city": ["Oslo"]})


class NumberText(Visits):
    def catalogue(self):
        return pa.table({"item_id": [2**60 + 1, 5], "price": ["9.5", "20"]})


class TruePrice(Visits):
    def catalogue(self):
        return pa.table({"item_id": [2**60 + 1, 5], "price": [True, False]})


COLUMNS = {
    "text_label": ("label", ["1", "0"]),
    "text_time": ("@time", ["1", "2"]),
    "true_time": ("@time", [True, False]),
    "large_time": ("@time", pa.array([2**63, 1], pa.uint64())),
    "endless_time": ("@time", [None, float("inf")]),
    "text_chance": ("probability", ["0.5", "y"]),
    "true_chance": ("probability", [True, False]),
    "list_user": ("@user", [[1], [2]]),
    "true_label": ("label", [True, False]),
    "true_codes": ("label", pa.array([True, False]).dictionary_encode()),
    "dates": ("@time", pa.array([20000, None], pa.int32()).cast(pa.date32())),
    "no_times": ("@time", pa.nulls(2)),
    "half_a_chance": ("probability", [0.5, None]),
}


class Column(Visits):
    def __init__(self, name):
        self.name, self.values = COLUMNS[name]

    fingerprint = {}

    def chunks(self, split):
        columns = {"label": [1, 0], "item_id": [5, 2**60 + 1], "city": ["Oslo", None]}
        yield pa.table({**columns, self.name: self.values})


class Tasks(Visits):
    schema = replace(Visits.schema, tasks=(Task("click"), Task("like"), Task("spent", "amount")))
    fingerprint = {}
    FAULTS = {
        "good": {},
        "none": {"@task.like": None},
        "two": {"@task.like": [1, 2]},
        "text": {"@task.like": ["1", "0"]},
        "debt": {"@task.spent": [0.0, -0.5]},
        "endless": {"@task.spent": [float("inf"), 1]},
        "bool": {"@task.spent": [True, False]},
        "truth": {"@truth.like": ["a", "b"]},
    }

    def __init__(self, name):
        self.columns = self.FAULTS[name]

    def chunks(self, split):
        columns = {"label": [1, 0], "item_id": [5, 2**60 + 1], "city": ["Oslo", None],
                   "@task.like": [True, None], "@task.spent": [2, float("nan")]}
        yield pa.table({k: v for k, v in {**columns, **self.columns}.items() if v is not None})


class AmountFirst(Visits):
    schema = replace(Visits.schema, tasks=(Task("spent", "amount"),))


class CodedPrice(Visits):
    def catalogue(self):
        prices = pa.array([23159457, 1]).dictionary_encode()
        return pa.table({"item_id": [2**60 + 1, 5], "price": prices})


class ListTitle(Visits):
    def catalogue(self):
        return pa.table({"item_id": [2**60 + 1, 5], "price": [9.5, 20], "title": [["a"], ["b"]]})


class FloatCity(Visits):
    def chunks(self, split):
        yield pa.table({"label": [1], "item_id": [5], "city": [1.5]})


class ListPrint(Visits):
    fingerprint = ["visits", 1]


class NoItem(Visits):
    def chunks(self, split):
        yield pa.table({"label": [1], "item_id": [6], "city": ["Oslo"]})


class TextItem(Visits):
    def catalogue(self):
        return pa.table({"item_id": ["a"], "price": [9.5]})


class Named(Visits):
    schema = replace(Visits.schema, string_ids=True)

    def catalogue(self):
        return pa.table({"item_id": ["b", "a"], "price": [9.5, 20]})

    def chunks(self, split):
        for chunk in super().chunks(split):
            names = ["a" if item == 5 else "b" for item in chunk["item_id"].to_pylist()]
            yield chunk.set_column(1, "item_id", pa.array(names))


class Unnamed(Named):
    def catalogue(self):
        return pa.table({"item_id": ["", "a"], "price": [9.5, 20]})


class Numbered(Named):
    catalogue = Visits.catalogue


class Negative(Visits):
    def catalogue(self):
        return pa.table({"item_id": [-1], "price": [9.5]})


class NoFeature(Visits):
    def chunks(self, split):
        yield pa.table({"label": [1], "item_id": [5]})


class TextPrice(Visits):
    def catalogue(self):
        return pa.table({"item_id": [5, 2**60 + 1], "price": ["cheap", "dear"]})


class NoItemId(Visits):
    def chunks(self, split):
        yield pa.table({"label": [1], "price": [6], "city": ["Oslo"]})


class LargeItem(Visits):
    def catalogue(self):
        return pa.table({"item_id": pa.array([2**63], pa.uint64()), "price": [9.5]})


class NoLog(Visits):
    log = "clicks"


class NoJson(Visits):
    fingerprint = {"made": object()}


class Empty:
    pass


one = Visits()
"""

OWN_FAULTS = {
    "nil_source:Visits": "there is no module nil_source, here or installed",
    "movielen:Visits": "unknown kind of data 'movielen': did you mean 'movielens'?",
    "own_source:Nil": "own_source has no Nil; it has",
    "own_source:one": "came; expected a class",
    "own_source:Empty": "it lacks schema, fingerprint, chunks, catalogue, which cascade",
    "own_source:Empty:x": "it cannot be called with ['x'] (too many positional arguments)",
    "own_source:NoSchema": "its schema is 'visits'; expected a cascade.schema.Schema",
    "own_source:NoTable": "chunks('train') gave dict; expected a pyarrow.Table",
    "own_source:NoLabel": "the source gives no column label; it gives ['item_id', 'city']",
    "own_source:WrongLabel": "row 4 of the train split has the label 4; a label is 0 or 1",
    "own_source:TextLabel": "the source gives label as string; expected a label, 0 or 1",
    "own_source:Column:text_label": "the source gives label as string; expected a label, 0 or 1",
    "own_source:Column:text_time": "the source gives @time as string; expected numbers or timest",
    "own_source:Column:true_time": "the source gives @time as bool; expected numbers or timestamps",
    "own_source:Column:large_time": "row 1 of the train split: @time is 9223372036854775808; exp",
    "own_source:Column:endless_time": "row 2 of the train split: @time is inf; expected a time",
    "own_source:Column:text_chance": "the source gives probability as string; expected numbers",
    "own_source:Column:true_chance": "the source gives probability as bool; expected numbers",
    "own_source:Column:list_user": "the source gives @user as list<item: int64>; expected strings",
    "own_source:Tasks:none": "the schema has the task like, and the source gives no column @task",
    "own_source:Tasks:two": "row 2 of the train split: @task.like is 2; expected 0 or 1, or noth",
    "own_source:Tasks:text": "the source gives @task.like as string; expected a label, 0 or 1",
    "own_source:Tasks:debt": "row 2 of the train split: @task.spent is -0.5; expected a finite n",
    "own_source:Tasks:endless": "row 1 of the train split: @task.spent is inf; expected a finite",
    "own_source:Tasks:bool": "the source gives @task.spent as bool; expected numbers",
    "own_source:Tasks:truth": "the source gives @truth.like as string; expected numbers",
    "own_source:AmountFirst": "schema visits: the first task, spent, is an amount; expected a bi",
    "own_source:ListTitle": "the source gives title as list<item: string>; expected titles",
    "own_source:NoItem": "item 6 is shown, but the item list does not have it",
    "own_source:NumberText": "feature price: string came, and float was expected",
    "own_source:TruePrice": "feature price: bool came, and float was expected",
    "own_source:FloatCity": "feature city: double came, and string was expected",
    "own_source:ListPrint": "its fingerprint is a list; expected a dict",
    "own_source:Unnamed": "catalogue() has the item id ''; an empty string stands for no item",
    "own_source:Numbered": "catalogue() has item ids of type int64; expected string",
    "own_source:TextItem": "catalogue() has item ids of type string; expected int64: number the",
    "own_source:Negative": "catalogue() has the item id -1; -1 stands for no item",
    "own_source:NoFeature": "the source gives no column for the features ['city']",
    "own_source:TextPrice": "feature price: string came, and float was expected",
    "own_source:NoItemId": "chunks('train') has no column item_id; it has ['label', 'price'",
    "own_source:LargeItem": "catalogue() has an item id beyond int64: Integer",
    "own_source:NoLog": "its log is 'clicks'; expected impressions or choices",
    "own_source:NoJson": "its fingerprint is no JSON: Object of type object",
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_source.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "out"


def test_a_class_of_ones_own(own: Path) -> None:
    dataset = prepare("own_source:Visits:4", own)
    assert dataset.source["rows"] == {"train": 8, "validation": 8, "test": 8}
    assert dataset.source["log"] == "impressions"
    assert dataset.item_ids().tolist() == [2**60 + 1, 5]
    assert prepare("own_source:Named:4", own.with_name("named")).item_ids().tolist() == ["b", "a"]
    assert prepare("own_source:Visits", own).source["rows"]["train"] == 6


def test_a_class_with_several_labels(own: Path) -> None:
    dataset = prepare("own_source:Tasks:good", own)
    assert [task.name for task in Dataset.open(own).schema.tasks] == ["click", "like", "spent"]
    np.testing.assert_array_equal(
        dataset.read("train").tasks, [[1, 1, 2], [0, np.nan, np.nan]], strict=False
    )


def test_codes_of_integers_are_rounded_as_integers_are(own: Path) -> None:
    """Where a float32 does not hold them."""
    root = prepare("own_source:CodedPrice", own).root
    assert pq.read_table(root / "catalogue.parquet")["price"].to_pylist() == [23159456, 1]


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("true_label", [1, 0]),
        ("true_codes", [1, 0]),
        ("dates", [20000 * 86400 * 10**6, None]),
        ("no_times", [None, None]),
        ("half_a_chance", [0.5, None]),
    ],
)
def test_what_a_column_may_hold(
    own: Path, capsys: pytest.CaptureFixture[str], name: str, stored: list[Any]
) -> None:
    root = prepare(f"own_source:Column:{name}", own).root
    columns = {"true_label": "label", "true_codes": "label", "half_a_chance": "probability"}
    found = pq.read_table(root / "test")[columns.get(name, "@time")].to_pylist()
    assert [None if value != value else value for value in found] == stored
    assert status(main, ["describe", "--data", f"own_source:Column:{name}"]) == 0
    assert (name == "dates") == ("2024-10-04" in capsys.readouterr().out)


@pytest.mark.parametrize("spec", OWN_FAULTS)
def test_a_wrong_class_is_told(own: Path, capsys: pytest.CaptureFixture[str], spec: str) -> None:
    assert status(main, ["--data", spec, "--out", str(own)]) == 1
    assert OWN_FAULTS[spec] in last_error(capsys.readouterr().err)
    if status(main, ["describe", "--data", spec]):  # else it is a warning, or not looked at
        assert OWN_FAULTS[spec] in last_error(capsys.readouterr().err)
