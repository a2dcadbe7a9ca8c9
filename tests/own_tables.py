"""A shop's own tables, as a user would have them: CSV or Parquet beside a YAML file."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cascade.data.opening import open_source
from cascade.data.source import SPLITS, BadRows

FIRST_ITEM = 2**60 + 1  # beyond what a float can hold
ITEMS, USERS, ROWS = 40, 30, 600

SCHEMA = """\
interactions: clicks.csv
users: users.csv
items: items.csv
item: item_id
user: user_id
label: clicked
time: at
title: name
features:
- {name: user, side: user, kind: categorical, column: user_id}
- {name: city, side: user, kind: categorical}
- {name: age, side: user, kind: dense, encoding: log1p}
- {name: device, side: user, kind: categorical, encoding: hash, buckets: 16}
- {name: seen, side: user, kind: sequence, length: 3}
- {name: product, side: item, kind: categorical, column: item_id}
- {name: price, side: item, kind: dense, encoding: log1p}
- {name: tags, side: item, kind: bag, length: 2}
"""


STRING_SCHEMA = SCHEMA.replace("item: item_id\n", "item: item_id\nitem_ids: strings\n")


def shop(rows: int = ROWS, seed: int = 0) -> dict[str, dict[str, list[Any]]]:
    """-> `clicks`, `users` and `items`, by column. Users of a city like the items of a tag."""
    random = np.random.default_rng(seed)
    items = [FIRST_ITEM + 7 * number for number in range(ITEMS)]
    tags = [["a", "b"][number % 2] for number in range(ITEMS)]
    cities = [["Oslo", "Rome"][number % 2] for number in range(USERS)]
    clicks: dict[str, list[Any]] = {
        key: [] for key in ("user_id", "item_id", "clicked", "at", "device", "seen")
    }
    for number in range(rows):
        user = int(random.integers(USERS))
        item = int(ITEMS * random.random() ** 1.5)
        likely = 0.8 if user % 2 == item % 2 else 0.1
        hour = f"{number % 24:02d}:00:00"
        values = (
            f"u{user}",
            items[item],
            int(random.random() < likely),
            f"2026-{1 + number // 480:02d}-{1 + number % 480 // 24:02d} {hour}",
            ["phone", "desk"][number % 2],
            "|".join(str(x) for x in random.integers(0, 9, number % 5)),
        )
        for column, value in zip(clicks.values(), values, strict=True):
            column.append(value)
    return {
        "clicks": clicks,
        "users": {
            "user_id": [f"u{number}" for number in range(USERS)],
            "city": cities,
            "age": [20 + number if number % 7 else None for number in range(USERS)],
        },
        "items": {
            "item_id": items,
            "name": [f'thing "{number}", nice' for number in range(ITEMS)],
            "price": [round(float(x), 2) for x in random.lognormal(2, 1, ITEMS)],
            "tags": [f"{tag}|t{number % 5}" for number, tag in enumerate(tags)],
        },
    }


def with_string_ids(tables: dict[str, dict[str, list[Any]]]) -> None:
    """Name the items of a shop by strings."""
    for table in ("clicks", "items"):
        tables[table]["item_id"] = [f"sku-{item}" for item in tables[table]["item_id"]]


def write_csv(path: Path, columns: dict[str, Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def write_parquet(path: Path, columns: dict[str, Any]) -> None:
    pq.write_table(pa.table(columns), path)


def write_shop(
    folder: Path,
    schema: str = SCHEMA,
    change: Callable[[dict[str, dict[str, list[Any]]]], None] = lambda tables: None,
    rows: int = ROWS,
) -> Path:
    """Write the tables as CSV and the YAML file -> its path."""
    tables = shop(rows)
    change(tables)
    for name, columns in tables.items():
        write_csv(folder / f"{name}.csv", columns)
    (folder / "schema.yaml").write_text(schema)
    return folder / "schema.yaml"


def raw(folder: Path, spec: str = "table", bad: BadRows | None = None) -> pa.Table:
    """All rows as the source gives them."""
    source = open_source(spec, bad or BadRows(), folder / "schema.yaml")
    source.catalogue()
    return pa.concat_tables([chunk for split in SPLITS for chunk in source.chunks(split)])
