"""`--data package.module:Class`: a source of a user's own, and what is told of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from cascade.data import prepare
from cascade.data.__main__ import main
from tests.programs import last_error, status

OWN = """
from dataclasses import replace
import pyarrow as pa
from cascade.schema import Feature, Schema

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
    "own_source:TextLabel": "the labels are string, and have to be numbers",
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


@pytest.mark.parametrize("spec", OWN_FAULTS)
def test_a_wrong_class_is_told(own: Path, capsys: pytest.CaptureFixture[str], spec: str) -> None:
    assert status(main, ["--data", spec, "--out", str(own)]) == 1
    assert OWN_FAULTS[spec] in last_error(capsys.readouterr().err)
    if status(main, ["describe", "--data", spec]):  # else it is a warning, or not looked at
        assert OWN_FAULTS[spec] in last_error(capsys.readouterr().err)
