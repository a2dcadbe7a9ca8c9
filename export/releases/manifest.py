"""The manifest of a release, which a publisher checks before serving: `release.json` names every
file of every stage with its sha256, and holds the canary requests."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cascade.artifact import Array, ArtifactError, check_file
from cascade.config import of_release
from cascade.files import content, sha256, write_json
from cascade.release import FORMAT, RELEASE_FILE, check_manifest, read_release
from cascade.schema import Schema
from cascade.spec import ENSEMBLE, RETRIEVE, STAGES, stage_path
from cascade.stages.pipeline import Pipeline
from export.releases.canary import Canary

UNLISTED = ("model.py", "__pycache__")  # the same in every release, so not listed


def seal(repository: Path, version: int, users: tuple[Array, Array]) -> None:
    """Add to the release.json of an export its files and its canary requests: the first few of
    these raw users, dense [B, F_dense] and categorical [B, F_cat]."""
    release = read_release(repository, version)
    serving, product = of_release(release)
    pipeline = Pipeline.load(repository, version, replace(serving, threads=1))
    canary = Canary.ask(pipeline, users, product.explored)
    files: dict[str, Any] = {}  # by stage and by name within it, so that a release may be rewired
    for stage in STAGES:
        found = _files(repository / stage_path(release["topology"], stage, version))
        files[stage] = {
            name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for name, path in tqdm(found.items(), f"sha256 of {stage}", leave=False)
        }
    sealed = {
        **release,
        "format": FORMAT,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "files": files,
        "canary": canary.to_dict(),
    }
    write_json(repository / ENSEMBLE / str(version) / RELEASE_FILE, sealed)


def asked_again(repository: Path, version: int, release: dict[str, Any]) -> dict[str, Any]:
    """The release.json of a release whose answers have changed: its canary requests, asked anew."""
    serving, product = of_release(release)
    pipeline = Pipeline.load(repository, version, replace(serving, threads=1))
    before = Canary.from_dict(release["canary"])
    canary = Canary.ask(pipeline, (before.dense, before.categorical), product.explored)
    return {**release, "canary": canary.to_dict()}


def verify(repository: Path, version: int) -> dict[str, Any]:
    """Check every file of a release against its manifest, and return the manifest. Raises
    ArtifactError: a file is missing, damaged, foreign or of another schema; names it."""
    release = read_release(repository, version)
    where = repository / ENSEMBLE / str(version) / RELEASE_FILE
    check_manifest(release, version, where)
    total = sum(file["bytes"] for files in release["files"].values() for file in files.values())
    foreign: list[str] = []
    with tqdm(total=total, desc="checking", unit="B", unit_scale=True, leave=False) as bar:
        for stage in STAGES:
            listed = release["files"].get(stage, {})
            folder = repository / stage_path(release["topology"], stage, version)
            foreign += [str(path) for name, path in _files(folder).items() if name not in listed]
            for name, expected in listed.items():
                check_file(folder / name, expected["bytes"], expected["sha256"])
                bar.update(expected["bytes"])
    if foreign:
        raise ArtifactError(f"release {version} holds files that are not its own: {foreign}")
    folder = repository / stage_path(release["topology"], RETRIEVE, version)
    schema = Schema.load(folder / "schema.json")
    schema.check_same(release["schema_hash"], f"release {version}")
    return release


def _files(folder: Path) -> dict[str, Path]:
    """The files of a stage by name."""
    names = {str(path.relative_to(folder)): path for path in content(folder)}
    return {name: path for name, path in names.items() if not {*Path(name).parts} & {*UNLISTED}}
