"""`--data SPEC` -> a prepared folder, made anew or found ready."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from cascade.data.criteo import Criteo
from cascade.data.dataset import FORMAT, Dataset
from cascade.data.movielens import MovieLens
from cascade.data.source import BadRows, DataError, Policy, Source
from cascade.data.synthetic import Synthetic
from cascade.data.write import write
from cascade.schema import Schema

SPEC = "criteo:PATH, movielens:PATH or synthetic[:rows=…,items=…,seed=…]"


def prepare(
    spec: str,
    root: Path | str,
    bad_rows: Policy = "error",
    min_count: int | None = None,
    buckets: int | None = None,
) -> Dataset:
    """Prepare what `--data` names, or reuse the folder if it was made from just that.

    The folder appears under its name only when it is complete. One run at a time may write it.

    Args:
        spec: criteo:PATH, movielens:PATH or synthetic[:rows=…,items=…,seed=…].
        root: the folder to write. One that holds anything else is refused.
        bad_rows: `error` stops at the first malformed row, `skip` leaves such rows out and counts
            them.
        min_count: a value seen less often in training shares the out-of-vocabulary id; None: as
            the source's schema says.
        buckets: hash the values of every feature into so many ids, and keep no vocabulary.

    Raises:
        DataError: the input cannot be read as named, or `root` holds something else.
    """
    root = Path(root)
    bad = BadRows(bad_rows)
    source = open_source(spec, bad)
    schema = _chosen(source.schema, min_count, buckets)
    made_from = {
        "format": FORMAT,
        "fingerprint": source.fingerprint,
        "schema": schema.to_dict(),
        "bad_rows": bad_rows,
    }
    found = _existing(root)
    if any(found.get(key) != value for key, value in made_from.items()):
        _make(source, schema, bad, made_from, root.resolve())
    dataset = Dataset.open(root)
    if dataset.bad_rows:
        first = dataset.source["bad_row"]
        print(
            f"{dataset.bad_rows:,} malformed rows were left out; the first: {first}",
            file=sys.stderr,
        )
    return dataset


def open_source(spec: str, bad: BadRows) -> Source:
    """The reader that `spec` names; malformed rows go to `bad`."""
    kind, _, rest = spec.partition(":")
    if kind == "synthetic":
        return Synthetic.parse(rest)
    if kind == "criteo" and rest:
        return Criteo(Path(rest), bad)
    if kind == "movielens" and rest:
        return MovieLens(Path(rest), bad)
    raise DataError(f"--data {spec!r} is not understood; give {SPEC}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every program that prepares data."""
    add = parser.add_argument
    add("--data", required=True, metavar="SPEC", help=SPEC)
    add(
        "--bad-rows",
        choices=("error", "skip"),
        default="error",
        help="stop at the first malformed row, or leave such rows out and count them",
    )
    add(
        "--min-count",
        type=int,
        metavar="N",
        help="rarer values of a category share the out-of-vocabulary id",
    )
    add(
        "--hash-buckets",
        type=int,
        metavar="N",
        help="hash each category into N ids; no vocabularies",
    )


def prepare_as(options: argparse.Namespace, root: Path) -> Dataset:
    """`prepare` by the options of `add_arguments`."""
    return prepare(options.data, root, options.bad_rows, options.min_count, options.hash_buckets)


def _chosen(schema: Schema, min_count: int | None, buckets: int | None) -> Schema:
    """The schema with these choices for its categories."""
    chosen: dict[str, Any] = {}
    if min_count is not None:
        chosen["min_count"] = min_count
    if buckets is not None:
        chosen |= {"encoding": "hash", "buckets": buckets}
    features = (f if f.kind == "dense" else replace(f, **chosen) for f in schema.features)
    return replace(schema, features=tuple(features))


def _existing(root: Path) -> dict[str, Any]:
    """What a prepared folder says it was made from; nothing where there is no folder yet."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return {}
    if not (root / "source.json").is_file():
        raise DataError(
            f"{root} exists and is not a prepared data set, so it is not overwritten; choose "
            "another folder, or empty this one"
        )
    description: dict[str, Any] = json.loads((root / "source.json").read_text())
    return description


def _make(
    source: Source, schema: Schema, bad: BadRows, made_from: dict[str, Any], root: Path
) -> None:
    """Write beside `root`, then change names: a run that is killed leaves no half of a folder."""
    partial, old = (root.with_name(f"{root.name}.{suffix}") for suffix in ("partial", "old"))
    for left_over in (partial, old):
        if left_over.exists():
            shutil.rmtree(left_over)
    partial.mkdir(parents=True)
    try:
        counts = write(source, schema, partial)
    except BaseException as error:
        shutil.rmtree(partial)
        if isinstance(error, DataError) and bad.count:
            raise DataError(
                f"{error}; {bad.count:,} malformed rows were left out, the first: {bad.first}"
            ) from error
        raise
    description = {**made_from, **counts, "bad_row_count": bad.count, "bad_row": bad.first}
    (partial / "source.json").write_text(json.dumps(description, indent=1) + "\n")
    if root.exists():
        root.rename(old)
    partial.rename(root)
    shutil.rmtree(old, ignore_errors=True)
