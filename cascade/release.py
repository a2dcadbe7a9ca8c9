"""release.json: the content of a release, and how its stages are wired."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from cascade.artifact import ArtifactError, check_file, read_json
from cascade.spec import (
    EARLIER_FUSED,
    ENSEMBLE,
    RANK,
    RETRIEVE,
    STAGES,
    TOPOLOGIES,
    sizes_from,
    stage_path,
)

RELEASE_FILE = "release.json"
SIGNATURE_FILE = "release.json.sig"  # of the bytes of release.json: 64 bytes of ed25519
FORMAT = 2  # of a manifest that names every file


def newest_version(repository: Path) -> int:
    """The highest release number of a repository."""
    found = [int(path.parent.name) for path in repository.glob(f"{ENSEMBLE}/[0-9]*/{RELEASE_FILE}")]
    if not found:
        raise ArtifactError(
            f"{repository} holds no exported cascade: run python -m export --checkpoints DIR "
            f"--repository {repository}"
        )
    return max(found)


def read_release(repository: Path, version: int) -> dict[str, Any]:
    """release.json: what was exported, and how it is wired (`topology`, one of `spec.WIRINGS`).
    Raises ArtifactError."""
    path = repository / ENSEMBLE / str(version) / RELEASE_FILE

    def parse(release: Any) -> dict[str, Any]:
        sizes_from(release["sizes"])
        # The first releases had no choice of topologies, and recorded no settings.
        return {"topology": "ensemble", "serving": {}, **release}

    release = read_json(path, parse)
    if release["topology"] not in TOPOLOGIES:
        wired = f"{path} is wired as {release['topology']!r}"
        raise ArtifactError(f"{wired}; expected one of {[*TOPOLOGIES]}")
    if release["topology"] == "fused" and (path.parent / RETRIEVE).is_dir():
        release["topology"] = EARLIER_FUSED
    return release


def tasks_of(release: Mapping[str, Any], stage: str = RANK) -> tuple[str, ...]:
    """The outputs that the model of a stage has, by name; empty where it has one."""
    return tuple(release.get("stages", {}).get(stage, {}).get("tasks") or ())


def check_manifest(release: Mapping[str, Any], version: int, where: Path) -> None:
    """Raises ArtifactError where release.json, which lies at `where`, names no files in this
    format, or is that of a release of another number."""
    if release.get("format") != FORMAT:
        raise ArtifactError(
            f"{where} has format {release.get('format', 1)}; this version publishes format "
            f"{FORMAT}: export again"
        )
    if int(release["version"]) != version:
        raise ArtifactError(f"{where} is the manifest of release {release['version']}")


def check_stages(repository: Path, version: int, stages: Collection[str]) -> None:
    """Check the files of some stages against release.json; a repository without one is not checked.
    A file that is not there is left to the stage that needs it. Raises ArtifactError: a file, or
    release.json, is damaged."""
    if not (repository / ENSEMBLE / str(version) / RELEASE_FILE).exists():
        return
    release = read_release(repository, version)
    for path, expected in listed(repository, release, version, stages):
        if path.exists():
            check_file(path, expected["bytes"], expected["sha256"])


def listed(
    repository: Path, release: Mapping[str, Any], version: int, stages: Collection[str] = STAGES
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files of some stages that a release lists, where they lie in a repository, with their
    sizes and digests."""
    for stage in (stage for stage in STAGES if stage in stages):
        folder = repository / stage_path(release["topology"], stage, version)
        for name, expected in release.get("files", {}).get(stage, {}).items():
            yield folder / name, expected
