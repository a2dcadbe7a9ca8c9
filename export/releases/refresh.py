"""Writes a release with the models of another one over a changed catalogue; computes the changes.

A few files of a version folder have one row per item (states, ids, vectors), and so has the index.
Rows of items that leave are cut out; rows of new items are computed by the models of the release
and appended. All other files are linked.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
from tqdm import tqdm

from cascade import index, pbtxt
from cascade.artifact import ONNX_FILE, Array, ArtifactError, Description, Mapped
from cascade.config import of_release
from cascade.encoding import Encoder
from cascade.files import link, write_json
from cascade.index import exact
from cascade.models.scorer import Scorer
from cascade.release import RELEASE_FILE, read_release
from cascade.schema import Schema
from cascade.spec import (
    CATALOGUE_IDS,
    ENSEMBLE,
    PRERANK,
    RANK,
    RERANK,
    RETRIEVE,
    STAGES,
    Precision,
    sizes_from,
    stage_path,
)
from cascade.stages import rerank
from cascade.stages.filters.items import DESCRIPTION, FilterDescription
from cascade.training import checkpoint
from export.artifacts import filters
from export.artifacts.onnx_file import point_at
from export.artifacts.stage_files import ITEM_STATE, Variant, item_states
from export.context import Catalogue
from export.foreign import wrapper
from export.releases.canary import Canary
from export.releases.manifest import seal

BLOCK = 1 << 22  # bytes of a file, copied at a time


@dataclass(frozen=True)
class Change:
    """A change of a catalogue.

    Args:
        keep: bool [N], which rows of the old catalogue stay.
        added: the new items, encoded.
    """

    keep: Array
    added: Catalogue

    @property
    def items(self) -> int:
        """In the new catalogue."""
        return int(self.keep.sum()) + len(self.added)


def change(item_ids: Array, added: Catalogue, removed: Array) -> Change:
    """The change that removes and adds items; an added item replaces one with the same id.

    Raises:
        ArtifactError: an item to be removed is not there, or one is added twice.
    """
    unknown = np.setdiff1d(removed, item_ids)
    if len(unknown):
        raise ArtifactError(
            f"{len(unknown)} items to be removed are not in the catalogue: {unknown[:5].tolist()}"
        )
    if len(np.unique(added.item_ids)) != len(added):
        raise ArtifactError("an item is added twice: each item_id may come once")
    keep = ~np.isin(item_ids, np.concatenate((removed, added.item_ids)))
    if not keep.sum() + len(added):
        raise ArtifactError("nothing would be left of the catalogue")
    return Change(keep, added)


class Refresh:
    """Writes a release that differs from another one in its items alone.

    Args:
        root, number: the release to start from.
        checkpoints: that it was exported from: their models compute the states of new items.

    Raises:
        ArtifactError: the release was exported from other checkpoints.
    """

    def __init__(self, root: Path, number: int, checkpoints: Path) -> None:
        self.root, self.number, self.checkpoints = root, number, checkpoints
        self.release = read_release(root, number)
        self.encoder = Encoder.load(checkpoints)
        self.schema: Schema = self.encoder.schema
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
        topology = self.release["topology"]
        folders = {name: target / stage_path(topology, name, version) for name in STAGES}
        with ThreadPoolExecutor(len(STAGES)) as pool:  # writing takes most of the time
            for _ in pool.map(lambda name: self._stage(name, folders[name], changed), STAGES):
                pass
        serving, product = of_release(self.release)
        runs = pbtxt.runs_of(self.release, serving)
        sizes = sizes_from(self.release["sizes"])
        pbtxt.write(target, self.schema, sizes, serving, version, runs, product=product)
        front = target / ENSEMBLE / str(version)
        titles = self.root / ENSEMBLE / str(self.number) / "titles.csv"
        if titles.exists():
            link(titles, front / titles.name)
        canary = Canary.from_dict(self.release["canary"])
        made_of = {"release": self.number, "kept": int(changed.keep.sum())}
        made_of["added"] = len(changed.added)
        release = {**self.release, "version": version, "items": changed.items, "made_of": made_of}
        write_json(front / RELEASE_FILE, release)
        seal(target, version, (canary.dense, canary.categorical))

    def _stage(self, name: str, folder: Path, changed: Change) -> None:
        folder.mkdir(parents=True)
        if name == RETRIEVE:
            self._retrieve(folder, changed)
        else:
            self._score(name, folder, changed)

    def _folder(self, stage: str) -> Path:
        return self.root / stage_path(self.release["topology"], stage, self.number)

    def _retrieve(self, target: Path, changed: Change) -> None:
        source = self._folder(RETRIEVE)
        retriever = checkpoint.load(self.checkpoints / RETRIEVE, self.schema)
        vectors = _computed(retriever, changed.added, RETRIEVE)
        described = FilterDescription.load(source, self.schema.hash)
        files = (mapped.file for mapped in described.mapped.values())
        own = {index.FILE, index.FACTS, exact.FILE, exact.FACTS, DESCRIPTION, *files}
        _link_others(source, target, own)
        ids, keep = self._ids(changed), changed.keep
        filters.refresh(source, target, self.encoder, keep, changed.added, ids)
        if exact.present(source):
            kept = exact.vectors(source)[changed.keep]
            exact.save(np.concatenate((kept, vectors)), target, self.schema.hash)
            return
        found = index.load(source, self.schema.hash, mapped=False, verify=False)
        index.save(index.refresh(found, changed.keep, vectors), target, self.schema.hash)

    def _score(self, stage: str, target: Path, changed: Change) -> None:
        source = self._folder(stage)
        description = Description.load(source)
        own = {ONNX_FILE, "stage.json", *(m.file for m in description.mapped.values())}
        _link_others(source, target, {*own, *rerank.FILES})
        if stage == RANK and (source / RERANK).exists():
            self._rerank(source, target, changed)
        mapped = {}
        for name, value in description.mapped.items():
            mapped[name] = replace(value, shape=(changed.items, *value.shape[1:]))
            rows = self._rows(stage, name, value, changed.added)
            _splice(value, changed.keep, rows, source, target)
        replace(description, mapped=mapped).save(target)
        model = onnx.load(str(source / ONNX_FILE), load_external_data=False)
        for name, value in mapped.items():
            point_at(model, name, value)
        onnx.save(model, str(target / ONNX_FILE))

    def _rerank(self, source: Path, target: Path, changed: Change) -> None:
        retriever = checkpoint.load(self.checkpoints / RETRIEVE, self.schema)
        vectors = (
            rerank.vectors(source)[changed.keep],
            _computed(retriever, changed.added, RETRIEVE),
        )
        results = self.release["sizes"]["results"]
        _, product = of_release(self.release)
        rerank.save(target, vectors, self._ids(changed), results, product)

    def _ids(self, changed: Change) -> Array:
        return np.concatenate((self.item_ids[changed.keep], changed.added.item_ids))

    def _rows(self, stage: str, name: str, value: Mapped, items: Catalogue) -> Array:
        """The rows of new items in a mapped file, [n, V]."""
        plain = {
            CATALOGUE_IDS: items.item_ids[:, None],
            wrapper.TABLES["item_dense"]: items.dense,
            wrapper.TABLES["item_ids"]: items.ids,
        }
        if name != ITEM_STATE:
            return plain[name].astype(value.dtype)
        facts = self.release["stages"][stage]
        variant = Variant(**facts["variant"])
        sizes = self.release["sizes"]
        k = sizes["candidates"] if stage == PRERANK else sizes["survivors"]
        scorer = checkpoint.load(self.checkpoints / facts["checkpoint"], self.schema)
        states = _computed(variant.applied(scorer, k), items, stage)
        return states.astype(value.dtype, copy=False)


def _computed(scorer: Scorer, items: Catalogue, name: str) -> Array:
    """`item` of the new items, [n, V]."""
    parts = [*item_states(scorer, items, name)]
    return np.concatenate(parts) if parts else np.zeros((0, scorer.item_width), np.float32)


def _splice(mapped: Mapped, keep: Array, added: Array, source: Path, target: Path) -> None:
    """Write the rows of a file [N, V] that are kept, and the new ones behind them.

    Reading blocks and writing them into allocated space is several times as fast as copying out of
    a mapped file.

    Raises:
        ArtifactError: the file is not as long as described.
    """
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
    """Link all files of a stage that do not depend on the items."""
    for path in source.rglob("*"):
        name = path.relative_to(source)
        if path.is_file() and name.name not in own and "__pycache__" not in name.parts:
            link(path, target / name)
