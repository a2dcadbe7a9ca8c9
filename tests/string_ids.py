"""A world whose items are named by integers in one cascade and by strings in the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cascade.spec import Sizes
from tests.cascades import BAGS, Cascade, raw_rows, string_id, table_of

WORLD: dict[str, Any] = {"items": 300, "users": 40, "sizes": Sizes(100, 40, 10), "index": "flat"}
STRINGS = replace(BAGS, string_ids=True)
Twins = tuple[Cascade, Cascade]


def make_twins(make_cascade: Callable[..., Cascade], **options: Any) -> Twins:
    """The integers, and the strings."""
    integers, strings = (
        make_cascade(schema=schema, **WORLD, **options) for schema in (BAGS, STRINGS)
    )
    return integers, strings


def named(ids: Any) -> list[list[bytes]]:
    """Integer ids [B, R] as the twin with strings answers them."""
    return [[b"" if i < 0 else string_id(i).encode() for i in row] for row in ids.tolist()]


def new_items(cascade: Cascade, path: Path, ids: pa.Array) -> Path:
    """A Parquet file of raw items."""
    rows = raw_rows(cascade.schema, "item", len(ids), np.random.default_rng(7))
    table = table_of(cascade.schema, "item", *rows)
    pq.write_table(table.append_column("item_id", ids), path)
    return path
