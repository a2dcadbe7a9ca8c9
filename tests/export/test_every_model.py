"""Every registered model, by the registry alone: what is exported gives its answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cascade.files import write_json
from cascade.models import MODELS
from cascade.models.example import SHOP
from cascade.models.scorer import Scorer
from cascade.spec import RANK, Sizes, Stage, stages
from export.artifacts import parity
from export.artifacts.stage_files import write_tower
from export.context import Catalogue
from export.foreign.flat import flat_onnx
from export.foreign.onnx_model import Foreign, draw_users
from export.foreign.own import Own
from export.foreign.wrapper import write
from perf.zoo.sets import NO_MODELS, RETRIEVERS
from tests.export.exported import drawn_scorer

SIZES = Sizes(candidates=60, survivors=30, results=10)
ITEMS = 200


def drawn(model: str) -> Scorer:
    size = "tiny" if "tiny" in MODELS[model].presets else "default"
    return drawn_scorer(model, size, SHOP)


@pytest.fixture(scope="module")
def items() -> Catalogue:
    random = np.random.default_rng(0)
    most = [f.cardinality for f in SHOP.ids("item") for _ in range(f.length)]
    ids = np.stack([random.integers(n, size=ITEMS) for n in most], axis=1)
    dense = random.normal(size=(ITEMS, SHOP.dense_width("item"))).astype(np.float32)
    return Catalogue(dense, ids, random.permutation(ITEMS))


def rank() -> Stage:
    return next(stage for stage in stages(SHOP, SIZES) if stage.name == RANK)


def cases(width: int | None = None) -> parity.Cases:
    random = np.random.default_rng(1)
    found: parity.Cases = []
    for batch in (1, 3, 64):
        case = draw_users(SHOP, batch, random)
        rows = (parity.draw_candidates(batch, width, ITEMS, random),) if width else ()
        found.append((*case, *rows))
    return found


@pytest.mark.parametrize("model", [m for m in MODELS if m not in (*RETRIEVERS, *NO_MODELS)])
def test_a_ranker_is_taken_apart_and_is_the_flat_one(
    model: str, items: Catalogue, tmp_path: Path
) -> None:
    scorer, stage = drawn(model), rank()
    own = Own(scorer, stage, items)  # compares what was derived with the model
    own.write(items, tmp_path)
    compared = (RANK, own.eager(items), tmp_path, SHOP, cases(SIZES.survivors))
    assert max(one.max_abs for one in parity.compare(*compared)) <= 1e-5
    path, mapping = tmp_path / "flat.onnx", tmp_path / "flat.json"
    write_json(mapping, flat_onnx(scorer, SHOP, path))
    (folder := tmp_path / "flat").mkdir()
    _, parities = write(Foreign(path, mapping, SHOP), stage, items, folder, flat=True)
    assert max(one.max_abs for one in parities) <= 1e-5


@pytest.mark.parametrize("model", RETRIEVERS)
def test_the_tower_of_a_retriever_gives_its_vectors(model: str, tmp_path: Path) -> None:
    tower = write_tower(drawn(model), SHOP, tmp_path)
    compared = ("retrieve", tower, tmp_path, SHOP, cases())
    assert max(one.max_abs for one in parity.compare(*compared)) <= 1e-5
