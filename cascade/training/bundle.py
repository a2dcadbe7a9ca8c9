"""What a folder of checkpoints holds beside the models, so that export needs nothing else."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cascade.data.dataset import Dataset, RawRows
from cascade.data.parts import fixed_size_list
from cascade.data.sample import distinct_users
from cascade.data.source import Split
from cascade.files import link
from cascade.schema import Schema
from cascade.training.negatives import Negatives, validation

USERS = 4096
HELD_OUT_FILE = "held_out.parquet"
VERDICT_FILE = "verdict.json"  # what `cascade.evaluation.trained` writes
HELD_OUT_ROWS = 50_000
HELD_OUT: tuple[Split, ...] = ("validation", "test")


def write(dataset: Dataset, folder: Path, negatives: Negatives | None = None) -> None:
    """Write the shared files of a folder of checkpoints. `negatives` stand beside the held-out rows
    where those are positives only.

    schema.json, vocabulary/   the encoder
    catalogue.parquet          the items
    users.parquet              raw held-out users, drawn over those of the validation split, then of
                               the test split: to tune the index and check parity
    users.jsonl                the same as a client would send them: for examples and benchmarks
    titles.csv                 item_id,title where the source has titles
    """
    folder.mkdir(parents=True, exist_ok=True)
    dataset.encoder.save(folder)
    (folder / "catalogue.parquet").unlink(missing_ok=True)
    link(dataset.root / "catalogue.parquet", folder / "catalogue.parquet")
    users = _users(dataset)
    pq.write_table(users, folder / "users.parquet")
    with (folder / "users.jsonl").open("w") as file:
        for user in as_sent(dataset.schema, users):
            file.write(json.dumps(user) + "\n")
    rows = validation(dataset, HELD_OUT_ROWS, negatives)
    write_held_out(folder, rows.user_dense, rows.user_ids, rows.item, rows.label)
    titles = dataset.titles()
    if titles is not None:
        with (folder / "titles.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("item_id", "title"))
            writer.writerows(zip(dataset.item_ids().tolist(), titles, strict=True))


def write_held_out(folder: Path, dense: Any, ids: Any, item: Any, label: Any) -> None:
    """Rows that no model was trained on: user_dense [n, F_dense], user_ids [n, C], item int64 [n]
    (catalogue rows), label [n]."""
    columns = {
        "user_dense": fixed_size_list(np.asarray(dense, np.float32)),
        "user_ids": fixed_size_list(np.asarray(ids, np.int32)),
        "item": np.asarray(item, np.int64),
        "label": np.asarray(label, np.float32),
    }
    pq.write_table(pa.table(columns), folder / HELD_OUT_FILE)


def _users(dataset: Dataset) -> pa.Table:
    """`USERS` raw rows, by feature name; missing as NaN or empty. Prints how many users they are
    of."""
    drawn: list[RawRows] = []
    for split in HELD_OUT:
        left = USERS - sum(len(rows.label) for rows in drawn)
        if left:
            drawn.append(dataset.raw_sample(split, left))
    table = pa.concat_tables([_user_table(dataset.schema, rows) for rows in drawn])
    of = f" of {distinct_users(*drawn):,} users" if dataset.has_users else ""
    print(f"users.parquet: {len(table):,} rows{of}")
    return table


def _user_table(schema: Schema, rows: RawRows) -> pa.Table:
    columns: dict[str, Any] = {f.name: rows.dense[:, i] for i, f in enumerate(schema.dense("user"))}
    for i, feature in enumerate(schema.ids("user")):
        columns[feature.name] = [value.decode() for value in rows.categorical[:, i]]
    return pa.table(columns)


def as_sent(schema: Schema, users: pa.Table) -> list[dict[str, Any]]:
    """Raw columns -> what a client sends: missing values left out, bags and sequences as lists."""
    lists = {feature.name for feature in schema.ids("user") if feature.multivalued}
    return [
        {
            name: value.split("|") if name in lists else value
            for name, value in user.items()
            if value != "" and value == value  # NaN differs from itself
        }
        for user in users.to_pylist()
    ]
