"""A trained model on disk: read back as it was, or refused with the name of the file."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from cascade.models import MODELS, build, preset
from cascade.models.example import SHOP
from cascade.models.scorer import Scorer
from cascade.schema import Feature, Schema, SchemaError
from cascade.training import checkpoint
from cascade.training.checkpoint import CheckpointError
from tests.schemas import draw_rows

SCHEMA = Schema(
    "test",
    (
        Feature("visits", "user", "dense", "log1p"),
        Feature("city", "user", "categorical", "vocabulary", cardinality=5, digest="c"),
        Feature("genres", "item", "bag", "vocabulary", length=3, cardinality=7, digest="g"),
    ),
)
MADE_FROM = {"model": "dlrm", "lr": 0.1}


def saved(folder: Path, model: str = "dlrm", size: str = "tiny", schema: Schema = SCHEMA) -> Scorer:
    torch.manual_seed(1)
    scorer = build(model, preset(model, size), schema).eval()
    description = {"model": model, "config": preset(model, size), "schema_hash": schema.hash}
    checkpoint.save(folder, scorer, {**description, "metrics": {"auc": np.float64(0.75)}})
    return scorer


def logits(scorer: Scorer) -> torch.Tensor:
    users, items = (draw_rows(scorer.schema, side, 9, 0) for side in ("user", "item"))
    return scorer(*users.both, *items.both)


@pytest.mark.parametrize(
    ("model", "size"), [(model, size) for model in MODELS for size in MODELS[model].presets]
)
def test_roundtrip(tmp_path, model, size):
    scorer = saved(tmp_path / "deep" / "folder", model, size, SHOP)
    torch.manual_seed(2)
    loaded = checkpoint.load(tmp_path / "deep" / "folder", SHOP)
    assert torch.equal(logits(loaded), logits(scorer))
    assert not loaded.training
    names = sorted(path.name for path in (tmp_path / "deep" / "folder").iterdir())
    assert names == ["checkpoint.json", "weights.safetensors"]


def test_a_full_disk_leaves_the_model_that_is_there(tmp_path, monkeypatch):
    saved(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors cannot be written: .*space"):
        saved(tmp_path, "logistic", next(iter(MODELS["logistic"].presets)))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def full(tensors, path, metadata):
    path.write_bytes(b"half of it")
    raise SafetensorError("Error while serializing: I/O error: No space left on device")


def test_description_says_what_the_weights_are(tmp_path):
    saved(tmp_path)
    found = checkpoint.describe(tmp_path)
    assert (found["format"], found["model"], found["schema_hash"]) == (1, "dlrm", SCHEMA.hash)
    sizes = {"width": 4, "bottom": [8], "top": [8], "crosses": 0, "rank": 0}
    assert found["config"] == sizes
    assert found["metrics"] == {"auc": 0.75}
    assert found["versions"]["torch"] == torch.__version__
    assert set(found["versions"]) == {"torch", "numpy", "safetensors", "python"}


def test_digest_follows_the_weights(tmp_path):
    scorer = saved(tmp_path / "a")
    saved(tmp_path / "b")
    assert checkpoint.digest(tmp_path / "a") == checkpoint.digest(tmp_path / "b")
    with torch.no_grad():
        next(scorer.parameters())[0] += 1
    checkpoint.save(tmp_path / "b", scorer, checkpoint.describe(tmp_path / "b"))
    assert checkpoint.digest(tmp_path / "a") != checkpoint.digest(tmp_path / "b")


def test_another_schema_is_refused(tmp_path):
    saved(tmp_path)
    other = SCHEMA.fitted({"city": (5, "c"), "genres": (7, "another vocabulary")})
    with pytest.raises(SchemaError, match=f"{tmp_path} was made for schema {SCHEMA.hash}"):
        checkpoint.load(tmp_path, other)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def change(path: Path, **values: object) -> None:
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


DAMAGE = {
    "no description": ("checkpoint.json", Path.unlink, "checkpoint.json is missing"),
    "half a description": ("checkpoint.json", shorten, "is damaged"),
    "empty description": ("checkpoint.json", lambda p: p.write_text(""), "is damaged"),
    "no text": ("checkpoint.json", lambda p: p.write_bytes(b"\xff\x00\xfe"), "is damaged"),
    "a list": ("checkpoint.json", lambda p: p.write_text("[]"), "is damaged: it holds a list"),
    "format of tomorrow": ("checkpoint.json", lambda p: change(p, format=2), "has format 2; this"),
    "no format": ("checkpoint.json", lambda p: change(p, format=None), "has format None; this"),
    "no config": (
        "checkpoint.json",
        lambda p: change(p, config=None, model=None),
        "is damaged: it does not say model and config",
    ),
    "unknown model": ("checkpoint.json", lambda p: change(p, model="dln"), "there is no model"),
    "unknown size": (
        "checkpoint.json",
        lambda p: change(p, config={"depth": 3}),
        "describes no model of this version.*depth",
    ),
    "sizes of no kind": ("checkpoint.json", lambda p: change(p, config=[1]), "describes no model"),
    "other sizes": (
        "checkpoint.json",
        lambda p: change(p, config={"width": 4, "bottom": [9], "top": [8]}),
        "weights.safetensors cannot be loaded.*size mismatch",
    ),
    "no weights": ("weights.safetensors", Path.unlink, "weights.safetensors cannot be loaded"),
    "half the weights": ("weights.safetensors", shorten, "weights.safetensors cannot be loaded"),
    "empty weights": (
        "weights.safetensors",
        lambda p: p.write_bytes(b""),
        "weights.safetensors cannot be loaded",
    ),
    "pickled weights": (
        "weights.safetensors",
        lambda p: torch.save({"a": torch.zeros(1)}, p),
        "weights.safetensors cannot be loaded",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_with_its_file(tmp_path, name):
    file, damage, message = DAMAGE[name]
    saved(tmp_path)
    damage(tmp_path / file)
    with pytest.raises(CheckpointError, match=f"(?s){message}") as caught:
        checkpoint.load(tmp_path, SCHEMA)
    assert str(tmp_path) in str(caught.value)
    assert file in str(caught.value) or "weights.safetensors" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("model", MODELS)
def test_a_weight_that_is_not_finite_is_named_with_its_tensor_and_row(tmp_path, model, value):
    scorer = saved(tmp_path, model, next(iter(MODELS[model].presets)), SHOP)
    state = scorer.state_dict()
    for name, tensor in state.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        damaged = {key: kept.clone() for key, kept in state.items()}
        damaged[name].view(-1)[-1] = value  # of a table, in a row that may never be looked up
        save_file(damaged, tmp_path / "weights.safetensors")
        row = max(0, len(tensor) - 1) if tensor.ndim else 0
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load(tmp_path, SHOP)
        assert f"weights.safetensors: row {row} of {name} [" in str(caught.value)


@pytest.fixture
def no_pickle(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a pickle was about to be loaded")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)


@pytest.mark.usefixtures("no_pickle")
def test_nothing_is_unpickled(tmp_path):
    scorer = saved(tmp_path)
    assert torch.equal(logits(checkpoint.load(tmp_path, SCHEMA)), logits(scorer))
    optimizer = torch.optim.Adam(scorer.parameters())
    checkpoint.save_resume(tmp_path, scorer, [optimizer], {"step": 1}, {}, MADE_FROM)
    assert checkpoint.load_resume(tmp_path, scorer, [optimizer], MADE_FROM) == ({"step": 1}, {})


@pytest.mark.parametrize("kind", ["Adam", "SparseAdam", "Adagrad", "SGD"])
def test_state_to_resume_from_is_exact(tmp_path, kind):
    """Numbers come back as numbers, tensors as tensors; the next steps are equal to the bit."""

    def made(seed):
        torch.manual_seed(seed)
        embedding = torch.nn.Embedding(5, 3, sparse=kind != "Adam")
        return embedding, getattr(torch.optim, kind)(embedding.parameters(), lr=0.1)

    @torch.sparse.check_sparse_tensor_invariants(enable=False)
    def step(embedding, optimizer, row):
        optimizer.zero_grad()
        embedding(torch.tensor([row, 3])).square().sum().backward()
        optimizer.step()

    first, optimizer = made(0)
    for row in (0, 1, 0):
        step(first, optimizer, row)
    best = {"weight": torch.full((5, 3), 7.0)}
    checkpoint.save_resume(tmp_path, first, [optimizer], {"step": 3, "x": 0.1}, best, MADE_FROM)
    second, other = made(1)
    found = checkpoint.load_resume(tmp_path, second, [other], MADE_FROM)
    assert found is not None
    assert found[0] == {"step": 3, "x": 0.1}
    assert torch.equal(found[1]["weight"], best["weight"])
    for row in (0, 4):
        step(first, optimizer, row)
        step(second, other, row)
        assert torch.equal(second.weight, first.weight)
    before, after = optimizer.state_dict()["state"], other.state_dict()["state"]
    for index, values in before.items():
        assert {k: type(v) for k, v in values.items()} == {
            k: type(v) for k, v in after[index].items()
        }


def test_nothing_to_resume_from(tmp_path):
    module = torch.nn.Linear(2, 1)
    assert checkpoint.load_resume(tmp_path, module, [], MADE_FROM) is None
    (tmp_path / "resume.tmp").write_bytes(b"a kill came while this was written")
    assert checkpoint.load_resume(tmp_path, module, [], MADE_FROM) is None
    checkpoint.save_resume(tmp_path, module, [], {}, {}, MADE_FROM)
    checkpoint.finish(tmp_path)
    checkpoint.finish(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_state_of_another_training_is_refused(tmp_path):
    module = torch.nn.Linear(2, 1)
    checkpoint.save_resume(tmp_path, module, [], {}, {}, {**MADE_FROM, "sizes": (1, 2)})
    assert checkpoint.load_resume(tmp_path, module, [], {**MADE_FROM, "sizes": [1, 2]})
    before = module.weight.clone()
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_resume(tmp_path, module, [], {"model": "dlrm", "lr": 0.2, "seed": 1})
    assert str(caught.value) == (
        f"{tmp_path / 'resume.safetensors'} is an unfinished training of something else: "
        "lr was 0.1 and is now 0.2; seed was None and is now 1; sizes was [1, 2] and is now None. "
        "Give the same options and data to go on with it, or --restart."
    )
    assert torch.equal(module.weight, before)


def test_damaged_state_is_named(tmp_path):
    module = torch.nn.Linear(2, 1)
    checkpoint.save_resume(tmp_path, module, [], {}, {}, MADE_FROM)
    shorten(tmp_path / "resume.safetensors")
    with pytest.raises(CheckpointError, match=r"resume\.safetensors is damaged.*--restart"):
        checkpoint.load_resume(tmp_path, module, [], MADE_FROM)


def test_a_description_that_lacks_something_is_refused_before_anything_is_written(tmp_path):
    scorer = build("dlrm", preset("dlrm", "tiny"), SCHEMA)
    with pytest.raises(CheckpointError, match="does not say config and schema_hash"):
        checkpoint.save(tmp_path / "a", scorer, {"model": "dlrm"})
    assert not (tmp_path / "a").exists()
