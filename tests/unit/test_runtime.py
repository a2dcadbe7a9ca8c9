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

from cascade.artifact import ArtifactError, Description, Mapped
from cascade.config import PARAMETER, RUNTIMES, ProcessConfig, Product, Serving, of_release
from cascade.runtime import onnx
from cascade.runtime.buckets import BUCKETS, bucket, in_buckets
from cascade.runtime.devices import Runner
from cascade.runtime.load import load_graph
from cascade.schema import SchemaError
from cascade.spec import RANK, ConfigError

ONNX = Serving(threads=1)
TORCHSCRIPT = Serving(threads=1, runtime="torchscript")
AOTI = Serving(threads=1, runtime="aoti")
EARLIER = {
    "stages": "lookup,retrieve",
    "candidates": "90",
    "layout_hash": "1234",
    "runtime": "torchscript",
    "device": "cpu",
    "threads": "2",
    "users_per_run": "0",
    "max_queue_size": "7",
    "cuda_graphs": "1",
    "half": "0",
    "deny_list": "",
    "store": "lmdb:users",
}


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
    assert sorted(ids[:, 0].tolist())[:3] == [5_000_000_000, 5_000_000_003, 5_000_000_006]
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
        r"stage.json is damaged: KeyError\('outputs'\)",
    ),
    "a description of another format": (
        lambda f: described(f, lambda d: d.update(format=99)),
        r"stage.json has format 99; this version reads 1: export again",
    ),
    "no item state": (
        lambda f: (f / "item_state.bin").unlink(),
        r"item_state.bin is missing.*export again, or restore",
    ),
    "half an item state": (
        lambda f: (f / "item_state.bin").write_bytes((f / "item_state.bin").read_bytes()[:1001]),
        r"item_state.bin has 1001 bytes; \d+ bytes .*, \(1500, \d+\) of float32: export again",
    ),
    "too many item ids": (
        lambda f: (f / "catalogue_ids.bin").write_bytes(bytes(12008)),
        r"catalogue_ids.bin has 12008 bytes; 12000 bytes were saved, \(1500, 1\) of int64",
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


@pytest.mark.parametrize("serving", [ONNX, TORCHSCRIPT], ids=["onnx", "torchscript"])
def test_padded_batches_get_the_answers_of_plain_ones(
    criteo: Any, folder: Path, serving: Serving, assert_same_answers: Callable[..., None]
) -> None:
    """Sizes of a bucket, between two, and beyond the last; each twice, for buffers are reused."""
    plain = load_graph(folder, None, serving)[1]
    padded = load_graph(folder, None, replace(serving, cuda_graphs=True))[1]
    users = criteo.pipeline().retrieve(criteo.dense, criteo.categorical)
    kept = []
    for turn in range(2):
        for count in (1, 3, 8, 70, 150):
            part = [values[turn : turn + count] for values in users]
            rows = part[2][:, : 200 + turn]  # another width is another shape
            kept.append((padded(*part[:2], rows), plain(*part[:2], rows)))
    for got, expected in kept:  # afterwards: no answer may live in a buffer of the next run
        assert len(got[0]) == len(expected[0])
        assert_same_answers(tuple(got), tuple(expected))


def test_memory_bound_per_shape_is_not_kept_for_ever(criteo: Any, folder: Path) -> None:
    counting: Any = load_graph(folder, None, ONNX)[1]
    graph = counting._graph
    user_dense, user_ids, rows = inputs(criteo)
    expected = graph(user_dense, user_ids, rows)
    for width in range(200, 200 - BUCKETS[-1] - 2, -1):
        named = {"user_dense": user_dense, "user_ids": user_ids, "survivors": rows[:, :width]}
        got = graph._run_bound([named[name] for name in graph._inputs])
        if width == 200:
            np.testing.assert_array_equal(got[0], expected[0])
    assert len(graph._bound) == BUCKETS[-1]


def test_a_batch_takes_the_next_bucket() -> None:
    assert [bucket(users) for users in (1, 2, 3, 33, 64)] == [1, 2, 4, 64, 64]
    for users in (0, 65):
        with pytest.raises(ValueError, match=f"{users} users came in one run; expected 1 to 64"):
            bucket(users)


def test_a_batch_of_any_size_is_cut_and_padded() -> None:
    sizes = []

    def run(inputs: list[Any]) -> list[Any]:
        sizes.append(len(inputs[0]))
        assert {len(values) for values in inputs} == {sizes[-1]}
        return [inputs[0] + inputs[1], inputs[1]]

    a, b = np.arange(135)[:, None] * np.ones((1, 3)), np.arange(135)[:, None]
    total, same = in_buckets(run, [a, b])
    assert sizes == [64, 64, 8]
    np.testing.assert_array_equal(total, a + b)
    np.testing.assert_array_equal(same, b)


def test_a_function_of_one_tensor_or_of_several() -> None:
    device = torch.device("cpu")
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    for recorded in (False, True):
        (doubled,) = Runner(lambda t: 2 * t, device, recorded)(x[:, ::-1])
        np.testing.assert_array_equal(doubled, 2 * x[:, ::-1])
        first, second = Runner(lambda t: [t + 1, t.sum(1)], device, recorded)(x)
        np.testing.assert_array_equal(first, x + 1)
        np.testing.assert_array_equal(second, x.sum(1))


def test_the_knobs_of_a_device_reach_the_process() -> None:
    for runtime in RUNTIMES:
        serving = Serving(runtime=runtime, device="cuda", cuda_graphs=True, half=True)
        process = ProcessConfig(("rank",), 90, "1234", serving)
        assert ProcessConfig.from_parameters({PARAMETER: process.to_json()}) == process
    with pytest.raises(ConfigError, match=r"runtime is 'onyx'; expected one of .*tensorrt"):
        ProcessConfig.from_parameters({**EARLIER, "runtime": "onyx"})


def test_the_settings_of_an_earlier_release_are_read() -> None:
    """One string parameter each in config.pbtxt, and all of them in `serving` of release.json."""
    assert ProcessConfig.from_parameters(EARLIER) == ProcessConfig(
        ("lookup", "retrieve"),
        90,
        "1234",
        Serving(runtime="torchscript", threads=2, max_queue_size=7, cuda_graphs=True),
        Product(deny_list="", store="lmdb:users"),
    )
    flat = {"topology": "paired", "threads": 2, "cuda_graphs": True, "pool": 30, "store": "lmdb:a"}
    assert of_release({"serving": flat}) == (
        Serving(topology="paired", threads=2, cuda_graphs=True),
        Product(pool=30, store="lmdb:a"),
    )
    with pytest.raises(ConfigError, match="colour"):
        of_release({"serving": {"colour": "red"}})
    with pytest.raises(ConfigError, match="does not say how it is served"):
        of_release({})


class GpuBuild:
    """As much of a GPU build of ONNX Runtime as is asked before a session is opened."""

    __version__ = "1.31"

    def get_available_providers(self) -> list[str]:
        return [onnx.TENSORRT, onnx.CUDA, onnx.CPU]


def test_the_providers_follow_device_and_runtime(folder: Path) -> None:
    description = Description.load(folder)

    def chosen(**options: Any) -> Any:
        serving = Serving(device="cuda", device_id=1, **options)
        return onnx.choose_providers(GpuBuild(), folder, description, serving)

    assert onnx.choose_providers(GpuBuild(), folder, description, ONNX) == [onnx.CPU]
    (name, options), last = chosen()
    assert (name, last) == (onnx.CUDA, onnx.CPU)
    assert options == {"device_id": 1, "enable_cuda_graph": "0"}
    assert chosen(cuda_graphs=True)[0][1]["enable_cuda_graph"] == "1"
    tensorrt, cuda, last = chosen(runtime="tensorrt", half=True, cuda_graphs=True)
    assert (tensorrt[0], cuda[0], last) == (onnx.TENSORRT, onnx.CUDA, onnx.CPU)
    assert cuda[1]["enable_cuda_graph"] == "0"  # TensorRT records its own
    assert tensorrt[1]["trt_fp16_enable"] == tensorrt[1]["trt_cuda_graph_enable"] == "1"
    assert Path(tensorrt[1]["trt_engine_cache_path"]).parent == folder
    with pytest.raises(ArtifactError, match="tensorrt runs on a GPU only"):
        load_graph(folder, None, replace(ONNX, runtime="tensorrt"))


def test_tensorrt_learns_the_shapes_that_are_served(folder: Path) -> None:
    widths = {"user_dense": 13, "user_ids": 6, "survivors": 200}
    described(folder, lambda d: d.update(widths=widths))
    description = Description.load(folder)
    description.save(folder)
    assert Description.load(folder).widths == widths
    options = onnx.tensorrt_options(folder, description, Serving(device="cuda"))
    for name, users in (("min", 1), ("opt", 16), ("max", 64)):
        shapes = f"user_dense:{users}x13,user_ids:{users}x6,survivors:{users}x200"
        assert options[f"trt_profile_{name}_shapes"] == shapes
    assert options["trt_fp16_enable"] == "0"


def test_a_missing_package_is_named(folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"model.pt2 is missing: .* --runtime aoti"):
        load_graph(folder, None, AOTI)


def test_no_gpu_is_said_and_never_replaced_by_the_cpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ArtifactError, match=r"device is cuda.*extra `gpu`, or .*--device cpu"):
        load_graph(folder, None, replace(ONNX, device="cuda"))
    with pytest.raises(ArtifactError, match=r"device is cuda, but torch finds no GPU"):
        load_graph(folder, None, replace(TORCHSCRIPT, device="cuda"))
    with pytest.raises(ArtifactError, match=r"only \['CPUExecutionProvider'\], not Tensorrt"):
        load_graph(folder, None, replace(ONNX, device="cuda", runtime="tensorrt"))
