"""`--data SPEC` -> a prepared folder, made anew or found ready.

`write` reads the source once. On the way it counts the values of the training rows, numbers the
items and spills what remains of a row to temporary Parquet files, which a second pass encodes. The
values of the items' features are counted on the source's own list where it has one, so that an item
without any row still has its own row of the embedding table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from cascade.data.dataset import FORMAT, Dataset
from cascade.data.distinct import DistinctItems, DistinctUsers, ListedItems, Vocabularies
from cascade.data.opening import open_source
from cascade.data.parts import (
    fixed_size_list,
    read_groups,
    regrouped,
    row_groups,
    write_file,
    write_parts,
)
from cascade.data.past import ItemPast, OfItems, told
from cascade.data.source import (
    SPLITS,
    BadRows,
    DataError,
    Policy,
    Source,
    Split,
    check_tasks,
    knows_truth,
    labels,
    probabilities,
    task_columns,
    times,
    titles,
    typed,
    user_column,
)
from cascade.encoding import Encoder
from cascade.errors import writing
from cascade.schema import Schema


def prepare(
    spec: str,
    root: Path | str,
    bad_rows: Policy = "error",
    min_count: int | None = None,
    buckets: int | None = None,
    schema_file: Path | None = None,
) -> Dataset:
    """Prepare what `--data` names, or reuse the folder if it was made from just that.

    The folder appears under its name only when it is complete. One run at a time may write it.

    Args:
        spec: as `cascade.data.opening.SPEC` says.
        root: the folder to write. One that holds anything else is refused.
        bad_rows: `error` stops at the first malformed row, `skip` leaves such rows out and counts
            them.
        min_count: a value seen less often in training shares the out-of-vocabulary id; None: as
            the source's schema says.
        buckets: hash the values of every feature into so many ids, and keep no vocabulary.
        schema_file: the YAML file that says what the columns of `table:` are.
    """
    root = Path(root)
    bad = BadRows(bad_rows)
    source = open_source(spec, bad, schema_file)
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
    count, first = dataset.source["bad_row_count"], dataset.source["bad_row"]
    if count:
        print(f"{count:,} malformed rows were left out; the first: {first}", file=sys.stderr)
    for note in dataset.source.get("notes", ()):
        print(f"{root}: {note}", file=sys.stderr)
    return dataset


def prepare_as(options: argparse.Namespace, root: Path) -> Dataset:
    """`prepare` by the options of `add_arguments`."""
    choices = (options.bad_rows, options.min_count, options.hash_buckets)
    return prepare(options.data, root, *choices, options.schema)


def _chosen(schema: Schema, min_count: int | None, buckets: int | None) -> Schema:
    """The schema with these choices for its categories."""
    chosen: dict[str, Any] = {} if min_count is None else {"min_count": min_count}
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
    for left_over in filter(Path.exists, (partial, old)):
        shutil.rmtree(left_over)
    partial.mkdir(parents=True)
    try:
        with writing(root):
            counts = write(source, schema, partial)
            said = {"log": getattr(source, "log", None), "notes": getattr(source, "notes", [])}
            left_out = {"bad_row_count": bad.count, "bad_row": bad.first}
            description = {**made_from, **counts, **said, **left_out}
            (partial / "source.json").write_text(json.dumps(description, indent=1) + "\n")
    except BaseException as error:
        shutil.rmtree(partial)
        if isinstance(error, DataError) and bad.count:
            raise DataError(
                f"{error}; {bad.count:,} malformed rows were left out, the first: {bad.first}"
            ) from error
        raise
    if root.exists():
        root.rename(old)
    partial.rename(root)
    shutil.rmtree(old, ignore_errors=True)


def write(source: Source, schema: Schema, folder: Path) -> dict[str, Any]:
    """Write everything but source.json into an empty folder; -> what source.json has to say of it:
    rows and positives by split, items, users (0 where the source does not say who they are),
    whether times, probabilities and the truth of all tasks are known. The schema is the source's,
    or the same features with their categories encoded another way."""
    check_tasks(schema)
    raw = folder / "raw"
    raw.mkdir()
    listed = source.catalogue()
    known = told(source, schema)
    items = DistinctItems(known, raw / "items") if listed is None else ListedItems(listed)
    of_rows = Vocabularies(schema, ("user", "item") if listed is None else ("user",))
    users = DistinctUsers()
    rows, positives = _spill(source, schema, items, users, of_rows, raw)
    fitted = of_rows.fitted()
    if listed is not None:
        of_items = Vocabularies(schema, ("item",))
        of_items.add(listed)
        fitted |= of_items.fitted()
    encoder = Encoder.fit(schema, fitted)
    encoder.save(folder)
    wanted: OfItems | None = getattr(source, "item_past", None)
    past = _item_past(wanted, raw / "train") if wanted else None
    listing = items.tables() if past is None else past.beside(items.tables(), items.count)
    tables = _told(regrouped(listing), "encode items", items.count, "items")
    encoded = (_encoded_items(encoder, table) for table in tables)
    if not write_file(folder / "catalogue.parquet", encoded):
        raise DataError("the item list is empty")
    for split in SPLITS:
        groups = (group.to_table() for group in row_groups(raw / split))
        tables = _told(groups, f"encode {split}", rows[split])
        made = (_encoded_rows(encoder, table, split, past) for table in tables)
        write_parts(folder / split, made)
    stored = row_groups(raw / "train")[0].physical_schema.names
    shutil.rmtree(raw)
    return {
        "rows": rows,
        "positives": positives,
        "items": items.count,
        "users": users.count,
        "times": "@time" in stored,
        "probability": "probability" in stored,
        **({"truth": True} if knows_truth(schema, stored) else {}),
        **({"item_past": wanted.described()} if wanted else {}),
    }


def _spill(
    source: Source,
    schema: Schema,
    items: DistinctItems | ListedItems,
    users: DistinctUsers,
    vocabularies: Vocabularies,
    folder: Path,
) -> tuple[dict[Split, int], dict[Split, int]]:
    """The first pass: rows as they came, with a row of the catalogue in place of the item. -> how
    many rows there are, and how many of them are positives, by split."""
    positives: dict[Split, int] = dict.fromkeys(SPLITS, 0)

    def spilled(split: Split) -> Iterator[pa.Table]:
        start = 0
        for chunk in source.chunks(split):
            if split == "train":
                vocabularies.add(chunk)
            columns = {"label": labels(chunk, split, start), "item": items.rows(chunk)}
            columns |= task_columns(schema, chunk, split, start)
            positives[split] += int(pc.sum(columns["label"]).as_py() or 0)
            if "probability" in chunk.column_names:
                columns["probability"] = probabilities(chunk, split, start)
            if "@user" in chunk.column_names:
                columns["@user"] = users.rows(user_column(chunk))
            if "@time" in chunk.column_names:
                columns["@time"] = times(chunk, split, start)
            features = typed(schema.side("user"), chunk)
            columns |= zip(features.column_names, features.columns, strict=True)
            start += chunk.num_rows
            yield pa.table(columns)
            bar.update(chunk.num_rows)

    rows: dict[Split, int] = {}
    with _progress("read", getattr(source, "total_rows", None)) as bar:
        for split in SPLITS:
            found = write_parts(folder / split, spilled(split))
            if not found:
                raise DataError(
                    f"the input is too small: no row is left for the {split} split "
                    f"({', '.join(f'{n} in {s}' for s, n in rows.items()) or 'none was read'})"
                )
            rows[split] = found
    return rows, positives


def _item_past(wanted: OfItems, train: Path) -> ItemPast:
    """The past of the items of the spilled training rows."""
    if "@time" not in row_groups(train)[0].physical_schema.names:
        raise DataError("the past of items is wanted, and the source gives no @time")
    rows = read_groups(row_groups(train), ["item", "label", "@time"])
    return ItemPast(rows=rows, **wanted.described())


def _encoded_rows(
    encoder: Encoder, table: pa.Table, split: Split, past: ItemPast | None
) -> pa.Table:
    """Spilled rows -> the rows of a split."""
    raw = [feature.name for feature in encoder.schema.side("user")]
    dense, ids = encoder.encode_table("user", table)
    columns = {name: table[name] for name in table.column_names if name not in raw}
    columns["user_dense"] = fixed_size_list(dense)
    columns["user_ids"] = fixed_size_list(ids.astype(np.int32))
    if split != "train":
        columns |= {name: table[name] for name in raw}
    elif past is not None:
        when = (table[name].to_numpy() for name in ("item", "@time"))
        columns["item_past"] = fixed_size_list(past.encoded(*when))
    return pa.table(columns)


def _encoded_items(encoder: Encoder, table: pa.Table) -> pa.Table:
    """Raw items with their `item_id` -> rows of catalogue.parquet."""
    features = typed(encoder.schema.side("item"), table)
    dense, ids = encoder.encode_table("item", features)
    kind = pa.string() if encoder.schema.string_ids else pa.int64()
    columns = {"item_id": table["item_id"].cast(kind)}
    if "title" in table.column_names:
        columns["title"] = titles(table)
    columns |= zip(features.column_names, features.columns, strict=True)
    columns |= {"dense": fixed_size_list(dense), "ids": fixed_size_list(ids.astype(np.int32))}
    return pa.table(columns)


def _progress(what: str, total: int | None, unit: str = "rows") -> Any:
    return tqdm(desc=what, total=total, unit=f" {unit}", unit_scale=True, mininterval=0.5)


def _told(
    tables: Iterable[pa.Table], what: str, total: int, unit: str = "rows"
) -> Iterator[pa.Table]:
    """The same tables; their rows move a bar."""
    with _progress(what, total, unit) as bar:
        for table in tables:
            yield table
            bar.update(table.num_rows)
