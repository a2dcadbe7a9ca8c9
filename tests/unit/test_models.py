"""One contract for every model and preset: user once, item once, cross per candidate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cascade.models import MODELS, build, example, preset
from cascade.models.embeddings import Embeddings
from cascade.models.fields import column
from cascade.models.registry import ModelError, find
from cascade.models.scorer import Scorer
from cascade.schema import Feature, Schema, SchemaError
from tests.schemas import Rows, bag_columns, draw_rows, schemas

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = [(model, name) for model, entry in MODELS.items() for name in entry.presets]
EACH = pytest.mark.parametrize(("model", "name"), ALL, ids=["-".join(pair) for pair in ALL])
FEW = settings(max_examples=5, deadline=None)
SEEDS = st.integers(0, 2**16)
USERS, ITEMS = 3, 7
NUMBERS_AND_IDS = Schema(
    "movies",
    (
        Feature("events", "user", "dense", "log1p"),
        Feature("user", "user", "categorical", "vocabulary", cardinality=40),
        Feature("movie", "item", "categorical", "vocabulary", cardinality=50),
    ),
)


@dataclass(frozen=True)
class Case:
    """A model with weights that are nowhere zero, some users and a catalogue."""

    schema: Schema
    scorer: Scorer
    users: Rows
    items: Rows

    def logits(self, candidates: Tensor) -> Tensor:
        """The serving order for candidates [B, K]: item states first, gathered, then crossed."""
        states = self.scorer.item(*self.items.both)
        return self.scorer.cross(self.scorer.user(*self.users.both), states[candidates])


def make(model: str, name: str, schema: Schema, seed: int) -> Case:
    torch.manual_seed(seed)
    scorer = build(model, preset(model, name), schema)
    if model == "logistic":  # starts at zero, where every answer is the same
        for parameter in scorer.parameters():
            nn.init.normal_(parameter)
    users, items = draw_rows(schema, "user", USERS, seed), draw_rows(schema, "item", ITEMS, seed)
    return Case(schema, scorer.eval(), users, items)


def drawn(data: st.DataObject, model: str) -> Schema:
    """A schema that has what the model needs."""
    return data.draw(schemas(needs=find(model).model.needs))


def embeddings_of(scorer: Scorer, side: str) -> list[Embeddings]:
    found = [
        module
        for path, module in scorer.named_modules()
        if isinstance(module, Embeddings) and any(name.startswith(side) for name in path.split("."))
    ]
    assert found
    return found


@EACH
@FEW
@given(data=st.data(), seed=SEEDS)
def test_rows_equal_gathered_candidates(model, name, data, seed):
    case = make(model, name, drawn(data, model), seed)
    random = np.random.default_rng(seed)
    candidates = torch.from_numpy(random.integers(0, ITEMS, (USERS, 5)))
    crossed = case.logits(candidates)
    assert crossed.shape == (USERS, 5)
    assert torch.isfinite(crossed).all()
    flat_users = case.users[torch.arange(USERS).repeat_interleave(5)]
    flat_items = case.items[candidates.flatten()]
    flat = case.scorer(*flat_users.both, *flat_items.both)
    assert flat.shape == (USERS * 5,)
    torch.testing.assert_close(flat.view(USERS, 5), crossed, atol=1e-5, rtol=1e-5)


@EACH
@FEW
@given(data=st.data(), seed=SEEDS)
def test_batch_equals_single_and_catalogue_equals_its_chunks(model, name, data, seed):
    case = make(model, name, drawn(data, model), seed)
    users, items = case.scorer.user(*case.users.both), case.scorer.item(*case.items.both)
    assert users.shape == (USERS, case.scorer.user_width)
    assert items.shape == (ITEMS, case.scorer.item_width)
    single = [case.scorer.user(*case.users[slice(b, b + 1)].both) for b in range(USERS)]
    torch.testing.assert_close(torch.cat(single), users, atol=1e-5, rtol=1e-5)
    chunks = [case.scorer.item(*case.items[slice(i, i + 3)].both) for i in range(0, ITEMS, 3)]
    torch.testing.assert_close(torch.cat(chunks), items, atol=1e-5, rtol=1e-5)
    candidates = torch.arange(ITEMS).repeat(USERS, 1)
    together = case.scorer.cross(users, items[candidates])
    for b in range(USERS):
        alone = case.scorer.cross(users[b : b + 1], items.unsqueeze(0))
        torch.testing.assert_close(alone, together[b : b + 1], atol=1e-5, rtol=1e-5)


@EACH
@FEW
@given(data=st.data(), seed=SEEDS)
def test_item_states_may_come_in_the_precision_they_are_stored_in(model, name, data, seed):
    case = make(model, name, drawn(data, model), seed)
    if case.scorer.exact_states:  # of ids, which need float32
        return
    users, items = case.scorer.user(*case.users.both), case.scorer.item(*case.items.both)
    stored = items[torch.arange(ITEMS).repeat(USERS, 1)].half()
    found, widened = case.scorer.cross(users, stored), case.scorer.cross(users, stored.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, widened, atol=1e-6, rtol=1e-6)


@EACH
@FEW
@given(data=st.data(), seed=SEEDS)
def test_members_of_a_bag_have_no_order_and_pads_no_place(model, name, data, seed):
    case = make(model, name, drawn(data, model), seed)
    shuffled = []
    for side, rows in (("user", case.users), ("item", case.items)):
        ids = rows.ids.clone()
        for columns in bag_columns(case.schema, side):
            width = columns.stop - columns.start
            ids[:, columns] = ids[:, columns][:, torch.randperm(width)]
        shuffled.append(ids)
    other = Case(
        case.schema,
        case.scorer,
        Rows(case.users.dense, shuffled[0]),
        Rows(case.items.dense, shuffled[1]),
    )
    candidates = torch.arange(ITEMS).repeat(USERS, 1)
    torch.testing.assert_close(
        other.logits(candidates), case.logits(candidates), atol=1e-5, rtol=1e-5
    )


@EACH
@FEW
@given(data=st.data(), seed=SEEDS)
def test_numbers_of_a_side_without_numbers_are_not_read(model, name, data, seed):
    case = make(model, name, drawn(data, model), seed)
    candidates = torch.arange(ITEMS).repeat(USERS, 1)
    noisy = []
    for side, rows in (("user", case.users), ("item", case.items)):
        dense = rows.dense if case.schema.dense(side) else torch.full_like(rows.dense, torch.nan)
        ids = rows.ids if case.schema.ids(side) else torch.full_like(rows.ids, 10**6)
        noisy.append(Rows(dense, ids))
    other = Case(case.schema, case.scorer, *noisy)
    assert torch.equal(other.logits(candidates), case.logits(candidates))


@EACH
@FEW
@given(data=st.data(), seed=SEEDS)
def test_weights_alone_carry_the_model(model, name, data, seed):
    case = make(model, name, drawn(data, model), seed)
    other = make(model, name, case.schema, seed + 1)
    other.scorer.load_state_dict(case.scorer.state_dict())
    candidates = torch.arange(ITEMS).repeat(USERS, 1)
    twin = Case(case.schema, other.scorer, case.users, case.items)
    assert torch.equal(twin.logits(candidates), case.logits(candidates))
    beside = {*case.scorer.state_dict()} - {name for name, _ in case.scorer.named_parameters()}
    assert all(".norm." in name for name in beside)  # what batch normalisation saw in training


@EACH
@FEW
@given(data=st.data(), seed=SEEDS)
def test_gradients_of_the_tables_are_sparse_and_name_the_rows_that_were_read(
    model, name, data, seed
):
    case = make(model, name, drawn(data, model), seed)
    items = case.items[slice(0, USERS)]
    case.scorer(*case.users.both, *items.both).sum().backward()
    rows = {"user": case.users.ids, "item": items.ids}
    tables = [module for module in case.scorer.modules() if isinstance(module, Embeddings)]
    for table in filter(lambda table: table.features, tables):
        gradient = table.table.weight.grad
        assert gradient.is_sparse
        own = [column(case.schema, f, rows[f.side]) + table.first_row(f) for f in table.features]
        met = [  # a table of items may be read by the user's sequence of them, too
            column(case.schema, f, rows["user"]) + table.first_row(case.schema.owner(f))
            for f in case.schema.ids("user")
            if f.shares and case.schema.owner(f) in table.features
        ]
        read = {*torch.cat([ids.flatten() for ids in own]).tolist()}
        found = {*gradient.coalesce().indices()[0].tolist()}
        assert read <= found <= read.union(*(ids.flatten().tolist() for ids in met))
    dense = [p for p in case.scorer.parameters() if p.grad is not None and not p.grad.is_sparse]
    assert dense
    assert all(torch.isfinite(p.grad).all() for p in dense)


@EACH
def test_gradients_reach_every_parameter(model, name):
    torch.manual_seed(0)
    scorer = make(model, name, example.SHOP, 0).scorer.train()
    scorer(*example.rows(256)).square().sum().backward()
    learnt = {name: p for name, p in scorer.named_parameters() if p.requires_grad}
    assert not [name for name, p in learnt.items() if p.grad is None]
    zero = [name for name, p in learnt.items() if not p.grad.to_dense().count_nonzero()]
    assert not zero


@EACH
def test_the_order_of_a_sequence_of_items_tells(model, name):
    if "history" not in find(model).model.needs or model in ("youtube", "din"):  # sums of members
        return
    torch.manual_seed(0)
    scorer = build(model, preset(model, name), example.SHOP).eval()
    user_dense, user_ids, *item = example.rows(16)
    turned = torch.cat((user_ids[:, :1], user_ids[:, 1:].flip(1)), dim=1)
    with torch.no_grad():
        found, other = (scorer(user_dense, ids, *item) for ids in (user_ids, turned))
    assert not torch.isclose(found, other).any()


@EACH
def test_rows_of_unknown_and_of_missing_values_have_finite_logits(model, name):
    torch.manual_seed(0)
    scorer = build(model, preset(model, name), example.SHOP).eval()
    tensors = example.rows(3)
    for value in (0, 1):
        none = [
            torch.full_like(tensor, value if tensor.dtype == torch.long else 0)
            for tensor in tensors
        ]
        with torch.no_grad():
            assert torch.isfinite(scorer(*none)).all()


BAGS = Schema(
    "bags",
    (
        Feature("city", "user", "categorical", "vocabulary", cardinality=4),
        Feature("seen", "user", "bag", "vocabulary", length=4, cardinality=6),
        Feature("genres", "item", "bag", "vocabulary", length=3, cardinality=5),
    ),
)


@pytest.mark.parametrize(
    ("model", "name"),
    [pair for pair in ALL if pair[0] in ("two_tower", "dlrm", "logistic", "blend")],
)
def test_bags_known_by_hand(model, name):
    """User rows: one member; the same and pads elsewhere; the same twice; none."""
    scorer = make(model, name, BAGS, seed=1).scorer
    seen = [[3, 0, 0, 0], [0, 0, 3, 0], [3, 3, 0, 0], [0, 0, 0, 0]]
    ids = torch.tensor([[2, *members] for members in seen])
    states = scorer.user(torch.zeros(4, 1), ids)
    torch.testing.assert_close(states[1], states[0], atol=1e-6, rtol=0)
    if name != "factors":  # which add up the members over the root of their number
        torch.testing.assert_close(states[2], states[0], atol=1e-6, rtol=0)
    assert torch.isfinite(states).all()
    assert not torch.allclose(states[3], states[0])
    weight = embeddings_of(scorer, "user")[0].table.weight
    states.square().sum().backward()
    assert weight.grad.to_dense()[4].count_nonzero() == 0  # `city` has rows 0 to 3: 4 is the pad
    with torch.no_grad():
        weight[4] += 100.0
    assert torch.equal(scorer.user(torch.zeros(4, 1), ids), states)


def test_a_bag_is_the_mean_of_its_members():
    embeddings = Embeddings(BAGS.ids("user"), width=2)
    embeddings.load_state_dict({"table.weight": torch.arange(20.0).view(10, 2)})
    vectors = embeddings(torch.tensor([[1, 2, 5, 0, 1], [0, 0, 0, 0, 0]]))
    # `seen` starts at row 4: its members 2, 5 and 1 are rows 6, 9 and 5.
    expected = [[[2, 3], [(12 + 18 + 10) / 3, (13 + 19 + 11) / 3]], [[0, 1], [0, 0]]]
    torch.testing.assert_close(vectors, torch.tensor(expected))


@pytest.mark.parametrize("cardinality", [2, 100])
def test_tables_start_uniform_within_the_root_of_their_size(cardinality):
    feature = Feature("x", "user", "categorical", "vocabulary", cardinality=cardinality)
    other = Feature("y", "user", "categorical", "vocabulary", cardinality=10_000)
    weight = Embeddings((feature, other), width=200).table.weight.detach()[:cardinality]
    bound = cardinality**-0.5
    assert float(weight.abs().max()) <= bound
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.1)


def test_towers_are_unit_vectors():
    case = make("two_tower", "tiny", BAGS, seed=3)
    for state in (case.scorer.user(*case.users.both), case.scorer.item(*case.items.both)):
        torch.testing.assert_close(state.norm(dim=1), torch.ones(len(state)))


def test_what_cannot_be_built_is_named():
    with pytest.raises(ModelError, match=r"no model 'dln'; choose one of \['autoint', 'blend'"):
        build("dln", {}, BAGS)
    with pytest.raises(ModelError, match=r"no model 'dln'"):
        preset("dln", "tiny")
    with pytest.raises(ModelError, match=r"dlrm has no preset 'huge'; choose one of \['criteo'"):
        preset("dlrm", "huge")
    unfitted = Schema("s", (Feature("a", "user", "categorical", "vocabulary"), *BAGS.side("item")))
    with pytest.raises(SchemaError, match=r"\['a'\] have no cardinality"):
        build("dlrm", preset("dlrm", "tiny"), unfitted)


def test_a_preset_survives_json():
    """A checkpoint's JSON turns the tuples of a preset into lists."""
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in preset("dlrm", "tiny").items()}
    assert isinstance(config["top"], list)
    assert [layer.out_features for layer in build("dlrm", config, BAGS).top] == [8, 1]


def test_a_bent_logistic_regression_bends_with_the_numbers_of_a_user():
    for name, straight in (("default", True), ("bent", False)):
        case = make("logistic", name, NUMBERS_AND_IDS, 0)
        dense, ids = case.users.both
        steps = [case.scorer.user(torch.full_like(dense[:1], x), ids[:1]) for x in (-3.0, 0.0, 3.0)]
        assert bool(torch.isclose(steps[1] - steps[0], steps[2] - steps[1])) == straight
