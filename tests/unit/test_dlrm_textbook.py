"""Our DLRM is the textbook's: the same weights give the same logits and the same gradients.

The model of this file is written from the paper (Naumov et al., arXiv:1906.00091, figure 1 and
section 2.1) as one flat function of a whole row: the user's
features are repeated for every candidate.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cascade.data import criteo
from cascade.models import build, preset
from cascade.models.scoring.dlrm import DLRM, PRESETS
from cascade.schema import Schema, Side
from tests.schemas import Rows, draw_rows, schemas

pytestmark = pytest.mark.usefixtures("one_thread")

CANDIDATES = 4
USERS = 3
SIDES: tuple[Side, Side] = ("user", "item")


class TextbookDLRM(nn.Module):
    """Embeddings, bottom MLP, pairwise dot products, top MLP, on rows of (user, item).

    The vectors of a row are, for the user and then for the item, what comes out of the bottom MLP
    of the side's numbers and one embedding for each of its id features. With numbers on one side,
    as in Criteo, that is the paper's model to the letter.
    """

    def __init__(self, schema: Schema, dlrm: DLRM) -> None:
        super().__init__()
        self.schema = schema
        self.tables = nn.ModuleDict()
        self.bottoms = nn.ModuleDict()
        for side in SIDES:
            table = (dlrm.user_ids if side == "user" else dlrm.item_ids).table.weight.detach()
            start = 0
            for feature in schema.ids(side):
                rows = table[start : start + feature.cardinality].clone()
                self.tables[feature.name] = nn.Embedding.from_pretrained(rows, freeze=False)
                start += feature.cardinality
            bottom = dlrm.user_bottom if side == "user" else dlrm.item_bottom
            if bottom is not None:
                self.bottoms[side] = _copied(bottom, last_relu=True)
        self.top = _copied(dlrm.top, last_relu=False)

    def forward(self, users: Rows, items: Rows) -> Tensor:
        """B users and B items -> logits [B]."""
        dense, vectors = [], []
        for side, rows in zip(SIDES, (users, items), strict=True):
            if side in self.bottoms:
                dense.append(self.bottoms[side](rows.dense))
                vectors.append(dense[-1])
            column = 0
            for feature in self.schema.ids(side):
                ids = rows.ids[:, column : column + feature.length]
                vectors.append(self._embedded(feature.name, feature.multivalued, ids))
                column += feature.length
        stacked = torch.stack(vectors, dim=1)  # [B, F, D]
        dots = torch.bmm(stacked, stacked.transpose(1, 2))
        first, second = torch.tril_indices(len(vectors), len(vectors), offset=-1)  # pairs i > j
        logits: Tensor = self.top(torch.cat((*dense, dots[:, first, second]), dim=1))
        return logits.squeeze(1)

    def _embedded(self, name: str, bag: bool, ids: Tensor) -> Tensor:
        """One vector a row: that of the only id, or the mean of those of a bag's members."""
        table = self.tables[name]
        if not bag:
            return table(ids[:, 0])
        members = [row[row != 0] for row in ids]
        return torch.stack([table(row).sum(0) / max(1, len(row)) for row in members])


def _copied(layers: nn.ModuleList, last_relu: bool) -> nn.Sequential:
    """The same linear layers in an ordinary stack."""
    stack: list[nn.Module] = []
    for layer in layers:
        assert isinstance(layer, nn.Linear)
        linear = nn.Linear(layer.in_features, layer.out_features, dtype=layer.weight.dtype)
        linear.load_state_dict(layer.state_dict())
        stack += [linear, nn.ReLU()]
    return nn.Sequential(*(stack if last_relu else stack[:-1]))


def drawn(schema: Schema, size: str, seed: int, dtype: torch.dtype) -> tuple[DLRM, Rows, Rows]:
    """A model of ours, its users [B] and their candidates [B * K]."""
    torch.manual_seed(seed)
    dlrm = build("dlrm", preset("dlrm", size), schema).to(dtype)
    assert isinstance(dlrm, DLRM)
    users = draw_rows(schema, "user", USERS, seed)
    items = draw_rows(schema, "item", USERS * CANDIDATES, seed)
    if dtype == torch.float64:
        users, items = users.double(), items.double()
    return dlrm, users, items


def served_logits(dlrm: DLRM, users: Rows, items: Rows) -> Tensor:
    """As a server computes them, [B * K]."""
    states = dlrm.item(*items.both).view(USERS, CANDIDATES, -1)
    return dlrm.cross(dlrm.user(*users.both), states).flatten()


def repeated(users: Rows) -> Rows:
    return users[torch.arange(USERS).repeat_interleave(CANDIDATES)]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["f32", "f64"]
)
@pytest.mark.parametrize("size", [size for size, c in PRESETS.items() if not c.crosses])
@settings(max_examples=15, deadline=None)
@given(schema=schemas(), seed=st.integers(0, 2**16))
def test_ours_equals_textbook(size, dtype, tolerance, schema, seed):
    dlrm, users, items = drawn(schema, size, seed, dtype)
    with torch.no_grad():
        flat = TextbookDLRM(schema, dlrm)(repeated(users), items)
        served = served_logits(dlrm, users, items)
        trained = dlrm(*repeated(users).both, *items.both)
    assert torch.isfinite(flat).all()
    for logits in (served, trained):
        torch.testing.assert_close(logits, flat, atol=tolerance, rtol=0)


@settings(max_examples=15, deadline=None)
@given(schema=schemas(), seed=st.integers(0, 2**16))
def test_ours_learns_as_the_textbook_does(schema, seed):
    dlrm, users, items = drawn(schema, "tiny", seed, torch.float64)
    textbook = TextbookDLRM(schema, dlrm)
    served_logits(dlrm, users, items).square().sum().backward()
    textbook(repeated(users), items).square().sum().backward()
    for side, embeddings in (("user", dlrm.user_ids), ("item", dlrm.item_ids)):
        expected = [textbook.tables[f.name].weight.grad for f in schema.ids(side)]
        if expected:
            gradient = embeddings.table.weight.grad.to_dense()
            torch.testing.assert_close(gradient, torch.cat(expected), atol=1e-10, rtol=1e-10)
    pairs = [(dlrm.top, textbook.top)]
    for side, bottom in (("user", dlrm.user_bottom), ("item", dlrm.item_bottom)):
        if bottom is not None:
            pairs.append((bottom, textbook.bottoms[side]))
    for layers, stack in pairs:
        for mine, theirs in zip(layers.parameters(), stack.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-10, rtol=1e-10)


def test_textbook_has_the_parameters_of_the_paper():
    """Criteo: 13 numbers, 26 categories; 27 vectors and 351 pairs; top input 16 + 351."""
    schema = criteo.SCHEMA.fitted({f.name: (10, "") for f in criteo.SCHEMA.features})
    dlrm, _, _ = drawn(schema, "criteo", 0, torch.float32)
    textbook = TextbookDLRM(schema, dlrm)
    widths = [layer.weight.shape for layer in textbook.bottoms["user"][::2]]
    assert widths == [(512, 13), (256, 512), (64, 256), (16, 64)]
    widths = [layer.weight.shape for layer in textbook.top[::2]]
    assert widths == [(512, 16 + 27 * 26 // 2), (256, 512), (1, 256)]
    ours, theirs = (sum(p.numel() for p in m.parameters()) for m in (dlrm, textbook))
    assert ours == theirs
