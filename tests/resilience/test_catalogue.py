"""New items in a large catalogue: how long until they are retrieved, against a full export."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from cascade.artifact import Array
from cascade.server.launcher import Server
from cascade.stages.pipeline import Pipeline
from export.context import Catalogue, read_catalogue
from export.releases.control import Control
from export.releases.publishing import Publisher
from export.releases.refresh import Refresh, change
from export.releases.repository import Repository
from export.releases.rewire import from_export
from perf.harness.artifacts import Artifacts
from tests.resilience.claims import Record

NEW = 1_000
USERS, BATCH = 256, 32


def test_new_items_are_retrieved_soon(
    fused: Artifacts, ensemble: Path, work: Path, record: Record
) -> None:
    repository = Repository(work / "live")
    Publisher(repository, say=lambda line: None).publish(from_export(ensemble))
    with Server(repository.root) as server:
        control = Control(server.url, server.control_headers)
        began = time.monotonic()
        new, twins = _new_items(fused.checkpoints)

        def make(target: Path, number: int) -> None:
            refresh = Refresh(repository.root, 1, fused.checkpoints)
            nothing = np.zeros(0, np.int64)
            refresh.write(target, number, change(refresh.item_ids, new, nothing))

        Publisher(repository, control, say=lambda line: None).publish(make)
        refresh_s = time.monotonic() - began
        retrieved = _retrieved(control, repository, fused, new, twins)
    rows = [
        ["full export, s", f"{fused.export_s:.1f}"],
        ["new items published, s", f"{refresh_s:.1f}"],
        ["retrieved where an item like it is", f"{retrieved:.3f}"],
    ]
    record.table([f"{NEW:,} new items beside {fused.items:,}", "found"], rows)
    record(
        refresh_items=fused.items,
        refresh_s=refresh_s,
        refresh_ratio=refresh_s / fused.export_s,
        refresh_retrieved=retrieved,
    )


def _new_items(checkpoints: Path) -> tuple[Catalogue, Array]:
    """Items with the features of items that are there, and the ids of those."""
    items = read_catalogue(checkpoints)
    some = items.take(np.random.default_rng(0).choice(len(items), NEW, replace=False))
    ids = items.item_ids.max() + 1 + np.arange(NEW)
    return Catalogue(some.dense, some.ids, ids), some.item_ids


def _retrieved(
    control: Control, repository: Repository, fused: Artifacts, new: Catalogue, twins: Array
) -> float:
    """Of the twins in the candidates of all users, the share whose new item is a candidate of the
    same user."""
    live, users = repository.live, fused.users()
    item_ids = Pipeline.load(repository.root, live).item_ids
    both = offered = 0
    for start in range(0, USERS, BATCH):
        part = slice(start, start + BATCH)
        request = {"dense": users.dense[part], "categorical": users.categorical[part]}
        rows = control.ask("retrieve", live, request)["candidates"]
        for found in item_ids[rows]:
            has_twin = np.isin(twins, found)
            offered += int(has_twin.sum())
            both += int((has_twin & np.isin(new.item_ids, found)).sum())
    return both / max(1, offered)
