"""Releases of an earlier version stay usable: loaded, served, published over, rolled back to.

`make_old_release.py` made them. Their model.py imports `cascade.serving`, each setting is a
parameter of its own in their config.pbtxt, and all settings stand in `serving` of release.json.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascade import pbtxt
from cascade.artifact import ArtifactError
from cascade.client import Recommender
from cascade.config import Serving
from cascade.release import RELEASE_FILE, read_release
from cascade.server.launcher import Server
from cascade.spec import RANK
from cascade.stages.pipeline import Pipeline
from cascade.stages.scoring import Score
from export.releases.canary import Canary
from export.releases.control import Control
from export.releases.manifest import verify
from export.releases.publishing import Publisher
from export.releases.repository import Repository
from export.releases.rewire import from_export, rewire, serving_of
from tests.cascades import BAGS, Cascade

Ask = Callable[[Canary], tuple[Any, Any]]  # -> item_ids, scores

OLD = Path(__file__).with_name("old_release")
TOPOLOGIES = ("ensemble", "fused")
SETTINGS = Serving(max_batch_size=8)


def differences(repository: Path, number: int, ask: Ask) -> list[str]:
    """How an answer differs from what the release recorded."""
    recorded = Canary.from_dict(read_release(repository, number)["canary"])
    return [*recorded.differences(*ask(recorded))]


def in_process(repository: Path) -> Ask:
    pipeline = Pipeline.load(repository, serving=Serving(threads=1))
    return lambda canary: pipeline(canary.dense, canary.categorical)


def over_grpc(url: str) -> Ask:
    def ask(canary: Canary) -> tuple[Any, Any]:
        users = {"dense": canary.dense, "categorical": canary.categorical}
        answer = Control(url).ask("recommend", None, users)
        return answer["item_ids"], answer["scores"]

    return ask


def test_scores_of_an_old_graph_leave_as_finite_numbers() -> None:
    """Such a graph counts nothing, and answers with what it computed."""
    stage = Score(OLD / "ensemble" / RANK / "1", Serving(threads=1))
    ids = np.array([[5, 6, 7, -1], [8, 9, -1, -1]])
    scores = np.array([[np.nan, 0.9, 0.1, 0], [0.5, np.inf, 0, 0]], np.float32)
    found, finite = stage._finite((ids, scores))
    assert found.tolist() == [[6, 7, 5, -1], [8, 9, -1, -1]]
    np.testing.assert_array_equal(finite, np.array([[0.9, 0.1, 0, 0], [0.5, 0, 0, 0]], np.float32))
    assert stage.counts() == {"kept": 0, "not_finite": 2}


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_an_old_release_gives_the_answers_recorded_with_it(topology: str) -> None:
    verify(OLD / topology, 1)
    assert serving_of(OLD / topology).topology == topology
    assert not differences(OLD / topology, 1, in_process(OLD / topology))


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_an_old_repository_is_served_as_it_is(topology: str, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(OLD / topology, repository)
    with Server(repository) as server, Recommender(server.url, deadline_s=30) as client:
        assert not differences(repository, 1, over_grpc(server.url))
        assert client.recommend({}).unknown_values is None  # it does not say
        best = client.recommend({}).item_ids[:3].tolist()
        assert not {*best} & {*client.recommend({}, exclude=best).item_ids.tolist()}


def test_an_old_release_is_published_over_and_rolled_back_to(
    make_cascade: Callable[..., Cascade], tmp_path: Path
) -> None:
    new = make_cascade(schema=BAGS, items=60, users=16, serving=SETTINGS)
    repository = Repository(tmp_path / "live")
    Publisher(repository, say=lambda line: None).publish(from_export(OLD / "ensemble"))
    model = (repository.root / "rank" / "1" / "model.py").read_text()
    assert "from cascade.serving.triton import TritonPythonModel" in model
    with Server(repository.root) as server:
        control = Control(server.url, server.control_headers)
        publisher = Publisher(repository, control, say=lambda line: None)
        assert not differences(repository.root, 1, over_grpc(server.url))
        assert publisher.publish(from_export(new.repository)).number == 2
        assert not differences(repository.root, 2, over_grpc(server.url))
        assert publisher.roll_back().number == 1
        assert not differences(repository.root, 1, over_grpc(server.url))
        assert control.release() == repository.live == 1
        with Recommender(server.url, deadline_s=30) as client:  # by the models of a new release
            best = client.recommend({}).item_ids[:3].tolist()
            filtered = client.recommend({}, exclude=best)
            assert filtered.release == 1
            assert not {*best} & {*filtered.item_ids.tolist()}


def test_a_fused_one_says_how_it_is_published_over(tmp_path: Path, seven: Cascade) -> None:
    """There, `recommend` is the process itself."""
    live = tmp_path / "live"
    shutil.copytree(OLD / "fused", live)
    publisher = Publisher(Repository(live), say=lambda line: None)
    rewired = f"python -m export rewire --repository {live} --topology fused --out DIR"
    for change in (
        lambda: publisher.publish(from_export(seven.repository)),
        publisher.roll_back,
        lambda: Publisher(Repository(tmp_path / "empty")).publish(from_export(live)),
    ):
        before = sorted(live.rglob("*"))
        with pytest.raises(ArtifactError, match=rewired) as caught:
            change()
        assert "\n" not in str(caught.value)
        assert sorted(live.rglob("*")) == before
    rewire(live, tmp_path / "anew", serving_of(live))
    published = Publisher(Repository(tmp_path / "other"), say=lambda line: None)
    assert published.publish(from_export(tmp_path / "anew")).number == 1
    assert not differences(tmp_path / "other", 1, in_process(tmp_path / "other"))


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_an_old_release_is_wired_otherwise(topology: str, tmp_path: Path) -> None:
    """Its config.pbtxt and model.py are then those of a new release."""
    (other,) = {*TOPOLOGIES} - {topology}
    rewire(OLD / topology, tmp_path / "rewired", Serving(max_batch_size=8, topology=other))
    front = pbtxt.read(tmp_path / "rewired" / "recommend" / "config.pbtxt")
    assert front.max_batch_size == 8
    assert not differences(tmp_path / "rewired", 1, in_process(tmp_path / "rewired"))


def test_a_release_file_without_newer_keys_is_read(tmp_path: Path) -> None:
    """The first releases had one topology, and recorded neither settings nor files nor answers."""
    repository = tmp_path / "repository"
    shutil.copytree(OLD / "ensemble", repository)
    path = repository / "recommend" / "1" / RELEASE_FILE
    first = ("version", "schema_hash", "sizes", "items", "stages", "parity", "parity_max_abs")
    path.write_text(json.dumps({key: json.loads(path.read_text())[key] for key in first}))
    assert serving_of(repository) == Serving(topology="ensemble")
    assert not differences(OLD / "ensemble", 1, in_process(repository))
