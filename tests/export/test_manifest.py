"""A release is checked, file by file, before anything is served; what is wrong is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascade.artifact import ArtifactError
from cascade.release import FORMAT, check_stages, read_release
from cascade.schema import SchemaError
from export.releases.canary import USERS, Canary
from export.releases.manifest import verify
from tests.cascades import Cascade


@pytest.fixture
def release(criteo: Cascade, tmp_path: Path) -> Path:
    """A copy of an export that a test may damage."""
    return Path(shutil.copytree(criteo.repository, tmp_path / "repository"))


def test_an_export_describes_its_files_and_its_answers(criteo: Cascade) -> None:
    found = verify(criteo.repository, 1)
    assert found["format"] == FORMAT
    assert set(found["files"]) == {"retrieve", "prerank", "rank"}
    assert {"item_state.bin", "model.onnx", "stage.json"} <= set(found["files"]["rank"])
    canary = Canary.from_dict(found["canary"])
    np.testing.assert_array_equal(canary.dense, criteo.dense[:USERS])
    assert canary.categorical.tolist() == criteo.categorical[:USERS].tolist()
    answer = criteo.ask(criteo.pipeline(), stop=USERS)
    assert [*canary.differences(*answer)] == []


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "name",
    ["rank/1/item_state.bin", "prerank/1/model.onnx", "retrieve/1/index.faiss", "rank/1/model.pt"],
)
@pytest.mark.parametrize(
    ("damage", "message"),
    [(flip, "is not the file that was saved"), (shorten, "bytes"), (Path.unlink, "is missing")],
)
def test_a_damaged_file_is_named(
    release: Path, name: str, damage: Callable[[Path], Any], message: str
) -> None:
    damage(release / name)
    with pytest.raises(ArtifactError, match=message) as error:
        verify(release, 1)
    model, _, file = name.split("/")
    assert model in str(error.value)
    assert file in str(error.value)


def test_a_process_checks_the_files_of_its_stages(release: Path) -> None:
    check_stages(release, 1, ("lookup", "retrieve", "prerank", "rank"))
    flip(release / "rank" / "1" / "item_state.bin")
    (release / "retrieve" / "1" / "vocabulary" / "C7.txt").unlink()  # a server needs none of items
    check_stages(release, 1, ("lookup", "retrieve", "prerank"))
    with pytest.raises(ArtifactError, match=r"item_state\.bin is not the file that was saved"):
        check_stages(release, 1, ("retrieve", "prerank", "rank"))
    (release / "recommend" / "1" / "release.json").write_text('{"sizes": {"candi')
    with pytest.raises(ArtifactError, match=r"release\.json is damaged"):
        check_stages(release, 1, ("prerank",))
    (release / "recommend" / "1" / "release.json").unlink()
    check_stages(release, 1, ("rank",))


def test_a_foreign_file_is_named(release: Path) -> None:
    (release / "prerank" / "1" / "left.bin").touch()
    with pytest.raises(ArtifactError, match=r"not its own: .*prerank/1/left\.bin"):
        verify(release, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": None}, "has format None; this version publishes format 2"),
        ({"version": 9}, "is the manifest of release 9"),
        ({"sizes": {}}, r"release\.json is damaged"),
    ],
)
def test_another_manifest_is_refused(release: Path, changes: dict[str, Any], message: str) -> None:
    path = release / "recommend" / "1" / "release.json"
    path.write_text(json.dumps({**read_release(release, 1), **changes}))
    with pytest.raises(ArtifactError, match=message):
        verify(release, 1)


def test_a_release_of_another_schema_is_refused(release: Path) -> None:
    path = release / "recommend" / "1" / "release.json"
    path.write_text(json.dumps({**read_release(release, 1), "schema_hash": "0123"}))
    with pytest.raises(SchemaError, match="0123"):
        verify(release, 1)


def canary(ids: list[int], scores: list[float]) -> Canary:
    return Canary(
        np.zeros((1, 1), np.float32),
        np.array([[b""]], object),
        np.array([ids]),
        np.array([scores], np.float32),
    )


@pytest.mark.parametrize(
    ("ids", "scores", "wrong"),
    [
        ([4, 2, 7], [0.9, 0.5, 0.5], ""),
        ([4, 7, 2], [0.9, 0.5, 0.5], ""),
        ([4, 2, 8], [0.9, 0.5, 0.50001], ""),  # the last place is shared
        ([4, 2, 7], [0.9, 0.51, 0.5], "a score differs by 0.01"),
        ([5, 2, 7], [0.9, 0.5, 0.5], r"items \[4\] are missing"),
    ],
)
def test_equal_items_may_change_places(ids: list[int], scores: list[float], wrong: str) -> None:
    known = canary([4, 2, 7], [0.9, 0.5, 0.5])
    found = [*known.differences(np.array([ids]), np.array([scores], np.float32))]
    assert [re.search(wrong, text) is not None for text in found] == [True] * bool(wrong)


def test_a_canary_survives_json() -> None:
    """What is missing stays missing, what is not text stays as it is."""
    dense = np.array([[np.nan, 1.5]], np.float32)
    categorical = np.array([["é".encode(), b"\xff\x00"]], object)
    known = Canary(dense, categorical, np.array([[3, -1]]), np.array([[0.5, 0]], np.float32))
    back = Canary.from_dict(json.loads(json.dumps(known.to_dict())))
    np.testing.assert_array_equal(back.dense, dense)
    assert back.categorical.tolist() == categorical.tolist()
    assert [*back.differences(known.item_ids, known.scores)] == []
