"""`python -m export rewire --repository A --topology fused --out B`: a release, wired otherwise.

The files of the stages are linked, not copied; pbtxt.pbtxt and model.py are written anew.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from cascade import pbtxt
from cascade.config import Product, Serving, of_release
from cascade.errors import run
from cascade.files import link, write_json
from cascade.release import RELEASE_FILE, newest_version, read_release
from cascade.schema import Schema
from cascade.server.threads import default_instances
from cascade.spec import ENSEMBLE, RETRIEVE, STAGES, TOPOLOGIES, sizes_from, stage_path
from cascade.store import absolute_url


def rewire(source: Path, target: Path, serving: Serving, product: Product | None = None) -> None:
    """Write the newest release of a repository into another one.

    Args:
        serving: the topology and all other settings of the new one; see `serving_of`.
        product: None = as in the source.

    Raises:
        ArtifactError: the source cannot be read, or the target is wired in another way.
    """
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


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m export rewire", description=__doc__)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="repository to write")
    parser.add_argument("--topology", choices=TOPOLOGIES, required=True)
    parser.add_argument("--instances", type=int, help="of each process [by the cores here]")
    parser.add_argument("--threads", type=int, help="compute threads of each [as it is]")
    parser.add_argument("--store", metavar="URL", help="of users by id; '' = none [as it is]")
    args = parser.parse_args()
    serving, product = settings_of(args.repository)
    serving = replace(serving, topology=args.topology, instances=default_instances(args.topology))
    changes = {key: getattr(args, key) for key in ("instances", "threads")}
    serving = replace(serving, **{k: v for k, v in changes.items() if v is not None})
    if args.store is not None:
        product = replace(product, store=absolute_url(args.store))
    rewire(args.repository, args.out, serving, product)
    print(f"{args.out}: {args.topology}, {serving.instances} instances of each process")


if __name__ == "__main__":
    run(main)
