"""`python -m export catalogue --repository DIR --url HOST:PORT --checkpoints DIR --add FILE`.

Publishes a release with the models of the live one and another catalogue: new items come from a
Parquet file (`item_id` and the raw features by name), the ids of those that leave from a text file,
one a line. An item that is there already is replaced. Only what changed is computed; the index
keeps its lists, so after large changes `python -m export publish` finds more.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cascade.artifact import Array, ArtifactError
from cascade.encoding import Encoder
from cascade.errors import run
from export.artifacts.stage_files import Catalogue
from export.releases.command import add_server, publisher, report, say
from export.releases.refresh import Change, Refresh, change
from export.releases.repository import Repository


def read_items(path: Path, encoder: Encoder) -> Catalogue:
    """New items, encoded.

    Raises:
        ArtifactError: the file or a column of it is missing, or an id is none.
    """
    if not path.exists():
        raise ArtifactError(f"there is no file {path}")
    names = [feature.name for feature in encoder.schema.side("item")]
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ArtifactError(f"{path} is not Parquet: {error}") from error
    if missing := [name for name in ("item_id", *names) if name not in table.column_names]:
        raise ArtifactError(
            f"{path} lacks the columns {missing}; items have item_id and {', '.join(names)}"
        )
    ids = table["item_id"]
    if not pa.types.is_integer(ids.type) or ids.null_count:
        raise ArtifactError(f"{path}: item_id is {ids.type} with {ids.null_count} nulls, not int64")
    if len(table) and int(np.min(ids.to_numpy())) < 0:
        raise ArtifactError(f"{path}: a negative item_id; -1 stands for no item")
    dense, codes = encoder.encode_table("item", table)
    return Catalogue(dense, codes, ids.to_numpy().astype(np.int64), table.select(names))


def read_ids(path: Path) -> Array:
    """int64 [n] from a text file.

    Raises:
        ArtifactError: there is no such file, or a line is no id.
    """
    if not path.exists():
        raise ArtifactError(f"there is no file {path}")
    found = []
    for number, line in enumerate(path.read_text().split("\n"), 1):
        text = line.strip()
        if text and not text.isdecimal():
            raise ArtifactError(f"{path}:{number}: {text!r} is no item id")
        if text:
            found.append(int(text))
    return np.array(found, np.int64)


def nothing(encoder: Encoder) -> Catalogue:
    """A catalogue without items."""
    schema = encoder.schema
    return Catalogue(
        np.zeros((0, schema.dense_width("item")), np.float32),
        np.zeros((0, schema.ids_width("item")), np.int64),
        np.zeros(0, np.int64),
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m export catalogue", description=__doc__)
    add_server(parser)
    parser.add_argument("--checkpoints", type=Path, required=True, help="of the live release")
    parser.add_argument("--add", type=Path, help="Parquet file of new items")
    parser.add_argument("--remove", type=Path, help="text file of item ids")
    args = parser.parse_args()
    if args.add is None and args.remove is None:
        parser.error("give --add, --remove or both")

    def make(target: Path, number: int) -> None:
        live = Repository(args.repository).live
        if live is None:
            raise ArtifactError(f"{args.repository} has no release: python -m export publish")
        from_live = Refresh(args.repository, live, args.checkpoints)
        added = read_items(args.add, from_live.encoder) if args.add else nothing(from_live.encoder)
        removed = read_ids(args.remove) if args.remove else np.zeros(0, np.int64)
        changed: Change = change(from_live.item_ids, added, removed)
        say(f"{(~changed.keep).sum():,} items leave, {len(added):,} come")
        from_live.write(target, number, changed)

    report(publisher(args).publish(make))


if __name__ == "__main__":
    run(main)
