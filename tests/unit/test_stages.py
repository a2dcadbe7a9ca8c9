"""The stages and the pipeline give the trained models' answers, and refuse what does not fit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from cascade.artifact import ArtifactError
from cascade.config import Serving
from cascade.encoding import InvalidInput
from cascade.release import newest_version, read_release
from cascade.schema import SchemaError
from cascade.spec import ENSEMBLE, PRERANK, RANK, RETRIEVE, STAGES, Sizes
from cascade.stages.filters.search import _finite
from cascade.stages.load import load_stage
from cascade.stages.pipeline import Pipeline
from cascade.stages.retrieve import Retrieve
from cascade.training import checkpoint
from export.context import read_catalogue

ONE = Serving(threads=1)
USERS = 24


@pytest.fixture
def repository(criteo: Any, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(criteo.repository, tmp_path / "repository"))


@pytest.fixture(scope="module")
def pipeline(criteo: Any) -> Pipeline:
    found: Pipeline = criteo.pipeline()
    return found


@pytest.fixture(scope="module")
def logits(criteo: Any, pipeline: Pipeline) -> Callable[[str], Any]:
    """Of a trained model, for the first users and every item: [B, N]."""
    items = read_catalogue(criteo.checkpoints)
    users = pipeline.retrieve(criteo.dense[:USERS], criteo.categorical[:USERS])[:2]

    def of(name: str) -> Any:
        scorer = checkpoint.load(criteo.checkpoints / name, criteo.schema)
        with torch.inference_mode():
            states = scorer.item(torch.from_numpy(items.dense), torch.from_numpy(items.ids))
            user = scorer.user(*map(torch.from_numpy, users))
            return scorer.cross(user, states.expand(len(user), -1, -1)).numpy()

    return of


def best_of(values: Any, rows: Any, keep: int) -> Any:
    """Values of the best `keep` of each user's rows, best first: [B, keep]."""
    return np.sort(np.take_along_axis(values, rows, axis=1), axis=1)[:, ::-1][:, :keep]


def test_every_stage_hands_on_what_its_model_likes_best(
    criteo: Any, pipeline: Pipeline, logits: Callable[[str], Any]
) -> None:
    users = criteo.dense[:USERS], criteo.categorical[:USERS]
    user_dense, user_ids, candidates = pipeline.retrieve(*users)
    row_of = (pipeline.item_ids - 5_000_000_000) // 3  # of the checkpoints, by row of the release
    expected = pipeline.schema.side("user")
    assert user_dense.shape == (USERS, sum(f.kind == "dense" for f in expected))
    assert (user_dense >= 0).all()  # log1p, missing as 0

    cosines = logits(RETRIEVE)
    every = np.tile(np.arange(cosines.shape[1]), (USERS, 1))
    found = np.take_along_axis(cosines, row_of[candidates], axis=1)
    assert (np.diff(found) <= 1e-6).all()  # best first
    worst_wanted = best_of(cosines, every, 1000)[:, -1:]
    assert (found >= worst_wanted - 1e-6).mean() >= 0.95  # the recall that it was tuned to

    survivors = pipeline.prerank(user_dense, user_ids, candidates)
    chosen = np.take_along_axis(logits(PRERANK), row_of[survivors], axis=1)
    wanted = best_of(logits(PRERANK), row_of[candidates], 200)
    np.testing.assert_allclose(chosen, wanted, atol=1e-4)

    item_ids, scores = pipeline.rank(user_dense, user_ids, survivors)
    rows = (item_ids - 5_000_000_000) // 3
    chosen = np.take_along_axis(logits(RANK), rows, axis=1)
    np.testing.assert_allclose(chosen, best_of(logits(RANK), row_of[survivors], 10), atol=1e-4)
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-chosen)), atol=1e-6)


def test_a_batch_is_its_users_one_by_one(
    criteo: Any, pipeline: Pipeline, assert_same_answers: Callable[..., None]
) -> None:
    alone = [criteo.ask(pipeline, i, i + 1) for i in range(USERS)]
    ids, scores = (np.concatenate(part) for part in zip(*alone, strict=True))
    assert_same_answers((ids, scores), criteo.ask(pipeline, 0, USERS))


def test_large_numbers_are_answered_in_finite_scores_or_refused(seven: Any) -> None:
    """A number may be as large as float32 holds: a user's vector, or every score, may overflow."""
    pipeline = seven.pipeline()
    dense = np.array(seven.dense[:1])
    for age in (3e38, -3e38, 1e20, 1e10):
        dense[0, 0] = age
        try:
            ids, scores = pipeline(dense, seven.categorical[:1])
        except InvalidInput:
            continue
        assert (ids[0, :7] >= 0).all()
        assert np.isfinite(scores).all()
    with pytest.raises(InvalidInput, match="a vector that is not finite"):
        _finite(np.array([[0, np.nan]], np.float32))


def test_no_user_gets_no_answer(criteo: Any, pipeline: Pipeline) -> None:
    user_dense, user_ids, candidates = pipeline.retrieve(criteo.dense[:0], criteo.categorical[:0])
    assert user_dense.shape == (0, 13)
    assert user_ids.shape == (0, 6)
    assert candidates.shape == (0, 1000)
    item_ids, scores = criteo.ask(pipeline, 0, 0)
    assert item_ids.shape == scores.shape == (0, 10)


@pytest.mark.parametrize("runtime", ["onnx", "torchscript"])
@pytest.mark.parametrize("row", [1500, 2**40])
def test_a_row_beyond_the_catalogue_is_refused(
    criteo: Any, pipeline: Pipeline, runtime: Any, row: int
) -> None:
    user_dense, user_ids, candidates = pipeline.retrieve(criteo.dense[:2], criteo.categorical[:2])
    stage = load_stage(PRERANK, criteo.repository / PRERANK / "1", replace(ONE, runtime=runtime), 1)
    candidates[1, 5] = row
    with pytest.raises(InvalidInput, match=rf"candidates: row {row} came, .* has 1500 items"):
        stage(user_dense, user_ids, candidates)
    candidates[1, 5] = 1499
    (survivors,) = stage(user_dense, user_ids, candidates)
    assert survivors.shape == (2, 200)


def test_a_stage_is_served_from_its_folder_alone(
    criteo: Any, pipeline: Pipeline, tmp_path: Path
) -> None:
    users = criteo.dense[:3], criteo.categorical[:3]
    arrays: tuple[Any, ...] = users
    for name in STAGES:
        folder = tmp_path / name
        shutil.copytree(criteo.repository / name / "1", folder)
        stage = load_stage(name, folder, ONE, 1000)
        outputs = stage(*arrays)
        assert len(outputs) == len(stage.outputs)
        arrays = (*outputs[:2], outputs[2]) if name == RETRIEVE else (*arrays[:2], outputs[0])
    np.testing.assert_array_equal(outputs[0], pipeline(*users)[0])


def test_an_unknown_stage_is_named(criteo: Any) -> None:
    with pytest.raises(ValueError, match="no stage 'rerank'; expected retrieve, prerank or rank"):
        load_stage("rerank", criteo.repository / RANK / "1", ONE, 1000)


@pytest.fixture
def thread_counts() -> Iterator[None]:
    """Puts back the process's thread counts."""
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    yield
    torch.set_num_threads(before[0])
    faiss.omp_set_num_threads(before[1])


def threads_of(criteo: Any, name: str, serving: Serving) -> int:
    """Threads that a stage computes with."""
    stage: Any = load_stage(name, criteo.repository / name / "1", serving, 1000)
    if serving.runtime == "torchscript":
        return torch.get_num_threads()
    graph: Any = stage._search._tower if isinstance(stage, Retrieve) else stage._graph._graph
    return int(graph._session.get_session_options().intra_op_num_threads)


@pytest.mark.usefixtures("thread_counts")
@pytest.mark.parametrize("runtime", ["onnx", "torchscript"])
def test_a_stage_takes_the_threads_that_it_is_given(
    criteo: Any, runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASCADE_THREADS", "3")  # as the launcher shares the cores out
    for name in STAGES:
        assert threads_of(criteo, name, Serving(runtime=runtime)) == 3
        assert threads_of(criteo, name, Serving(runtime=runtime, threads=2)) == 2
    threads_of(criteo, RETRIEVE, Serving(runtime=runtime))
    assert faiss.omp_get_max_threads() == 3
    monkeypatch.delenv("CASCADE_THREADS")
    cores = len(os.sched_getaffinity(0))
    assert threads_of(criteo, RANK, Serving(runtime=runtime)) == cores


def test_an_empty_repository_says_what_to_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ArtifactError, match=r"no exported cascade: run python -m export"):
            Pipeline.load(folder)
    (tmp_path / RETRIEVE / "1").mkdir(parents=True)  # a clone: model.py is there, weights are not
    (tmp_path / RETRIEVE / "1" / "model.py").touch()
    with pytest.raises(ArtifactError, match=r"no exported cascade: run python -m export"):
        Pipeline.load(tmp_path)


def test_the_newest_release_is_the_highest_number(repository: Path) -> None:
    for version in ("9", "10"):
        for name in (*STAGES, ENSEMBLE):
            shutil.copytree(repository / name / "1", repository / name / version)
    (repository / RETRIEVE / "11").mkdir()  # not exported
    assert newest_version(repository) == 10
    path = repository / ENSEMBLE / "9" / "release.json"
    release = json.loads(path.read_text())
    path.write_text(json.dumps({**release, "sizes": vars(Sizes(50, 20, 10))}))
    assert read_release(repository, 9)["sizes"] == vars(Sizes(50, 20, 10))
    assert read_release(repository, 10)["sizes"] == vars(Sizes())


def test_a_release_that_is_not_there_is_named(repository: Path) -> None:
    with pytest.raises(ArtifactError, match=r"recommend/7/release.json is missing: export again"):
        Pipeline.load(repository, version=7)


def test_stages_of_two_schemas_do_not_mix(seven: Any, repository: Path) -> None:
    shutil.rmtree(repository / PRERANK / "1")
    shutil.copytree(seven.repository / PRERANK / "1", repository / PRERANK / "1")
    with pytest.raises(ArtifactError, match=f"prerank was exported for .*{seven.schema.hash}"):
        Pipeline.load(repository, serving=ONE)


def test_a_retriever_of_another_schema_is_refused(seven: Any, repository: Path) -> None:
    folder = repository / RETRIEVE / "1"
    shutil.copy(seven.repository / RETRIEVE / "1" / "stage.json", folder)
    with pytest.raises(SchemaError, match="was made for schema"):
        load_stage(RETRIEVE, folder, ONE, 1000)


def test_an_index_of_another_schema_is_refused(seven: Any, repository: Path) -> None:
    folder = repository / RETRIEVE / "1"
    for file in ("index.faiss", "index.json"):
        shutil.copy(seven.repository / RETRIEVE / "1" / file, folder)
    with pytest.raises(ArtifactError, match="was made for schema"):
        load_stage(RETRIEVE, folder, ONE, 1000)


def test_a_missing_vocabulary_is_named(repository: Path) -> None:
    folder = repository / RETRIEVE / "1"
    (folder / "vocabulary" / "C1.txt").unlink()
    with pytest.raises(SchemaError, match=r"feature C1: its vocabulary .* is missing"):
        load_stage(RETRIEVE, folder, ONE, 1000)


def test_the_serving_process_needs_no_item_vocabulary(criteo: Any, repository: Path) -> None:
    folder = repository / RETRIEVE / "1"
    for number in range(7, 27):
        (folder / "vocabulary" / f"C{number}.txt").unlink()
    stage = load_stage(RETRIEVE, folder, ONE, 1000)
    assert isinstance(stage, Retrieve)
    assert stage(criteo.dense[:2], criteo.categorical[:2])[2].shape == (2, 1000)
