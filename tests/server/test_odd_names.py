"""Names and paths that are no plain ASCII: nothing of them becomes part of a file name or of a
command, and the server reads them whatever the locale is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascade.client import Recommender
from cascade.config import Product, Serving
from cascade.schema import Feature, Schema
from cascade.server.launcher import Server
from cascade.stages.pipeline import Pipeline
from cascade.store import UserStore
from export.releases.rewire import rewire, serving_of
from export.users import layout_of

USERS = 20
ODD = Schema(
    "mes données/año",
    (
        Feature("âge", "user", "dense", "identity"),
        Feature("ciudad_año", "user", "categorical", "vocabulary"),
        Feature("geo/city", "user", "categorical", "vocabulary"),
        Feature("城" * 300, "user", "bag", "vocabulary", length=3),
        Feature("../../up", "user", "categorical", "vocabulary"),
        Feature('it\'s "so" $HOME {x}\\', "user", "categorical", "hash", buckets=9),
        Feature("marca/genre é", "item", "bag", "vocabulary", length=2),
        Feature("x" * 300, "item", "categorical", "vocabulary"),
    ),
)


def test_features_stores_and_folders_may_have_any_name(
    make_cascade: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_cascade(
        schema=ODD, items=300, serving=Serving(max_batch_size=8), filter_features=("marca/genre é",)
    )
    store = f"lmdb:{tmp_path / '$HOME' / 'my données.lmdb'}"
    (tmp_path / "$HOME").mkdir()
    ids, _ = made.pipeline()(made.dense[:USERS], made.categorical[:USERS])
    denied = int(ids[0][0])
    deny_list, folder = "liste noire é.txt", tmp_path / "R&D (2024)" / "josé's models"
    rewire(
        made.repository,
        folder,
        replace(serving_of(made.repository), topology="paired"),
        Product(store=store, deny_list=deny_list),
    )
    (folder / deny_list).write_text(f"{denied}\n")
    with UserStore.create(store, layout_of(folder)) as users:
        users.put(range(USERS), made.dense[:USERS], made.categorical[:USERS])
    assert (tmp_path / "$HOME" / "my données.lmdb" / "data.mdb").exists()
    monkeypatch.setenv("LC_ALL", "C")
    with (
        Server(folder, startup_timeout_s=40) as server,
        Recommender(server.url, deadline_s=30) as client,
    ):
        by_id = client.recommend_users([*range(USERS)])
        by_features = client.recommend_many(made.users[:USERS])
        allowed = client.recommend(made.users[0], allow={"marca/genre é": ["marca/genre é-1"]})
    pipeline = Pipeline.load(folder, serving=Serving(threads=1))
    ids, scores = pipeline(made.dense[:USERS], made.categorical[:USERS])
    assert denied not in ids
    for row, (one, other) in enumerate(zip(by_id, by_features, strict=True)):
        assert not one.cold_start
        assert one.item_ids.tolist() == other.item_ids.tolist() == ids[row].tolist()
        np.testing.assert_allclose(one.scores, scores[row], atol=1e-5)
    assert len(allowed.item_ids)
