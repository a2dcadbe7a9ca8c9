"""The whole cascade in one process: what the server's answers are compared with."""

from __future__ import annotations

import json
from pathlib import Path

from cascade.serving.runtime import Array, ArtifactError
from cascade.serving.stages import Retrieve, Score, load_stage
from cascade.spec import ENSEMBLE, PRERANK, RANK, RETRIEVE, Serving, Sizes, sizes_from

RELEASE_FILE = "release.json"


class Pipeline:
    """Chains the stage objects that the server runs."""

    def __init__(self, retrieve: Retrieve, prerank: Score, rank: Score) -> None:
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
        sizes = read_sizes(repository, version)
        serving = serving or Serving()
        retrieve, prerank, rank = (
            load_stage(name, repository / name / str(version), serving, sizes.candidates)
            for name in (RETRIEVE, PRERANK, RANK)
        )
        assert isinstance(retrieve, Retrieve)
        assert isinstance(prerank, Score)
        assert isinstance(rank, Score)
        return cls(retrieve, prerank, rank)

    def retrieve(self, dense: Array, categorical: Array) -> tuple[Array, Array, Array]:
        """Raw users -> user_dense, user_ids, candidates [B, 1000]."""
        user_dense, user_ids, candidates = self._retrieve(dense, categorical)
        return user_dense, user_ids, candidates

    def prerank(self, user_dense: Array, user_ids: Array, candidates: Array) -> Array:
        """-> survivors [B, 200]."""
        return self._prerank(user_dense, user_ids, candidates)[0]

    def rank(self, user_dense: Array, user_ids: Array, survivors: Array) -> tuple[Array, Array]:
        """-> item_ids [B, 10], scores [B, 10]."""
        item_ids, scores = self._rank(user_dense, user_ids, survivors)
        return item_ids, scores

    def __call__(self, dense: Array, categorical: Array) -> tuple[Array, Array]:
        """Raw users, dense [B, F_dense] and categorical [B, F_cat] -> item_ids, scores [B, 10]."""
        user_dense, user_ids, candidates = self.retrieve(dense, categorical)
        return self.rank(user_dense, user_ids, self.prerank(user_dense, user_ids, candidates))


def newest_version(repository: Path) -> int:
    """The highest release number of a repository."""
    found = [
        int(folder.name)
        for folder in (repository / RETRIEVE).glob("[0-9]*")
        if (folder / "stage.json").exists()
    ]
    if not found:
        raise ArtifactError(
            f"{repository} holds no exported cascade: run python -m export --checkpoints DIR "
            f"--repository {repository}"
        )
    return max(found)


def read_sizes(repository: Path, version: int) -> Sizes:
    """How many candidates leave each stage of a release."""
    path = repository / ENSEMBLE / str(version) / RELEASE_FILE
    if not path.exists():
        raise ArtifactError(f"{path} is missing: export again")
    return sizes_from(json.loads(path.read_text())["sizes"])
