"""Every registered model gives the logits of an implementation that is not ours, with its weights:
of another library, of PyTorch's own layers, or of the paper's equations in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from cascade.models import MODELS
from tests.unit.independent import deepctr, deepctr_tasks, formulas, rechub, torch_layers
from tests.unit.independent.case import COUNT, DENSE, IDS, NUMBERS, drawn, rows

pytestmark = pytest.mark.usefixtures("one_thread")

OURS_ALONE = {"blend"}  # models of no paper


class Reference(NamedTuple):
    """A model of ours, how it differs from its smallest preset, and the logits that it should
    have, [B] or [B, T], by its weights and the rows."""

    model: str
    logits: Callable[[Any, Any], Tensor]
    changes: dict[str, Any]

    def __str__(self) -> str:
        return "-".join((self.model, *map(str, self.changes.values())))


def of(model: str, logits: Callable[[Any, Any], Tensor], **changes: Any) -> Reference:
    return Reference(model, logits, changes)


REFERENCES = [
    of("two_tower", rechub.two_tower),
    of("mf", deepctr.mf, factors=8),
    of("youtube", rechub.youtube, width=8, feature_width=8, hidden=(16, 12)),
    of("sasrec", rechub.sasrec, width=8, blocks=2),
    of("sasrec", rechub.sasrec, width=8, blocks=2, features=False),
    of("gru4rec", torch_layers.gru4rec, width=8, layers=2),
    of("logistic", deepctr.logistic),
    of("dlrm", formulas.dlrm, bottom=(8, 6), top=(12, 8)),
    of("dlrm", formulas.dlrm, width=2, bottom=(8, 6), top=(12, 8), crosses=2, rank=5),
    of("mlp", deepctr.mlp, hidden=(16, 8)),
    of("ncf", formulas.ncf, factors=6, hidden=(8, 4)),
    of("wide_deep", deepctr.wide_deep, hidden=(16, 8)),
    of("deepfm", deepctr.deepfm, hidden=(16, 8)),
    of("deepfm", deepctr.deepfm, hidden=(16, 8), vectors_of_all=True),
    of("dcn", deepctr.dcn, hidden=(16, 8)),
    of("dcnv2", deepctr.dcnv2, structure="stacked", rank=0),
    of("dcnv2", deepctr.dcnv2, structure="stacked", rank=3, hidden=(16, 8)),
    of("dcnv2", deepctr.dcnv2, structure="parallel", rank=0, hidden=(16, 8)),
    of("dcnv2", deepctr.dcnv2, structure="parallel", rank=5),
    of("autoint", deepctr.autoint, width=8, layers=3, heads=2, head_width=4),
    of("autoint", formulas.autoint, width=8, layers=2, heads=3, head_width=5),
    of("din", deepctr.din, attention=(6, 5), hidden=(8, 8)),
    of("transformer", torch_layers.transformer, width=8, layers=2, crosses=2, hidden=(16, 8)),
    of("shared_bottom", deepctr_tasks.shared_bottom, bottom=(16, 8), tower=(6, 4)),
    of("mmoe", deepctr_tasks.mmoe, expert=(12, 8), tower=(6, 4)),
]


@pytest.mark.parametrize("reference", REFERENCES, ids=map(str, REFERENCES))
def test_the_logits_are_those_of_an_independent_implementation(reference: Reference) -> None:
    scorer, drawn_rows = drawn(reference.model, reference.changes), rows()
    with torch.no_grad():
        found, expected = scorer(*drawn_rows), reference.logits(scorer, drawn_rows)
    assert found.shape[0] == COUNT
    assert (found.std(0) > 0.05).all()  # what is compared is no constant
    torch.testing.assert_close(found, expected.to(found.dtype), atol=1e-5, rtol=0)


def test_every_registered_model_has_a_reference() -> None:
    assert {*MODELS} - OURS_ALONE == {reference.model for reference in REFERENCES}


def test_rows_have_missing_and_unknown_values_and_lists_of_every_length() -> None:
    drawn_rows = rows()
    for feature in IDS:
        ids = drawn_rows.of(feature.name)
        assert {0, 1} <= {*ids.flatten().tolist()}
        if feature.multivalued:
            assert {*(ids > 0).sum(1).tolist()} == {*range(feature.length + 1)}
    for feature in DENSE:
        assert {*drawn_rows.of(feature.name).flatten().tolist()} == {*NUMBERS.tolist()}
