"""A ranker of facebookresearch/dlrm in a cascade.yaml, from the file to the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cascade.layout import RequestLayout
from cascade.located import LocatedError
from cascade.spec import Sizes
from cascade.stages.pipeline import Pipeline
from export.build import write_release
from export.context import Build
from export.described import file
from tests.export.converters import facebook_reference as facebook
from tests.export.described_files import ITEMS, USERS, dump, write

RANK = {
    "converter": "facebook_dlrm",
    "weights": "dlrm.pt",
    "inputs": {"dense": ["age", "price"], "ids": ["user", "sku"]},
}


def scores(folder: Path, state: dict[str, Any], user: dict[str, Any]) -> Any:
    """The probabilities of all items for a raw user, by the reference."""
    items = pq.read_table(folder / "items.parquet").to_pydict()
    ids = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("user", "sku")}
    dense = np.array([[user["age"], price] for price in items["price"]], np.float32)
    members = [
        [[ids["user"].get(user["user"], 1)]] * ITEMS,
        [[ids["sku"][sku]] for sku in items["sku"]],
    ]
    return 1 / (1 + np.exp(-facebook.logits(state, dense, members)))


@pytest.fixture
def described(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What cascade.yaml holds, and the state_dict."""
    found = write(tmp_path) | {"rank": RANK}
    state = facebook.state([USERS + 2, ITEMS + 2], 4, [2, 8, 4], [4 + 3, 8, 1])
    state["bot_l.0.weight"][:, 0] /= 50  # of ages
    checkpoint = {"state_dict": {key: torch.from_numpy(value) for key, value in state.items()}}
    torch.save(checkpoint, tmp_path / "dlrm.pt")
    users = pq.read_table(tmp_path / "users.parquet").to_pylist()
    golden = [
        {**user, "id": 100 + place, "score": scores(tmp_path, state, user)[place]}
        for place, user in enumerate(users)
    ]
    pq.write_table(pa.Table.from_pylist(golden), tmp_path / "golden.parquet")
    return found, state


def test_raw_users_get_what_the_model_of_the_package_gives(
    tmp_path: Path, described: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    content, state = described
    made = file.write(dump(content, tmp_path), tmp_path / "checkpoints")
    assert any("scores from raw values equal yours" in note for note in made.notes)
    build = Build(
        tmp_path / "checkpoints", tmp_path / "repository", sizes=Sizes(ITEMS, ITEMS, 10),
        index="flat", state="float32", weights="float32", measure_batching=False,
        foreign=made.foreign, preranks=made.preranks,
    )  # fmt: skip
    write_release(build)
    pipeline = Pipeline.load(tmp_path / "repository")
    users = pq.read_table(tmp_path / "users.parquet").to_pylist()
    users.append({"user": "stranger", "age": 30.0})
    ids, found = pipeline(*RequestLayout.of(pipeline.schema).arrays(users))
    for user, own, values in zip(users, ids, found, strict=True):
        wanted = scores(tmp_path, state, user)
        np.testing.assert_allclose(values, np.sort(wanted)[::-1][:10], atol=1e-5)
        np.testing.assert_allclose(wanted[own - 100], values, atol=1e-5)
    release = json.loads((tmp_path / "repository/recommend/1/release.json").read_text())
    assert release["stages"]["rank"]["flat"] is None  # it was taken apart
    assert [*release["stages"]["rank"]["split"]["kept"]] == ["Relu of user and item (needs both)"]


def test_a_table_smaller_than_its_vocabulary_is_refused(
    tmp_path: Path, described: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    content, state = described
    state["emb_l.1.weight"] = state["emb_l.1.weight"][:-1]
    torch.save({key: torch.from_numpy(value) for key, value in state.items()}, tmp_path / "dlrm.pt")
    with pytest.raises(LocatedError, match="the vocabulary has the id 41, which rank"):
        file.write(dump(content, tmp_path), tmp_path / "checkpoints")
