"""What a model must be, found out by running it; and models by name."""

from __future__ import annotations

import doctest
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from cascade.models import MODELS, build, parse, preset, register, scorer
from cascade.models.contract import ContractError, check, check_retriever, without
from cascade.models.example import SHOP
from cascade.models.registry import ModelError
from cascade.models.scorer import EXACT, Scorer
from cascade.models.scoring import dlrm
from cascade.schema import Feature, Schema
from tests import example_models
from tests.example_models import AnyNames, Config, Textbook, TwoTasks
from tests.schemas import draw_rows
from tests.weights import fresh

pytestmark = pytest.mark.usefixtures("one_thread")

SCHEMA = Schema(
    "shop",
    (
        Feature("age", "user", "dense", "log1p"),
        Feature("city", "user", "categorical", "vocabulary", cardinality=5, digest="c"),
        Feature("played", "user", "sequence", "vocabulary", length=3, cardinality=9, digest="p"),
        Feature("brand", "item", "categorical", "vocabulary", cardinality=7, digest="b"),
        Feature("genres", "item", "bag", "vocabulary", length=2, cardinality=6, digest="g"),
    ),
)
CONFIG = Config()


@pytest.mark.parametrize("module", [scorer, dlrm], ids=["scorer", "dlrm"])
def test_the_examples_run(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 5
    assert found.failed == 0


@pytest.mark.parametrize("model", [Textbook, TwoTasks, AnyNames])
def test_a_model_of_any_names_keeps_the_contract(model: Any) -> None:
    made = model(SCHEMA, CONFIG)
    check(made)
    users, items = draw_rows(SCHEMA, "user", 3, 0), draw_rows(SCHEMA, "item", 3, 0)
    user, item = made.user(*users.both), made.item(*items.both)
    rows = made.score_rows(*users.both, *items.both)
    scores = made.score(user, item.expand(3, -1, -1))
    assert scores.shape == (3, 3)
    torch.testing.assert_close(scores.diagonal(), rows)


def test_ids_survive_a_packed_state() -> None:
    made = Textbook(SCHEMA, CONFIG)
    largest = [0, 1, EXACT - 1, EXACT, EXACT + 1, 2**31 + 1, 2**48 - 1]
    ids = torch.tensor(largest)[:, None].expand(-1, SCHEMA.ids_width("item"))
    numbers = torch.tensor([1 / 3] * len(largest))[:, None]
    state = made.item(numbers, ids)
    assert state.dtype == torch.float32
    assert state.shape == (len(largest), made.item_width)
    dense, unpacked = made._unpacked("item", state)
    assert torch.equal(unpacked, ids)
    assert torch.equal(dense, numbers)


def test_the_first_task_is_the_score() -> None:
    made = TwoTasks(SCHEMA, CONFIG)
    users, items = draw_rows(SCHEMA, "user", 2, 0), draw_rows(SCHEMA, "item", 2, 0)
    states = made.user(*users.both), made.item(*items.both).expand(2, -1, -1)
    logits = made.cross(*states)
    assert logits.shape == (2, 2, 2)
    assert torch.equal(made.score(*states), logits[..., 0])
    rows = made(*users.both, *items.both)
    assert torch.equal(made.score_rows(*users.both, *items.both), rows[:, 0])


def test_a_served_model_lacks_the_parts_of_the_item_and_shares_the_rest() -> None:
    made = AnyNames(SCHEMA, CONFIG)
    served = without(made, made.item_parts())
    assert {name.split(".")[0] for name in served.state_dict()} == {
        "tables",
        "person",
        "both",
        "last",
    }
    assert "tables.movie_table.table.weight" not in served.state_dict()
    assert served.both is made.both
    assert "movie_table" in made.tables


class Shared(AnyNames):
    """`cross` reads a part that is declared as the item's."""

    def item_parts(self) -> tuple[str, ...]:
        return (*super().item_parts(), "both")


class Asked(AnyNames):
    """`user` asks a part of the item for its size: no tensor is read."""

    def user(self, dense: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return super().user(dense, ids) / self.movie.out_features


class Forgotten(AnyNames):
    def item_parts(self) -> tuple[str, ...]:
        return ("movie",)


class ForgottenUser(AnyNames):
    def user_parts(self) -> tuple[str, ...]:
        return ("person",)


class Misspelt(AnyNames):
    def item_parts(self) -> tuple[str, ...]:
        return ("tables.movie_table", "movies")


class Narrow(AnyNames):
    def __init__(self, schema: Schema, config: Config) -> None:
        super().__init__(schema, config)
        self.item_width = 3


class Tasks(AnyNames):
    tasks = ("click", "buy")


class Different(AnyNames):
    def forward(self, *rows: torch.Tensor) -> torch.Tensor:
        return super().forward(*rows) + 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Shared, r"Shared\.item_parts\(\) names \['both.bias', 'both.weight'\], but another"),
        (Asked, r"Asked cannot score without its item_parts\(\): .*'movie'"),
        (Forgotten, r"item_parts\(\) lacks \['tables.movie_table.*only item\(\) reads it"),
        (ForgottenUser, r"user_parts\(\) lacks \['tables.person.*only user\(\) reads it"),
        (Misspelt, r"item_parts\(\) lacks \['movie.bias', 'movie.weight'\]: only item\(\)"),
        (Narrow, r"Narrow\.item\(\) gives a tensor \[3, 8\]; expected \[3, 3\]"),
        (Tasks, r"Tasks\.cross\(\) gives a tensor \[2, 3\]; expected \[2, 3, 2\]"),
        (Different, r"forward\(\) and cross\(user\(\), item\(\)\) differ"),
    ],
)
def test_a_broken_promise_is_named(model: Any, message: str) -> None:
    made = model(SCHEMA, CONFIG)
    with pytest.raises(ContractError, match=message):
        check(made)


def test_a_model_defines_enough() -> None:
    class Half(Scorer):
        def user(self, dense: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return dense

    with pytest.raises(TypeError, match=r"Half defines \['user'\]; a model defines forward, or"):
        Half(SCHEMA)


def test_the_check_draws_no_random_numbers_and_leaves_the_mode_alone() -> None:
    made = AnyNames(SCHEMA, CONFIG)
    made.both = nn.Sequential(made.both, nn.Dropout(0.5))
    before = torch.get_rng_state()
    check(made.train())
    assert torch.equal(torch.get_rng_state(), before)
    assert made.training
    assert made.both[1].training


@pytest.mark.parametrize(
    "make", [lambda: AnyNames(SCHEMA, CONFIG), lambda: fresh(SCHEMA, "dlrm")], ids=["own", "dlrm"]
)
def test_a_retriever_is_a_dot_product(make: Callable[[], Scorer]) -> None:
    check_retriever(fresh(SCHEMA, "two_tower"))
    with pytest.raises(ContractError, match=r"cannot retrieve: cross\(\) must be the dot product"):
        check_retriever(make())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_registered_model_keeps_the_contract(name: str) -> None:
    check(fresh(SHOP, name, next(iter(MODELS[name].presets))))


def test_the_members_of_a_sequence_come_in_order() -> None:
    table = AnyNames(SCHEMA, CONFIG).tables["person"]
    ids = torch.tensor([[1, 0, 4, 3], [2, 5, 6, 7]])
    vectors, there = table.members(ids, "played")
    assert there.tolist() == [[False, True, True], [True, True, True]]
    expected = table.table.weight[torch.tensor([[0, 4, 3], [5, 6, 7]]) + 5]  # after `city`
    assert torch.equal(vectors, expected)
    swapped, _ = table.members(ids[:, [0, 1, 3, 2]], "played")
    assert torch.equal(swapped, vectors[:, [0, 2, 1]])


# --- models by name

OWN = "tests.example_models"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two_tower", ("two_tower", "default")),
        ("dlrm:small", ("dlrm", "small")),
        (f"{OWN}:Textbook", (f"{OWN}:Textbook", "default")),
        (f"{OWN}:Textbook:wide", (f"{OWN}:Textbook", "wide")),
        ("cascade.models.scoring.dlrm:DLRM:tiny", ("cascade.models.scoring.dlrm:DLRM", "tiny")),
    ],
)
def test_a_model_and_its_preset_are_read(text: str, expected: tuple[str, str]) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dln", r"no model 'dln'; choose one of \['autoint', 'blend', 'dcn', "),
        ("dlrm", r"dlrm has no preset 'default'; choose one of \['criteo'"),
        ("dlrm:huge", "dlrm has no preset 'huge'"),
        ("no.such:Model", r"no model 'no.such:Model' \(No module named 'no'\); choose one of"),
        (f"{OWN}:Model", r"no model 'tests.*:Model' \(.* has no attribute 'Model'\); choose"),
        (f"{OWN}:Config", "is no subclass of Scorer"),
        (f"{OWN}:Textbook:huge", r"no preset 'huge'; choose one of \['default', 'wide'\]"),
    ],
)
def test_an_unknown_model_or_preset_is_named(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse(text)


def test_a_class_is_built_by_its_name() -> None:
    name, size = parse(f"{OWN}:Textbook:wide")
    made = build(name, preset(name, size), SCHEMA)
    assert type(made) is Textbook
    assert made.person.width == 8


def test_a_class_without_presets_is_called_with_the_schema(monkeypatch: Any) -> None:
    class Plain(Textbook):
        def __init__(self, schema: Schema) -> None:
            super().__init__(schema, CONFIG)

    module = ModuleType("plain_models")
    module.Plain = Plain  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "plain_models", module)
    name, size = parse("plain_models:Plain")
    assert preset(name, size) == {}
    assert type(build(name, {}, SCHEMA)) is Plain


def test_a_name_stands_for_one_model() -> None:
    register("dlrm", dlrm.DLRM, dlrm.PRESETS)  # again: no matter
    with pytest.raises(ModelError, match="two models are called 'dlrm'"):
        register("dlrm", Textbook, example_models.PRESETS)
