"""Models that have not been trained, and a comparison to the bit of those that have."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cascade.models import build, preset
from cascade.models.scorer import Scorer
from cascade.models.scoring.dlrm import DLRM
from cascade.schema import Schema


def fresh(schema: Schema, model: str = "dlrm", size: str = "tiny", seed: int = 0) -> Scorer:
    """A model as training finds it."""
    torch.manual_seed(seed)
    return build(model, preset(model, size), schema)


def opinionated(schema: Schema, seed: int) -> Scorer:
    """A small DLRM that was drawn, with embeddings wide enough that it has an opinion."""
    scorer = fresh(schema, size="small", seed=seed)
    assert isinstance(scorer, DLRM)
    for embeddings in (scorer.user_ids, scorer.item_ids):
        nn.init.normal_(embeddings.table.weight, std=0.7)
    return scorer.eval()


def assert_same_weights(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Every tensor is equal, bit for bit."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name
