"""`python -m export rewire --repository A --topology fused --out B`: a release, wired otherwise.

The files of the stages are linked, not copied; pbtxt.pbtxt and model.py are written anew.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from cascade import pbtxt
from cascade.errors import run
from cascade.files import link, write_json
from cascade.release import RELEASE_FILE, newest_version, read_release
from cascade.schema import Schema
from cascade.server.threads import default_instances
from cascade.spec import ENSEMBLE, RETRIEVE, STAGES, TOPOLOGIES, Serving, sizes_from, stage_path
from cascade.store.backend import absolute


def rewire(source: Path, target: Path, serving: Serving) -> None:
    """Write the newest release of a repository into another one.

    Args:
        serving: the topology and all other knobs of the new one; see `serving_of`.

    Raises:
        ArtifactError: the source cannot be read, or the target is wired in another way.
    """
    version = newest_version(source)
    release = read_release(source, version)
    folders = {name: source / stage_path(release["topology"], name, version) for name in STAGES}
    schema = Schema.load(folders[RETRIEVE] / "schema.json")
    runs = pbtxt.runs_of(release, serving)
    pbtxt.write(target, schema, sizes_from(release["sizes"]), serving, version, runs)
    for name, folder in folders.items():
        _link(folder, target / stage_path(serving.topology, name, version))
    titles = source / ENSEMBLE / str(version) / "titles.csv"
    if titles.exists():
        shutil.copyfile(titles, target / ENSEMBLE / str(version) / "titles.csv")
    wired = {**release, "topology": serving.topology, "serving": vars(serving)}
    write_json(target / ENSEMBLE / str(version) / RELEASE_FILE, wired)


def serving_of(repository: Path) -> Serving:
    """How the newest release of a repository is served."""
    release = read_release(repository, newest_version(repository))
    return Serving(**release.get("serving", {}))


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
    serving = serving_of(args.repository)
    serving = replace(serving, topology=args.topology, instances=default_instances(args.topology))
    changes = {key: getattr(args, key) for key in ("instances", "threads")}
    changes["store"] = None if args.store is None else absolute(args.store)
    serving = replace(serving, **{k: v for k, v in changes.items() if v is not None})
    rewire(args.repository, args.out, serving)
    print(f"{args.out}: {args.topology}, {serving.instances} instances of each process")


if __name__ == "__main__":
    run(main)
