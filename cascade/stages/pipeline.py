"""The whole cascade in one process: the reference for the server's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cascade.artifact import Array, ArtifactError
from cascade.config import Serving, of_release
from cascade.release import newest_version, read_release
from cascade.spec import (
    ITEM_IDS,
    PRERANK,
    RANK,
    RETRIEVE,
    SCORES,
    STAGES,
    sizes_from,
    stage_path,
)
from cascade.stages.load import deny_list_of, load_stage
from cascade.stages.names import Named
from cascade.stages.retrieve import Retrieve
from cascade.stages.scoring import Score


class Pipeline:
    """The stages that the server runs, called one after the other."""

    def __init__(self, retrieve: Retrieve, prerank: Score, rank: Score | Named) -> None:
        expected = retrieve.encoder.schema.hash
        for name, stage in ((PRERANK, prerank), (RANK, rank)):
            if stage.schema_hash != expected:
                raise ArtifactError(
                    f"{name} was exported for schema {stage.schema_hash}, {RETRIEVE} for "
                    f"{expected}: export all stages together"
                )
        self._retrieve, self._prerank, self._rank = retrieve, prerank, rank
        self.schema = retrieve.encoder.schema

    @classmethod
    def load(
        cls, repository: Path, version: int | None = None, serving: Serving | None = None
    ) -> Pipeline:
        """Open the stages of one release of a model repository, the newest by default."""
        version = newest_version(repository) if version is None else version
        release = read_release(repository, version)
        sizes, topology = sizes_from(release["sizes"]), release["topology"]
        serving = serving or Serving()
        _, product = of_release(release)
        deny_list = deny_list_of(repository, product)
        loaded: list[Any] = []
        for name in STAGES:
            folder = repository / stage_path(topology, name, version)
            settings = (serving, sizes.candidates, deny_list, product)
            loaded.append(load_stage(name, folder, *settings))
        return cls(*loaded)

    @property
    def item_ids(self) -> Array:
        """int64 [N]: the outside world's id of every catalogue row that `retrieve` may name, or its
        key where ids are strings (`cascade.item_keys`)."""
        assert self._rank.item_ids is not None
        return self._rank.item_ids

    def encode(self, dense: Array, categorical: Array) -> tuple[Array, Array]:
        """Raw users as they come over the wire -> user_dense, user_ids, without a search."""
        return self._retrieve.encoder.encode("user", dense, categorical)

    def retrieve(
        self,
        dense: Array,
        categorical: Array,
        exclude: Array | None = None,
        allow: Array | None = None,
    ) -> tuple[Array, Array, Array]:
        """Raw users and their filters, as they come over the wire, object [B, 1] of bytes ->
        user_dense, user_ids, candidates [B, 1000]."""
        found = self._retrieve(dense, categorical, exclude, allow)
        user_dense, user_ids, candidates, _ = found
        return user_dense, user_ids, candidates

    def prerank(self, user_dense: Array, user_ids: Array, candidates: Array) -> Array:
        """-> survivors [B, 200]."""
        return self._prerank(user_dense, user_ids, candidates)[0]

    def rank(self, user_dense: Array, user_ids: Array, survivors: Array) -> tuple[Array, Array]:
        """-> item_ids [B, 10], int64 or, where ids are strings, object of UTF-8; scores [B, 10]."""
        item_ids, scores, *_ = self._rank(user_dense, user_ids, survivors)
        return item_ids, scores

    def __call__(
        self,
        dense: Array,
        categorical: Array,
        exclude: Array | None = None,
        allow: Array | None = None,
    ) -> tuple[Array, Array]:
        """Raw users, dense [B, F_dense] and categorical [B, F_cat], and their filters -> item_ids,
        scores [B, 10]."""
        answer = self.answer(dense, categorical, exclude, allow)
        return answer[ITEM_IDS], answer[SCORES]

    def answer(
        self,
        dense: Array,
        categorical: Array,
        exclude: Array | None = None,
        allow: Array | None = None,
    ) -> dict[str, Array]:
        """The same with all outputs of the ranker, by name, [B, 10, ...] each."""
        user_dense, user_ids, candidates = self.retrieve(dense, categorical, exclude, allow)
        survivors = self.prerank(user_dense, user_ids, candidates)
        found = self._rank(user_dense, user_ids, survivors)
        return dict(zip(self._rank.outputs, found, strict=True))
