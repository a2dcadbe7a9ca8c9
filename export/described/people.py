"""Users for a described cascade: a sample of the team's table, or drawn from the vocabularies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cascade.artifact import Array
from cascade.located import Node
from cascade.schema import Feature, Schema, Side
from cascade.training import bundle
from cascade.training.bundle import USERS, as_sent
from export.described import tables
from export.described.features import Features

DRAWN = 1024
Encode = Callable[[Side, pa.Table], tuple[Array, Array]]


def sample(raw: pa.Table) -> pa.Table:
    """At most `USERS` rows, drawn from the whole table."""
    if len(raw) <= USERS:
        return raw
    return raw.take(np.sort(np.random.default_rng(0).choice(len(raw), USERS, replace=False)))


def drawn(features: Features) -> pa.Table:
    """Users whose values are drawn one by one, each as likely as the next."""
    random = np.random.default_rng(0)
    return pa.table({f.name: _column(features, f, random) for f in features.schema.side("user")})


def write(raw: pa.Table, schema: Schema, folder: Path) -> None:
    """Write users.parquet, and users.jsonl as clients send them."""
    pq.write_table(raw, folder / "users.parquet")
    with (folder / "users.jsonl").open("w") as file:
        for user in as_sent(schema, raw):
            file.write(json.dumps(user) + "\n")


def write_held_out(
    node: Node, features: Features, encode: Encode, ids: pa.Array, folder: Path
) -> None:
    """Write the labelled rows by which cheaper variants are judged: `file`, `item`, `label`. Raises
    LocatedError: an item that is not there, a label other than 0 and 1."""
    node.only("file", "item", "label")
    file, wanted = node.take("file", lambda n: n), features.wanted("user")
    item, label = (node.take("item", Node.text, "item_id"), node.take("label", Node.text, "label"))
    table = tables.read(file, {*features.texts("user"), item, label})
    features.check(table)
    rows = tables.rows_of(file, item, tables.column(file, table, item), ids)
    labels = tables.labels(file, label, tables.column(file, table, label))
    dense, codes = encode("user", tables.features(file, table, wanted))
    bundle.write_held_out(folder, dense, codes, rows, labels)


def _column(features: Features, feature: Feature, random: np.random.Generator) -> Any:
    if feature.kind == "dense":
        spread = random.normal(feature.mean, feature.std, DRAWN)
        return np.maximum(spread, 0) if feature.encoding == "log1p" else spread
    if feature.encoding == "vocabulary":
        known = [value.decode() for value in features.encoder.vocabulary(feature)]
    elif feature.encoding == "integer":
        known = [str(i - feature.offset) for i in range(feature.cardinality)]
    else:
        known = [str(i) for i in range(max(DRAWN, feature.buckets))]
    if not feature.multivalued:
        return pa.array([known[i] for i in random.integers(len(known), size=DRAWN)])
    least = feature.length if feature.missing_id < 0 else 1
    lengths = random.integers(least, feature.length + 1, size=DRAWN)
    lists = ([known[i] for i in random.integers(len(known), size=n)] for n in lengths)
    return pa.array(["|".join(members) for members in lists])
