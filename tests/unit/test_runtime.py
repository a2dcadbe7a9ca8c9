"""A version folder that cannot be served says why: each kind of damage has its own clear error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from cascade.schema import SchemaError
from cascade.serving.runtime import ArtifactError, Description, Mapped, load_graph
from cascade.spec import RANK, Serving

ONNX = Serving(threads=1)
TORCHSCRIPT = Serving(threads=1, runtime="torchscript")


@pytest.fixture
def folder(criteo: Any, tmp_path: Path) -> Path:
    """A copy of the ranker's version folder."""
    return Path(shutil.copytree(criteo.repository / RANK / "1", tmp_path / "1"))


def inputs(criteo: Any) -> tuple[Any, Any, Any]:
    users = criteo.pipeline().retrieve(criteo.dense[:3], criteo.categorical[:3])
    return users[0], users[1], users[2][:, :200]


def described(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit stage.json."""
    path = folder / "stage.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_description_survives_the_disk(folder: Path) -> None:
    description = Description.load(folder)
    assert description.stage == RANK
    assert description.inputs == ("user_dense", "user_ids", "survivors")
    assert description.outputs == ("item_ids", "scores")
    assert description.mapped["catalogue_ids"] == Mapped("catalogue_ids.bin", "int64", (1500, 1))
    ids = description.mapped["catalogue_ids"].open(folder)
    assert isinstance(ids, np.memmap)
    before = (folder / "catalogue_ids.bin").read_bytes()
    ids[0] += 1  # nobody does, but it would not reach the file
    assert (folder / "catalogue_ids.bin").read_bytes() == before
    ids[0] -= 1
    assert ids[:3, 0].tolist() == [5_000_000_000, 5_000_000_003, 5_000_000_006]
    (folder / "again").mkdir()
    description.save(folder / "again")
    assert (folder / "again" / "stage.json").read_text() == (folder / "stage.json").read_text()


def test_inputs_find_their_places_by_name(criteo: Any, folder: Path) -> None:
    users_dense, users_ids, rows = inputs(criteo)
    expected = load_graph(folder, None, ONNX)[1](users_dense, users_ids, rows)
    described(folder, lambda d: d.update(inputs=["survivors", "user_dense", "user_ids"]))
    turned = load_graph(folder, None, ONNX)[1](rows, users_dense, users_ids)
    described(folder, lambda d: d.update(outputs=["scores", "item_ids"]))
    swapped = load_graph(folder, None, ONNX)[1](rows, users_dense, users_ids)
    np.testing.assert_array_equal(turned[0], expected[0])
    np.testing.assert_array_equal(swapped[0], expected[1])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "an empty folder": (
        lambda f: (shutil.rmtree(f), f.mkdir()),
        r"holds no exported stage: stage.json is missing",
    ),
    "half a description": (
        lambda f: (f / "stage.json").write_text((f / "stage.json").read_text()[:80]),
        r"stage.json is damaged",
    ),
    "a list for a description": (
        lambda f: (f / "stage.json").write_text("[]"),
        r"stage.json is damaged",
    ),
    "a description without outputs": (
        lambda f: described(f, lambda d: d.pop("outputs")),
        r"stage.json is damaged: 'outputs'",
    ),
    "a description of another format": (
        lambda f: described(f, lambda d: d.update(format=99)),
        r"stage.json has another format than 1: export again",
    ),
    "no item state": (
        lambda f: (f / "item_state.bin").unlink(),
        r"item_state.bin is missing.*export again, or restore",
    ),
    "half an item state": (
        lambda f: (f / "item_state.bin").write_bytes((f / "item_state.bin").read_bytes()[:1001]),
        r"item_state.bin has 1001 bytes, where \(1500, \d+\) of float32 take \d+: export again",
    ),
    "too many item ids": (
        lambda f: (f / "catalogue_ids.bin").write_bytes(bytes(12008)),
        r"catalogue_ids.bin has 12008 bytes, where \(1500, 1\) of int64 take 12000",
    ),
}


@pytest.mark.parametrize("serving", [ONNX, TORCHSCRIPT], ids=["onnx", "torchscript"])
@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(folder: Path, name: str, serving: Serving) -> None:
    damage, message = DAMAGE[name]
    damage(folder)
    with pytest.raises(ArtifactError, match=message):
        load_graph(folder, None, serving)


@pytest.mark.parametrize(
    ("file", "serving"), [("model.onnx", ONNX), ("model.pt", TORCHSCRIPT)], ids=["onnx", "pt"]
)
def test_a_missing_or_damaged_graph(folder: Path, file: str, serving: Serving) -> None:
    path = folder / file
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match=rf"{file} cannot be loaded.*export again"):
        load_graph(folder, None, serving)
    path.unlink()
    with pytest.raises(ArtifactError, match=rf"{file} is missing: export again"):
        load_graph(folder, None, serving)


def test_one_runtime_does_not_need_the_file_of_the_other(criteo: Any, folder: Path) -> None:
    (folder / "model.pt").unlink()
    onnx = load_graph(folder, None, ONNX)[1](*inputs(criteo))
    shutil.copy(criteo.repository / RANK / "1" / "model.pt", folder)
    (folder / "model.onnx").unlink()
    torchscript = load_graph(folder, None, TORCHSCRIPT)[1](*inputs(criteo))
    np.testing.assert_allclose(onnx[1], torchscript[1], rtol=0, atol=1e-6)


def test_another_schema_is_refused(criteo: Any, folder: Path) -> None:
    other = replace(criteo.schema, name="another")
    with pytest.raises(SchemaError, match=f"{criteo.schema.hash}, but .*{other.hash}"):
        load_graph(folder, other, ONNX)


def test_no_gpu_is_said_and_never_replaced_by_the_cpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ArtifactError, match=r"device is cuda.*extra `gpu`, or .*--device cpu"):
        load_graph(folder, None, replace(ONNX, device="cuda"))
    with pytest.raises(ArtifactError, match=r"device is cuda, but torch finds no GPU"):
        load_graph(folder, None, replace(TORCHSCRIPT, device="cuda"))
