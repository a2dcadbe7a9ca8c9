"""Writes a release with the models of another one over a changed catalogue. A few files of a
version folder have one row per item (states, ids, vectors), and so has the index. Rows of items
that leave are cut out; those of new items are computed by the models of the release and appended.
All other files are linked."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
from tqdm import tqdm

from cascade import index
from cascade.artifact import ONNX_FILE, Array, ArtifactError, Description, Mapped
from cascade.config import of_release
from cascade.encoding import Encoder
from cascade.files import content, link, write_json
from cascade.index import exact
from cascade.item_keys import as_keys
from cascade.release import RELEASE_FILE, read_release
from cascade.spec import (
    CATALOGUE_IDS,
    ENSEMBLE,
    ITEM_STATE,
    RANK,
    RERANK,
    RETRIEVE,
    STAGES,
    Precision,
    stage_path,
)
from cascade.stages import rerank
from cascade.stages.filters.items import DESCRIPTION, FilterDescription
from cascade.training import checkpoint
from export import whole
from export.artifacts import filters, names
from export.artifacts.onnx_file import point_at
from export.artifacts.stage_files import ITEMS_FILE, item_states
from export.context import Catalogue
from export.foreign import apart, towers, wrapping
from export.releases.canary import Canary
from export.releases.manifest import seal
from export.releases.repository import write_configs

BLOCK = 1 << 22  # bytes of a file, copied at a time


@dataclass(frozen=True)
class Change:
    """Which rows of the old catalogue stay, bool [N], and the new items behind them, encoded."""

    keep: Array
    added: Catalogue

    @property
    def items(self) -> int:
        """In the new catalogue."""
        return int(self.keep.sum()) + len(self.added)


def change(item_ids: Array, added: Catalogue, removed: Array) -> Change:
    """The change that removes and adds items; an added item replaces one with the same id. Raises
    ArtifactError: an item to be removed is not there, or one is added twice.

    `item_ids`: int64, or keys where ids are strings; `removed`: as `read_ids` gives them.
    """
    keys = as_keys(removed)
    unknown = np.unique(removed[~np.isin(keys, item_ids)])
    if len(unknown):
        raise ArtifactError(
            f"{len(unknown)} items to be removed are not in the catalogue: {unknown[:5].tolist()}"
        )
    if len(np.unique(added.item_ids)) != len(added):
        raise ArtifactError("an item is added twice: each item_id may come once")
    changed = Change(~np.isin(item_ids, np.concatenate((keys, added.item_ids))), added)
    if not changed.items:
        raise ArtifactError("nothing would be left of the catalogue")
    return changed


class Refresh:
    """Writes a release that differs from another one, `number` in `root`, in its items alone. The
    models of the checkpoints that it was exported from compute the states of new items. Raises
    ArtifactError: the release was exported from other checkpoints."""

    def __init__(self, root: Path, number: int, checkpoints: Path) -> None:
        self.root, self.number, self.checkpoints = root, number, checkpoints
        self.release = read_release(root, number)
        self.encoder = Encoder.load(checkpoints)
        self.schema = self.encoder.schema
        self.schema.check_same(self.release["schema_hash"], f"release {number}")
        for stage in STAGES:
            facts = self.release["stages"][stage]
            source, digest = facts.get("checkpoint"), facts.get("digest")
            if source and checkpoint.digest(checkpoints / source) != digest:
                raise ArtifactError(
                    f"{checkpoints / source} are not the weights that {stage} of release {number} "
                    "was exported from"
                )
            state = facts.get("variant", {}).get("state", "float32")
            if state not in get_args(Precision):
                raise ArtifactError(
                    f"{stage} of release {number} stores its items as {state}, which is no longer "
                    "written: publish the checkpoints again"
                )
        folder = self._folder(RANK)
        self.item_ids = Description.load(folder).mapped[CATALOGUE_IDS].open(folder)[:, 0]

    def write(self, target: Path, version: int, changed: Change) -> None:
        """Write the release `version` into the repository `target`."""

        def write_stage(name: str) -> None:
            folder = target / stage_path(self.release["topology"], name, version)
            folder.mkdir(parents=True)
            if name == RETRIEVE:
                self._retrieve(folder, changed)
            else:
                self._score(name, folder, changed)

        with ThreadPoolExecutor(len(STAGES)) as pool:  # writing takes most of the time
            list(pool.map(write_stage, STAGES))
        write_configs(target, self.release, version, self.schema)
        front = target / ENSEMBLE / str(version)
        titles = self.root / ENSEMBLE / str(self.number) / "titles.csv"
        if titles.exists():
            link(titles, front / titles.name)
        canary = Canary.from_dict(self.release["canary"])
        kept, added = int(changed.keep.sum()), len(changed.added)
        made_of = {"release": self.number, "kept": kept, "added": added}
        release = {**self.release, "version": version, "items": changed.items, "made_of": made_of}
        write_json(front / RELEASE_FILE, release)
        seal(target, version, (canary.dense, canary.categorical))

    def _folder(self, stage: str) -> Path:
        return self.root / stage_path(self.release["topology"], stage, self.number)

    def _retrieve(self, target: Path, changed: Change) -> None:
        source = self._folder(RETRIEVE)
        described = FilterDescription.load(source, self.schema.hash)
        files = (mapped.file for mapped in described.mapped.values())
        own = {index.FILE, index.FACTS, exact.FILE, exact.FACTS, DESCRIPTION, *files}
        _link_others(source, target, own)
        ids, keep = self._ids(changed), changed.keep
        filters.refresh(source, target, self.encoder, keep, changed.added, ids)
        vectors = self._vectors(changed)
        if exact.present(source):
            kept = exact.vectors(source)[keep]
            exact.save(np.concatenate((kept, vectors)), target, self.schema.hash)
            return
        found = index.load(source, self.schema.hash, mapped=False, verify=False)
        index.save(index.refresh(found, keep, vectors), target, self.schema.hash)

    def _score(self, stage: str, target: Path, changed: Change) -> None:
        source = self._folder(stage)
        description = Description.load(source)
        own = {ONNX_FILE, "stage.json", *(mapped.file for mapped in description.files)}
        _link_others(source, target, {*own, *rerank.FILES, *names.FILES})
        if stage == RANK and self.schema.string_ids:
            items = self.item_ids, changed.keep, changed.added
            names.refresh(source, target, self.schema.hash, *items)
        if stage == RANK and (source / RERANK).exists():
            vectors = rerank.vectors(source)[changed.keep], self._vectors(changed)
            results, (_, product) = self.release["sizes"]["results"], of_release(self.release)
            rerank.save(target, vectors, self._ids(changed), results, product)

        def spliced(value: Mapped, rows: Array) -> Mapped:
            rows = whole.check_states(rows, 0, f"new items, {value.file}", value.dtype)
            _splice(value, changed.keep, rows, source, target)
            return replace(value, shape=(changed.items, *value.shape[1:]))

        mapped = {
            name: spliced(value, self._rows(stage, name, value, changed.added))
            for name, value in description.mapped.items()
        }
        if state := description.torch_state:
            state = spliced(state, self._states(stage, state, changed.added))
        replace(description, mapped=mapped, torch_state=state).save(target)
        model = onnx.load(str(source / ONNX_FILE), load_external_data=False)
        for name in description.graph_mapped:
            point_at(model, name, mapped[name])
        onnx.save(model, str(target / ONNX_FILE))

    def _ids(self, changed: Change) -> Array:
        return np.concatenate((self.item_ids[changed.keep], changed.added.item_ids))

    def _vectors(self, changed: Change) -> Array:
        """Of the new items, by the retriever, [n, D]."""
        retriever = towers.open_retriever(self.checkpoints, self.schema)
        nothing = np.zeros((0, retriever.item_width), np.float32)
        return np.concatenate([nothing, *towers.item_vectors(retriever, changed.added)])

    def _rows(self, stage: str, name: str, value: Mapped, items: Catalogue) -> Array:
        """The rows of new items in a mapped file, [n, V]."""
        graph = self._folder(stage) / ITEMS_FILE
        if name in apart.STATES and graph.exists():
            nothing = np.zeros((0, *value.shape[1:]), value.dtype)
            return np.concatenate([nothing, *apart.ItemStates(graph).chunks(items, name)])
        if name == ITEM_STATE:
            return self._states(stage, value, items)
        if name == CATALOGUE_IDS:
            return items.item_ids[:, None]
        return items.dense if name == wrapping.TABLES["item_dense"] else items.ids

    def _states(self, stage: str, state: Mapped, items: Catalogue) -> Array:
        """`item` of the new items, [n, V], by the stage's own model."""
        made_of = self.release["stages"][stage]["checkpoint"]
        scorer = checkpoint.load(self.checkpoints / made_of, self.schema)
        if scorer.item_width != state.shape[1]:
            raise ArtifactError(
                f"{state.file} of {stage} has {state.shape[1]} numbers per item, but its model "
                f"gives {scorer.item_width}: an earlier version exported release {self.number}; "
                "publish the checkpoints again"
            )
        nothing = np.zeros((0, scorer.item_width), np.float32)
        return np.concatenate([nothing, *item_states(scorer, items, stage)])


def _splice(mapped: Mapped, keep: Array, added: Array, source: Path, target: Path) -> None:
    """Write the rows of a file [N, V] that are kept, and the new ones behind them. Reading blocks
    and writing them into allocated space is several times as fast as copying out of a mapped file.
    Raises ArtifactError: the file is not as long as described."""
    mapped.check(source)
    width = mapped.nbytes // len(keep)
    block = np.empty((BLOCK // max(1, width) + 1, width), np.uint8)
    with (
        (source / mapped.file).open("rb") as old,
        (target / mapped.file).open("wb") as new,
        tqdm(total=len(keep), desc=mapped.file, unit=" items", unit_scale=True, leave=False) as bar,
    ):
        if size := int(keep.sum()) * width + added.nbytes:
            os.posix_fallocate(new.fileno(), 0, size)
        for start in range(0, len(keep), len(block)):
            kept = keep[start : start + len(block)]
            part = block[: len(kept)]
            old.readinto(part.data)
            new.write((part if kept.all() else part[kept]).data)
            bar.update(len(kept))
        new.write(np.ascontiguousarray(added).data)


def _link_others(source: Path, target: Path, own: set[str]) -> None:
    """Link all files of a stage that do not depend on the items, but for model.py: it is written
    anew, which would go through the link into the release that is served."""
    for path in content(source):
        name = path.relative_to(source)
        if name.name not in {*own, "model.py"} and "__pycache__" not in name.parts:
            link(path, target / name)
