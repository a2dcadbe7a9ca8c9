"""`python -m export`: what lies in a repository, releases side by side, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cascade import pbtxt
from cascade.artifact import ArtifactError
from cascade.config import Serving
from cascade.models import build, preset
from cascade.models.embeddings import Embeddings
from cascade.schema import SchemaError
from cascade.spec import ENSEMBLE, PRERANK, RANK, RETRIEVE, STAGES, Sizes
from cascade.stages.pipeline import Pipeline
from cascade.training import checkpoint
from cascade.training.checkpoint import CheckpointError
from export import __main__ as command
from export.artifacts import filters, parity
from export.artifacts.stage_files import write_item_ids, write_item_state
from export.context import Build, BuildError, read_catalogue
from export.foreign.own import Own

GRAPHS = {"model.onnx", "model.pt", "stage.json", "model.py"}


def files(folder: Path) -> dict[str, str]:
    """Every file of an export below a folder, with its sha256."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "__pycache__"  # a server's
    }


def run(*arguments: object) -> None:
    """The command line, in this process."""
    command.main([*map(str, arguments)])


@pytest.fixture
def checkpoints(criteo: Any, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(criteo.checkpoints, tmp_path / "checkpoints"))


def test_a_version_folder_holds_all_that_its_stage_needs(criteo: Any) -> None:
    found = {stage: set(files(criteo.repository / stage / "1")) for stage in STAGES}
    words = {f"vocabulary/{f.name}.txt" for f in criteo.schema.features if f.kind != "dense"}
    index = {"index.faiss", "index.json"}
    filtering = {"filters.json", *(file for file, _ in filters.FILES.values())}
    assert found[RETRIEVE] == {*GRAPHS, "schema.json", *words, *index, *filtering}
    scoring = {*GRAPHS, "items.onnx", "item_state.bin", "torch_state.bin"}
    assert found[PRERANK] == scoring
    assert found[RANK] == {*scoring, "catalogue_ids.bin"}
    committed = Path(pbtxt.__file__).parents[1] / "model_repository"
    for stage in STAGES:
        wanted = (committed / stage / "1" / "model.py").read_text()
        assert (criteo.repository / stage / "1" / "model.py").read_text() == wanted
    written = pbtxt.configs(criteo.schema, criteo.sizes, criteo.serving, version=1)
    for name, message in written.items():
        assert pbtxt.read(criteo.repository / name / "config.pbtxt") == message


def test_the_release_says_what_it_is(criteo: Any) -> None:
    release = json.loads((criteo.repository / ENSEMBLE / "1" / "release.json").read_text())
    assert release["version"] == 1
    assert release["schema_hash"] == criteo.schema.hash
    assert release["sizes"] == vars(Sizes())
    assert release["items"] == 1500
    assert release["stages"][RETRIEVE]["index"]["kind"] == "ivf"
    assert release["stages"][RETRIEVE]["index"]["recall"] >= 0.95
    state = (criteo.repository / RANK / "1" / "item_state.bin").stat().st_size
    assert release["stages"][RANK]["bytes_per_item"] == pytest.approx(state / 1500, abs=0.1)
    parities = [parity.Parity(**values) for values in release["parity"]]
    assert [(p.stage, p.runtime, p.batch) for p in parities] == [
        (stage, runtime, batch)
        for stage in STAGES
        for runtime in ("onnx", "torchscript")
        for batch in (1, 3, criteo.serving.max_batch_size)
    ]
    assert all(p.holds and p.overlap == 1 for p in parities)
    assert release["parity_max_abs"] == max(p.max_abs for p in parities) <= 1e-4


@pytest.fixture
def with_logistic(criteo: Any, checkpoints: Path) -> Path:
    """The same checkpoints and a second preranker."""
    sizes = preset("logistic", "default")
    torch.manual_seed(5)
    scorer = build("logistic", sizes, criteo.schema)
    for module in scorer.modules():
        if isinstance(module, Embeddings):
            torch.nn.init.normal_(module.table.weight)
    description = {"model": "logistic", "config": sizes, "schema_hash": criteo.schema.hash}
    checkpoint.save(checkpoints / "prerank_logistic", scorer, {**description, "metrics": {}})
    return checkpoints


def test_a_second_release_beside_the_first(
    criteo: Any,
    with_logistic: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    assert_same_answers: Callable[..., None],
) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(criteo.repository, repository)
    before = {name: files(repository / name / "1") for name in (*STAGES, ENSEMBLE)}
    where = ("--checkpoints", with_logistic, "--repository", repository, "--version", 2)
    which = ("--preranker", "prerank_logistic", "--index", "flat", "--runtime", "torchscript")
    how = ("--instances", 2, "--max-queue-size", 32, "--max-batch-size", 16, "--untuned")
    sizes = ("--candidates", 500, "--survivors", 100, "--results", 5)
    run(*where, *which, *how, *sizes)
    printed = capsys.readouterr().out
    assert "index flat {}: recall@500 1.0000" in printed
    assert "exported release 2 of 1,500 items" in printed
    words = [line.split() for line in printed.partition("verdict:")[0].splitlines()]
    assert len([line for line in words if line[0] in STAGES]) == 18
    assert {name: files(repository / name / "1") for name in (*STAGES, ENSEMBLE)} == before
    ensemble = pbtxt.read(repository / ENSEMBLE / "config.pbtxt")
    assert [s.model_version for s in ensemble.ensemble_scheduling.step] == [2, 2, 2]
    member = pbtxt.read(repository / PRERANK / "config.pbtxt")
    assert [group.count for group in member.instance_group] == [1, 1]
    assert list(member.dynamic_batching.preferred_batch_size) == [8]
    assert pbtxt.settings(member).serving.max_queue_size == 32
    assert member.max_batch_size == 16
    assert pbtxt.settings(member).serving.runtime == "torchscript"
    release = json.loads((repository / ENSEMBLE / "2" / "release.json").read_text())
    assert release["stages"][PRERANK]["checkpoint"] == "prerank_logistic"
    assert release["sizes"] == {"candidates": 500, "survivors": 100, "results": 5}

    second = Pipeline.load(repository, serving=Serving(runtime="torchscript", threads=1))
    onnx = Pipeline.load(repository, serving=Serving(threads=1))
    users = criteo.dense[:50], criteo.categorical[:50]
    assert_same_answers(onnx(*users), second(*users))
    assert second(*users)[0].shape == (50, 5)
    first = Pipeline.load(repository, version=1, serving=Serving(threads=1))
    assert_same_answers(first(*users), criteo.pipeline()(*users))
    kept = [
        p.prerank(*p.retrieve(*users)[:2], p.retrieve(*users)[2])[0, :100] for p in (first, second)
    ]
    assert set(kept[0]) != set(kept[1])  # another preranker, another choice


def test_graphs_that_differ_from_the_model_make_no_release(
    seven: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(seven.repository, repository)
    real = Own.eager

    def tampered(own: Own, items: Any) -> Any:
        module = real(own, items)
        with torch.no_grad():
            for weight in module.scorer.top.parameters():
                weight.mul_(1.1)
        return module

    monkeypatch.setattr(Own, "eager", tampered)
    where = ("--checkpoints", seven.checkpoints, "--repository", repository)
    with pytest.raises(parity.ParityError, match="differ from the trained model"):
        run(*where, "--untuned")
    assert not (repository / ENSEMBLE / "1" / "release.json").exists()
    with pytest.raises(ArtifactError, match=r"holds no exported cascade: run python -m export"):
        Pipeline.load(repository)


def test_a_checkpoint_of_another_schema_is_refused(
    criteo: Any,
    checkpoints: Path,
    tmp_path: Path,
) -> None:
    path = checkpoints / RETRIEVE / "checkpoint.json"
    path.write_text(path.read_text().replace(criteo.schema.hash, "0123456789abcdef"))
    with pytest.raises(SchemaError, match=r"retrieve was made for schema 0123456789abcdef"):
        run("--checkpoints", checkpoints, "--repository", tmp_path / "repository")


def test_vocabularies_that_do_not_belong_to_the_schema_are_refused(
    checkpoints: Path,
    tmp_path: Path,
) -> None:
    (checkpoints / "vocabulary" / "C3.txt").write_bytes(b"other\nwords")
    with pytest.raises(SchemaError, match=r"feature C3: the vocabulary \(2 values\) is not"):
        run("--checkpoints", checkpoints, "--repository", tmp_path / "repository")


def test_a_model_that_is_not_there_is_named(
    checkpoints: Path,
    tmp_path: Path,
) -> None:
    shutil.rmtree(checkpoints / RETRIEVE)
    with pytest.raises(CheckpointError, match=r"retrieve holds no finished model"):
        run("--checkpoints", checkpoints, "--repository", tmp_path / "repository")


@pytest.mark.parametrize("arguments", [("--ranker-onnx", "ranker.onnx"), ("--inputs", "map.json")])
def test_a_foreign_ranker_needs_its_inputs(
    checkpoints: Path,
    tmp_path: Path,
    arguments: tuple[str, str],
) -> None:
    with pytest.raises(BuildError, match="--ranker-onnx and --inputs go together"):
        run("--checkpoints", checkpoints, "--repository", tmp_path, *arguments)


def test_a_compiler_that_cannot_read_a_path_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "my tmp"))
    for options in ({"also": ("aoti",)}, {"serving": Serving(runtime="aoti")}):
        with pytest.raises(BuildError, match=r"aoti cannot be compiled with .*my tmp.*set TMPDIR"):
            Build(tmp_path, tmp_path, **options)  # type: ignore[arg-type]
    Build(tmp_path, tmp_path)


def test_an_export_over_a_served_one_leaves_what_is_mapped(criteo: Any, tmp_path: Path) -> None:
    items = read_catalogue(criteo.checkpoints)
    scorer = checkpoint.load(criteo.checkpoints / PRERANK, criteo.schema)
    served = [write_item_state(scorer, items, tmp_path, PRERANK), write_item_ids(items, tmp_path)]
    mappings = [mapped.open(tmp_path) for mapped in served]
    values = [np.array(mapping) for mapping in mappings]
    with torch.no_grad():
        scorer.get_parameter("item_ids.table.weight").mul_(2)
    fewer = type(items)(items.dense[:3], items.ids[:3], items.item_ids[:3] + 1)
    new = write_item_state(scorer, fewer, tmp_path, PRERANK)
    write_item_ids(fewer, tmp_path)
    for mapping, value in zip(mappings, values, strict=True):
        np.testing.assert_array_equal(mapping, value)
    assert not np.array_equal(new.open(tmp_path), values[0][:3])
