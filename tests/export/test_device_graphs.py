"""Half precision near the trained model, in every runtime; native packages equal to it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._inductor.config as inductor

from cascade.artifact import ArtifactError, Description
from cascade.config import Serving
from cascade.runtime.load import load_graph
from cascade.spec import PRERANK, stages
from export.artifacts import device
from export.artifacts.graphs import CandidateLogits, TopCandidates, UserTower
from export.artifacts.stage_files import example_users, write_scoring, write_tower
from tests.export.exported import (
    BAGS,
    CASES,
    ITEMS,
    TORCHSCRIPT,
    Case,
    Exported,
    drawn_items,
    drawn_rows,
    drawn_scorer,
    drawn_users,
    export_case,
)

compiled = pytest.mark.skipif(
    not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))),
    reason="AOTInductor needs a C++ compiler, and there is none",
)
# Of logits about 1 wide: a few units in the last of 11 and of 8 binary digits.
SLACK = {"float16": 5e-3, "bfloat16": 5e-2}
AOTI = Serving(runtime="aoti", threads=1)


@pytest.mark.parametrize("precision", SLACK)
@pytest.mark.parametrize("name", ["DLRM ranks Criteo", "logistic regression ranks numbers"])
def test_half_precision_is_near_the_trained_model(
    name: str, precision: str, tmp_path: Path
) -> None:
    case = CASES[name]
    stage = next(s for s in stages(case.schema, case.sizes) if s.name == case.stage)
    scorer, items = drawn_scorer(case.model, case.preset, case.schema), drawn_items(case.schema)
    halved = device.HalfScorer(scorer, device.HALVES[precision]).eval()
    before = {key: value.clone() for key, value in scorer.state_dict().items()}
    module = write_scoring(halved, stage, case.schema, items, tmp_path, forms=TORCHSCRIPT)
    exported = Exported(tmp_path, stage, case.schema, scorer, module, items)
    users, rows = drawn_users(case.schema, 7), drawn_rows(7, exported.width)
    with torch.inference_mode():
        got = CandidateLogits.forward(module, *map(torch.from_numpy, (*users, rows))).numpy()
    wanted = np.take_along_axis(exported.logits(users), np.maximum(rows, 0), 1)
    scale = max(1.0, float(np.abs(wanted).max()))
    real = rows >= 0
    assert np.isneginf(got[~real]).all()
    difference = np.abs(got - wanted)[real].max() / scale
    assert 0 < difference <= SLACK[precision]  # zero, and nothing was narrowed
    for runtime in ("onnx", "torchscript"):
        if (runtime, precision) == ("onnx", "bfloat16"):
            continue  # ONNX Runtime multiplies no bfloat16 on a CPU
        ids, scores = load_graph(tmp_path, case.schema, Serving(runtime=runtime, threads=1))[1](
            *users, rows
        )
        assert scores.dtype == np.float32
        best = np.sort(1 / (1 + np.exp(-got)), axis=1)[:, ::-1][:, : exported.keep]
        np.testing.assert_allclose(scores, best, rtol=0, atol=2 * SLACK[precision] * scale)
        assert set(ids.ravel().tolist()) <= {-1, *items.item_ids.tolist()}
    for key, value in scorer.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_a_tower_in_half_precision(tmp_path: Path) -> None:
    retriever = drawn_scorer("two_tower", "tiny", BAGS)
    tower = write_tower(device.HalfScorer(retriever, torch.float16).eval(), BAGS, tmp_path)
    users = drawn_users(BAGS, 5)
    with torch.inference_mode():
        wanted = retriever.user(*map(torch.from_numpy, users)).numpy()
        got = tower(*map(torch.from_numpy, users)).numpy()
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-3)
    assert not any("item" in name for name, _ in tower.named_parameters())


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """A preranker with its package; compiling takes a while."""
    before = torch.get_num_threads()
    case = Case("dlrm", "tiny", BAGS, PRERANK)
    exported = export_case(case, tmp_path_factory.mktemp("packaged"))
    module = TopCandidates(exported.scorer, exported.keep, with_ids=False)
    example = example_users(BAGS)
    example["candidates"] = torch.zeros(2, exported.width, dtype=torch.long)
    description = Description.load(exported.folder)
    device.package(module, example, description, exported.folder)
    yield exported
    torch.set_num_threads(before)


@compiled
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_package_chooses_the_best_candidates(packaged: Exported, cuda_graphs: bool) -> None:
    serving = replace(AOTI, cuda_graphs=cuda_graphs)
    _, graph = load_graph(packaged.folder, BAGS, serving)
    for batch in (1, 3, 33):
        for width in (packaged.keep, packaged.width, 2 * packaged.width + 1):
            packaged.check(graph, drawn_users(BAGS, batch), drawn_rows(batch, width))


@compiled
def test_the_item_state_is_no_part_of_a_package(packaged: Exported, tmp_path: Path) -> None:
    """The same package beside another catalogue, of other states and another size."""
    folder = Path(shutil.copytree(packaged.folder, tmp_path / "1"))
    description = Description.load(folder)
    state = description.mapped["item_state"]
    turned = np.array(state.open(folder))[::-1][: ITEMS - 10]
    turned.tofile(folder / state.file)
    mapped = {"item_state": replace(state, shape=turned.shape)}
    replace(description, mapped=mapped).save(folder)
    users, rows = drawn_users(BAGS, 3), drawn_rows(3, packaged.width)
    rows = np.where(rows >= ITEMS - 10, -1, rows)
    (got,) = load_graph(folder, BAGS, AOTI)[1](*users, rows)
    mirrored = np.where(rows < 0, -1, ITEMS - 1 - rows)
    (wanted,) = load_graph(packaged.folder, BAGS, AOTI)[1](*users, mirrored)
    np.testing.assert_array_equal(np.where(got < 0, -1, ITEMS - 1 - got), wanted)


@compiled
def test_a_damaged_package_or_one_for_another_device(
    packaged: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(packaged.folder, tmp_path / "1"))
    from cascade.runtime import torch_graphs

    monkeypatch.setattr(torch_graphs, "DEVICE_KEY", "AOTI_PLATFORM")  # which says `linux`
    with pytest.raises(ArtifactError, match=r"compiled for linux, and device is cpu: .*aoti"):
        load_graph(folder, BAGS, AOTI)
    path = folder / "model.pt2"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match=r"model.pt2 cannot be loaded.*export again"):
        load_graph(folder, BAGS, AOTI)


def test_a_missing_compiler_or_gpu_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = drawn_scorer("two_tower", "tiny", BAGS)
    description: Any = write_tower(scorer, BAGS, tmp_path) and Description.load(tmp_path)
    with (
        inductor.patch({"cpp.cxx": ("/no/compiler",)}),
        pytest.raises(ArtifactError, match=r"no C\+\+ compiler.*install g\+\+"),
    ):
        device.package(UserTower(scorer), example_users(BAGS), description, tmp_path)
    assert not (tmp_path / "model.pt2").exists()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ArtifactError, match="torch finds no GPU"):
        device.package(UserTower(scorer), example_users(BAGS), description, tmp_path, "cuda")
