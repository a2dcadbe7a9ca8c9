"""Writes a release into another repository, in another topology."""

from __future__ import annotations

import shutil
from pathlib import Path

from cascade import pbtxt
from cascade.artifact import ArtifactError
from cascade.config import Product, Serving, of_release
from cascade.files import link, write_json
from cascade.release import RELEASE_FILE, newest_version, read_release
from cascade.schema import Schema
from cascade.spec import ENSEMBLE, RETRIEVE, STAGES, sizes_from, stage_path


def rewire(source: Path, target: Path, serving: Serving, product: Product | None = None) -> None:
    """Write the newest release of a repository into another one.

    Args:
        serving: the topology and all other settings of the new one; see `serving_of`.
        product: None = as in the source.

    Raises:
        ArtifactError: the source cannot be read, or is the target, or the target is wired in
            another way.
    """
    if target.resolve() == source.resolve():
        raise ArtifactError(f"{target} is the repository to read: write another one")
    version = newest_version(source)
    release = read_release(source, version)
    folders = {name: source / stage_path(release["topology"], name, version) for name in STAGES}
    schema = Schema.load(folders[RETRIEVE] / "schema.json")
    runs = pbtxt.runs_of(release, serving)
    product = product or of_release(release)[1]
    sizes = sizes_from(release["sizes"])
    pbtxt.write(target, schema, sizes, serving, version, runs, product=product)
    for name, folder in folders.items():
        _link(folder, target / stage_path(serving.topology, name, version))
    titles = source / ENSEMBLE / str(version) / "titles.csv"
    if titles.exists():
        shutil.copyfile(titles, target / ENSEMBLE / str(version) / "titles.csv")
    wired = {
        **release,
        "topology": serving.topology,
        "serving": vars(serving),
        "product": vars(product),
    }
    write_json(target / ENSEMBLE / str(version) / RELEASE_FILE, wired)


def settings_of(repository: Path) -> tuple[Serving, Product]:
    """The settings of the newest release of a repository."""
    return of_release(read_release(repository, newest_version(repository)))


def serving_of(repository: Path) -> Serving:
    """How the newest release of a repository is served."""
    return settings_of(repository)[0]


def _link(source: Path, target: Path) -> None:
    """Every file of a stage; a hard link where the file system has them."""
    for file in source.rglob("*"):
        if not file.is_file() or file.name == "model.py":
            continue
        name = target / file.relative_to(source)
        name.unlink(missing_ok=True)
        link(file, name)
