"""Writes a release into another repository: in another topology, with another formula of its score,
or under another number."""

from __future__ import annotations

import shutil
from pathlib import Path

from cascade.artifact import ArtifactError
from cascade.config import Product, Serving, of_release
from cascade.files import content, link, write_json
from cascade.release import RELEASE_FILE, newest_version, read_release, tasks_of
from cascade.schema import Schema
from cascade.spec import (
    ENSEMBLE,
    FRONTS,
    PRERANK,
    RANK,
    RETRIEVE,
    STAGES,
    TOPOLOGIES,
    stage_path,
)
from cascade.stages.tasks import formula_of
from export.releases.manifest import asked_again
from export.releases.publishing import Make
from export.releases.repository import check_current, write_configs


def rewire(source: Path, target: Path, serving: Serving, product: Product | None = None) -> None:
    """Write the newest release of a repository into another one, with other settings; without
    `product`, that stays as it is. Raises ArtifactError: the source cannot be read, or is the
    target, or the target is wired in another way; FormulaError: a formula is not one of the
    tasks."""
    if target.resolve() == source.resolve():
        raise ArtifactError(f"{target} is the repository to read: write another one")
    version = newest_version(source)
    release = read_release(source, version)
    before = of_release(release)[1]
    product = product or before
    for stage in (PRERANK, RANK):
        formula_of(stage, tasks_of(release, stage), product)
    folders = {name: source / stage_path(release["topology"], name, version) for name in STAGES}
    wired = {
        **release,
        "topology": serving.topology,
        "serving": vars(serving),
        "product": vars(product),
    }
    write_configs(target, wired, version, Schema.load(folders[RETRIEVE] / "schema.json"))
    for name, folder in folders.items():
        to = target / stage_path(serving.topology, name, version)
        for file in content(folder):
            if file.name != "model.py":
                (to / file.relative_to(folder)).unlink(missing_ok=True)
                link(file, to / file.relative_to(folder))
    titles = source / ENSEMBLE / str(version) / "titles.csv"
    if titles.exists():
        shutil.copyfile(titles, target / ENSEMBLE / str(version) / "titles.csv")
    write_json(target / ENSEMBLE / str(version) / RELEASE_FILE, wired)
    formulas = [(each.score, each.prerank_score) for each in (before, product)]
    if formulas[0] != formulas[1] and "canary" in wired:
        wired = asked_again(target, version, wired)
        write_json(target / ENSEMBLE / str(version) / RELEASE_FILE, wired)


def settings_of(repository: Path) -> tuple[Serving, Product]:
    """The settings of the newest release of a repository."""
    return of_release(read_release(repository, newest_version(repository)))


def serving_of(repository: Path) -> Serving:
    """How the newest release of a repository is served."""
    return settings_of(repository)[0]


def from_export(source: Path) -> Make:
    """Copy the newest release of another repository under a new number. What is returned raises
    ArtifactError for a release that has to be wired anew first."""

    def make(target: Path, number: int) -> None:
        version = newest_version(source)
        release = read_release(source, version)
        check_current(release, source)
        for model in {*TOPOLOGIES[release["topology"]], *FRONTS}:
            folder = source / model / str(version)
            if folder.exists():  # not all releases have all models that clients ask
                copy, unlisted = target / model / str(number), shutil.ignore_patterns("__pycache__")
                shutil.copytree(folder, copy, ignore=unlisted)
        manifest = target / ENSEMBLE / str(number) / RELEASE_FILE
        write_json(manifest, {**release, "version": number})

    return make
