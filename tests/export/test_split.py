"""The split derived from a flat graph gives the flat graph's logits, for every pair."""

from __future__ import annotations

import doctest
import sys
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.foreign.split import BOTH, ITEM, USER, Cost, NotSplit, derive
from export.foreign.split import turns as turns_module
from export.foreign.split.turns import Turns, turns
from tests.export import split_models
from tests.export.split_checks import check, exported, taken_apart
from tests.export.split_models import FIELDS, ITEM_IDS, MODELS, USER_IDS, WIDTH, draw


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_a_textbook_model_is_taken_apart(kind: type[torch.nn.Module]) -> None:
    torch.manual_seed(0)
    flat = exported(kind().eval(), dynamo=False)
    derived = taken_apart(flat)
    check(flat, derived)
    most = (0.9 if kind is split_models.Transformer else 0.7) * derived.flat.multiply_adds
    assert derived.costs[BOTH].multiply_adds <= most
    assert derived.parts


@pytest.mark.parametrize(
    "kind",
    [
        *(split_models.Dlrm, split_models.CrossNetV2, split_models.Bags),
        *(split_models.BagTables, split_models.OneMatrix),
    ],
    ids=lambda kind: kind.__name__,
)
def test_what_the_newer_exporter_writes(kind: type[torch.nn.Module]) -> None:
    torch.manual_seed(0)
    flat = exported(kind().eval(), dynamo=True)
    check(flat, taken_apart(flat))


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_older_opsets(opset: int) -> None:
    torch.manual_seed(0)
    flat = exported(split_models.DeepFm().eval(), dynamo=False, opset=opset)
    check(flat, taken_apart(flat))


def test_work_is_counted_once_and_the_report_names_it() -> None:
    """A bottom net of 3-16-8 and a top net of 74-64-32-1 over 12 vectors, 6 of each side."""
    torch.manual_seed(0)
    derived = taken_apart(exported(split_models.Dlrm().eval(), dynamo=False))
    user, item, vectors = USER_IDS + 1, ITEM_IDS, FIELDS + 1
    own = {side: n * (n - 1) // 2 for side, n in ((USER, user), (ITEM, item))}
    after = 64 * 32 + 32
    flat = 3 * 16 + 16 * WIDTH + vectors**2 * WIDTH + (WIDTH + 66) * 64 + after
    assert derived.flat == Cost(flat, FIELDS * WIDTH * 4 + ITEM_IDS * 8)
    assert derived.costs == {
        USER: Cost(
            3 * 16 + 16 * WIDTH + user**2 * WIDTH + (WIDTH + own[USER]) * 64,
            USER_IDS * WIDTH * 4,
        ),
        ITEM: Cost(item**2 * WIDTH + own[ITEM] * 64, ITEM_IDS * WIDTH * 4),
        BOTH: Cost(user * item * (WIDTH + 64) + after, (item * WIDTH + 64) * 4),
    }
    facts = derived.facts()
    assert facts["multiply_adds"]["flat"] == flat
    assert facts["bytes_read"]["candidate"] == 4 * facts["state_numbers"]
    assert facts["kept"] == {"Relu of user and item and candidate (needs both)": 1}
    assert f"flat {flat:,} per candidate" in derived.report()


class Narrow(split_models.Dlrm):
    def __init__(self) -> None:
        super().__init__()
        self.top[0] = torch.nn.Linear(self.top[0].in_features, 8)
        self.top[2] = torch.nn.Linear(8, 32)


@pytest.mark.parametrize("candidates", [1, 100_000])
def test_a_user_is_folded_into_a_narrow_layer_of_many_candidates(candidates: int) -> None:
    torch.manual_seed(0)
    flat = exported(Narrow().eval(), dynamo=False)
    derived = taken_apart(flat, candidates)
    check(flat, derived)
    state = ITEM_IDS * WIDTH + 8
    assert sum(part.size for part in derived.parts) == state
    pairs = (USER_IDS + 1) * ITEM_IDS * (WIDTH + 8)
    first = state * 8 if candidates > 1 else pairs
    assert derived.costs[BOTH].multiply_adds == first + 8 * 32 + 32
    assert len(derived.parts) == (1 if candidates > 1 else 2)


class Equation(split_models.Dlrm):
    """Its dots as an equation, the other way round."""

    equation = "bfd,bgd->bgf"

    def forward(self, un: Any, ui: Any, it: Any, ii: Any) -> Any:
        dense = self.bottom(un)
        vectors = torch.cat((dense.unsqueeze(1), self.vectors(ui, ii)), 1)
        other = vectors.transpose(1, 2) if "bdg" in self.equation else vectors
        dots = torch.einsum(self.equation, vectors, other)[:, self.j, self.i]
        return self.out(self.top(torch.cat((dense, dots), 1)))


@pytest.mark.parametrize("equation", ["bfd,bgd->bgf", "bfd, bgd -> bfg", "bfd,bdg->bfg"])
def test_dots_may_be_an_equation(equation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Equation, "equation", equation)
    torch.manual_seed(0)
    flat = exported(Equation().eval(), dynamo=False)
    derived = taken_apart(flat)
    check(flat, derived)
    torch.manual_seed(0)
    known = taken_apart(exported(split_models.Dlrm().eval(), dynamo=False))
    assert (derived.flat, derived.costs) == (known.flat, known.costs)


class Bought(split_models.Mlp):
    """How often a user bought each of the things that an item's ids name."""

    def forward(self, un: Any, ui: Any, it: Any, ii: Any) -> Any:
        logits = super().forward(un, ui, it, ii)
        counts = (un[:, :1] * 0 + torch.zeros(split_models.ROWS)).scatter_add(1, ui, un[:, :1] + ui)
        return logits + counts.gather(1, ii).sum(1, keepdim=True)


@pytest.mark.parametrize("dynamo", [False, True])
def test_what_a_user_has_by_id_is_not_repeated_for_candidates(dynamo: bool) -> None:
    torch.manual_seed(0)
    flat = exported(Bought().eval(), dynamo=dynamo)
    derived = taken_apart(flat)
    check(flat, derived)
    assert not any("Elements" in kept for kept in derived.facts()["kept"])
    (read,) = (n for n in derived.pairs.graph.node if n.op_type == "GatherElements")
    (table,) = (n for n in derived.pairs.graph.node if n.op_type == "ScatterElements")
    assert read.input[0] == table.output[0]
    assert not [n for n in derived.pairs.graph.node if n.op_type == "Expand"]


class Unknown(split_models.Mlp):
    """An operation that no rule knows, over what one side alone would do."""

    def forward(self, un: Any, ui: Any, it: Any, ii: Any) -> Any:
        logits = super().forward(un, ui, it, ii)
        return logits + torch.cumsum(self.vectors(ui, ii).flatten(1), 1)[:, -1:]


def test_what_an_item_repeats_for_the_members_of_a_list_is_kept_once() -> None:
    """Its part of the attention's first layer, [16], its vector and its slice of the deep net."""
    torch.manual_seed(0)
    derived = taken_apart(exported(split_models.Interest().eval(), dynamo=False))
    assert sum(part.size for part in derived.parts) == 16 + WIDTH + 32


def test_turns_give_what_was_sliced_transposed_and_reshaped() -> None:
    assert doctest.testmod(turns_module).failed == 0
    random = np.random.default_rng(0)
    for _ in range(2_000):
        shape = random.integers(1, 5, random.integers(1, 5))
        place = np.arange(np.prod(shape)).reshape(shape).transpose(random.permutation(len(shape)))
        for axis, count in enumerate(place.shape):
            start = random.integers(count)
            place = place.take(range(start, random.integers(start, count) + 1), axis)
        cut = random.integers(place.ndim + 1)
        place = place.reshape(-1, *place.shape[cut:])
        found = turns(place, int(np.prod(shape)))
        assert found is not None
        assert (turned(found) == place.ravel()).all()


def test_places_that_no_turns_give() -> None:
    assert turns(np.array([0, 1, 3]), 4) is None
    assert turns(np.array([[0, 1], [1, 2]]), 4) is None  # one twice
    assert turns(np.array([2, 1, 0]), 3) is None
    random, known = np.random.default_rng(0), 0
    for _ in range(2_000):
        place = random.integers(0, 8, random.integers(1, 4, random.integers(1, 4)))
        if (found := turns(place, 8)) is not None:
            assert (turned(found) == place.ravel()).all()
            known += 1
    assert known > 100


def turned(found: Turns) -> Any:
    """What these turns make of places 0, 1, ..."""
    whole = np.arange(np.prod(found.dims)).reshape(found.dims)
    some = whole[tuple(map(slice, found.starts, found.ends))]
    return some.transpose(found.order).ravel()


def test_a_side_counts_its_own_rows() -> None:
    """The newer exporter writes EmbeddingBag as a loop over rows, of both sides counted by one
    input of the user."""
    torch.manual_seed(0)
    flat = exported(split_models.BagTables().eval(), dynamo=True)
    assert [node.op_type for node in flat.graph.node].count("Loop") == 2
    derived = taken_apart(flat)
    assert derived.facts()["kept"] == {"Relu of user and item (needs both)": 1}
    assert derived.costs[BOTH].multiply_adds == 64


def test_what_no_rule_knows_is_named() -> None:
    torch.manual_seed(0)
    flat = exported(Unknown().eval(), dynamo=False)
    derived = taken_apart(flat)
    check(flat, derived)
    assert derived.facts()["kept"]["CumSum of user and item (no rule)"] == 1
    assert "1x CumSum" in derived.report()


def test_what_differs_from_the_flat_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = exported(split_models.Logistic().eval(), dynamo=False)
    monkeypatch.setattr(sys.modules[derive.__module__], "LARGEST_DIFFERENCE", -1.0)
    with pytest.raises(NotSplit, match="differs from it by"):
        taken_apart(flat)


def test_what_a_rule_cannot_take_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = exported(split_models.Logistic().eval(), dynamo=False)
    flat.graph.initializer.pop()
    with pytest.raises(NotSplit, match="it cannot be looked into"):
        taken_apart(flat)


def test_an_output_without_rows_is_refused() -> None:
    class Mean(torch.nn.Module):
        def forward(self, un: Any, ui: Any, it: Any, ii: Any) -> Any:
            return (un.mean() + it.mean() + ui.sum() + ii.sum()).reshape(1, 1)

    with pytest.raises(NotSplit, match="logits"):
        taken_apart(exported(Mean(), dynamo=False))


class Random:
    """A graph drawn layer by layer from what the rules know, over the inputs of `draw`."""

    def __init__(self, data: st.DataObject) -> None:
        self.data, self.nodes, self.tensors = data, [], []
        self.random = np.random.default_rng(data.draw(st.integers(0, 10_000)))
        self.inputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", value.shape[1]])
            for name, value in draw(1).items()
            if value.dtype == np.float32
        ]
        widths = {
            value.name: value.type.tensor_type.shape.dim[1].dim_value for value in self.inputs
        }
        self.values: dict[str, tuple[int, ...]] = {n: (w,) for n, w in widths.items()}
        self.values[self.op("Concat", *self.values, axis=1)] = (sum(widths.values()),)

    def constant(self, *shape: int) -> str:
        return self.tensor(self.random.normal(size=shape).astype(np.float32) / max(1, shape[0]))

    def tensor(self, value: Any) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(value), f"w{len(self.tensors)}"))
        return f"w{len(self.tensors) - 1}"

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def pick(self, rank: int | None = None) -> tuple[str, tuple[int, ...]]:
        found = [(n, s) for n, s in self.values.items() if rank in (None, len(s))]
        return self.data.draw(st.sampled_from(found))

    def layer(self) -> None:
        kind = self.data.draw(st.sampled_from(sorted(LAYERS)))
        made = LAYERS[kind](self)
        if made is not None and int(np.prod(made[1])) <= 200:
            self.values[made[0]] = made[1]

    def model(self) -> onnx.ModelProto:
        """Its output reads all that was made."""
        flats = [
            self.op("Reshape", name, self.tensor(np.array([-1, int(np.prod(shape))])))
            for name, shape in self.values.items()
        ]
        whole = self.op("Concat", *flats, axis=1)
        width = sum(int(np.prod(shape)) for shape in self.values.values())
        out = self.op("Gemm", whole, self.constant(width, 2), self.constant(2))
        output = helper.make_tensor_value_info(out, TensorProto.FLOAT, ["rows", 2])
        graph = helper.make_graph(self.nodes, "drawn", self.inputs, [output], self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def linear(g: Random) -> Any:
    (name, shape), width = g.pick(), g.data.draw(st.integers(1, 6))
    if len(shape) == 1 and g.data.draw(st.booleans()):
        return g.op("Gemm", name, g.constant(shape[0], width), g.constant(width)), (width,)
    return g.op("MatMul", name, g.constant(shape[-1], width)), (*shape[:-1], width)


def activation(g: Random) -> Any:
    name, shape = g.pick()
    return g.op(g.data.draw(st.sampled_from(["Relu", "Sigmoid", "Tanh", "Neg"])), name), shape


def binary(g: Random) -> Any:
    name, shape = g.pick()
    others = [n for n, s in g.values.items() if s == shape]
    other = g.data.draw(st.sampled_from([*others, g.constant(1, *shape)]))
    return g.op(g.data.draw(st.sampled_from(["Add", "Sub", "Mul"])), name, other), shape


def concat(g: Random) -> Any:
    (a, first), (b, second) = g.pick(1), g.pick(1)
    return g.op("Concat", a, b, axis=1), (first[0] + second[0],)


def gather(g: Random) -> Any:
    name, shape = g.pick()
    axis = g.data.draw(st.integers(0, len(shape) - 1))
    places = g.data.draw(st.lists(st.integers(0, shape[axis] - 1), min_size=1, max_size=6))
    new = (*shape[:axis], len(places), *shape[axis + 1 :])
    return g.op("Gather", name, g.tensor(np.array(places)), axis=axis + 1), new


def look_up(g: Random) -> Any:
    """Numbers of a row at places that other numbers of it give."""
    (name, (width,)), (places, new) = g.pick(1), g.pick(1)
    positive = g.op("Clip", g.op("Abs", places), "", g.tensor(np.float32(width - 1)))
    whole = g.op("Cast", positive, to=TensorProto.INT64)
    return g.op("GatherElements", name, whole, axis=g.data.draw(st.sampled_from([1, -1]))), new


def stack(g: Random) -> Any:
    """[n] -> [f, d], its vectors."""
    name, (width,) = g.pick(1)
    fields = g.data.draw(st.sampled_from([f for f in (1, 2, 3) if width % f == 0]))
    shape = fields, width // fields
    return g.op("Reshape", name, g.tensor(np.array([0, *shape]))), shape


def beside(g: Random) -> Any:
    """[n] -> [f, n] or [n] -> [n, f], the same f times."""
    (name, (width,)), count = g.pick(1), g.data.draw(st.integers(1, 4))
    first = g.data.draw(st.booleans())
    shape = (count, width) if first else (width, count)
    lone = g.op("Reshape", name, g.tensor(np.array([0, 1, width] if first else [0, width, 1])))
    return g.op("Expand", lone, g.tensor(np.array([1, *shape]))), shape


def turn(g: Random) -> Any:
    """Axes in another order, or some neighbours along one."""
    name, shape = g.pick()
    if g.data.draw(st.booleans()):
        order = g.data.draw(st.permutations(range(len(shape))))
        new = tuple(shape[axis] for axis in order)
        return g.op("Transpose", name, perm=[0, *(axis + 1 for axis in order)]), new
    axis = g.data.draw(st.integers(0, len(shape) - 1))
    start = g.data.draw(st.integers(0, shape[axis] - 1))
    end = g.data.draw(st.integers(start + 1, shape[axis]))
    bounds = (g.tensor(np.array([value])) for value in (start, end, axis + 1))
    return g.op("Slice", name, *bounds), (*shape[:axis], end - start, *shape[axis + 1 :])


def dots(g: Random) -> Any:
    found = [(n, s) for n, s in g.values.items() if len(s) == 2]
    if not found:
        return None
    name, (fields, _) = g.data.draw(st.sampled_from(found))
    return g.op("MatMul", name, g.op("Transpose", name, perm=[0, 2, 1])), (fields, fields)


def total(g: Random) -> Any:
    name, shape = g.pick()
    axis = g.data.draw(st.integers(0, len(shape) - 1))
    kind = g.data.draw(st.sampled_from(["ReduceSum", "ReduceMean"]))
    new = (*shape[:axis], 1, *shape[axis + 1 :])
    return g.op(kind, name, g.tensor(np.array([axis + 1])), keepdims=1), new


def norm(g: Random) -> Any:
    name, shape = g.pick()
    if g.data.draw(st.booleans()):
        return g.op("Softmax", name, axis=-1), shape
    return g.op("LayerNormalization", name, g.constant(shape[-1]), axis=-1), shape


LAYERS = {
    kind.__name__: kind
    for kind in (
        *(linear, activation, binary, concat, gather, look_up),
        *(stack, beside, turn, dots, total, norm),
    )
}


@settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_graphs_drawn_at_random(data: st.DataObject) -> None:
    drawn = Random(data)
    for _ in range(data.draw(st.integers(1, 14))):
        drawn.layer()
    flat = drawn.model()
    check(flat, taken_apart(flat, data.draw(st.sampled_from([1, 100_000]))))
