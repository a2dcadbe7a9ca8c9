"""New items in a large catalogue: how long until they are retrieved, against a full export."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from cascade.artifact import Array
from cascade.server.launcher import Server
from cascade.stages.pipeline import Pipeline
from export.artifacts.stage_files import Catalogue
from export.build import read_catalogue
from export.releases.control import Control
from export.releases.publishing import Publisher
from export.releases.refresh import Refresh, change
from export.releases.repository import Repository
from export.releases.transfer import from_export
from perf import payload
from perf.artifacts import features_of
from perf.commands import heading
from perf.table import table
from tests.resilience.stock import Stock

NEW = 1_000
USERS, BATCH = 256, 32


def run(work: Path, stock: Stock) -> dict[str, float]:
    """-> the keys of the summary."""
    made, ensemble = stock.fused, stock.ensemble
    heading(f"{NEW:,} new items in a catalogue of {made.items:,}")
    repository, checkpoints = Repository(work / "live"), made.checkpoints
    Publisher(repository, say=lambda line: None).publish(from_export(ensemble))
    with Server(repository.root) as server:
        began = time.monotonic()
        publisher = Publisher(repository, Control(server.url, server.control_headers))
        new, twins = _new_items(checkpoints)

        def make(target: Path, number: int) -> None:
            started = Refresh(repository.root, 1, checkpoints)
            nothing = np.zeros(0, np.int64)
            started.write(target, number, change(started.item_ids, new, nothing))

        publisher.publish(make)
        refresh_s = time.monotonic() - began
        retrieved = _retrieved(publisher.control, repository, checkpoints, new, twins)
    rows = [
        ["full export, s", f"{made.export_s:.1f}"],
        ["new items published, s", f"{refresh_s:.1f}"],
        ["retrieved where an item like it is", f"{retrieved:.3f}"],
    ]
    print(table(["catalogue", "found"], rows))
    return {
        "refresh_items": made.items,
        "refresh_s": refresh_s,
        "refresh_ratio": refresh_s / made.export_s,
        "refresh_retrieved": retrieved,
    }


def _new_items(checkpoints: Path) -> tuple[Catalogue, Array]:
    """Items with the features of items that are there, and the ids of those."""
    items = read_catalogue(checkpoints)
    some = items.take(np.random.default_rng(0).choice(len(items), NEW, replace=False))
    ids = items.item_ids.max() + 1 + np.arange(NEW)
    return Catalogue(some.dense, some.ids, ids), some.item_ids


def _retrieved(
    control: Control | None, repository: Repository, checkpoints: Path, new: Catalogue, twins: Array
) -> float:
    """Of the users to whom the server's retrieval offers an item, the share to whom it offers the
    new one like it as well."""
    assert control is not None
    live = repository.live
    users = payload.load(checkpoints / "users.jsonl", features_of(repository.root))
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
