"""Raw rows of a source -> the files of a prepared folder, in two passes.

`write` reads the source once. On the way it counts the values of the training rows, numbers the
items and spills what remains of a row to temporary Parquet files. Then the vocabularies are known,
and a second pass over those files encodes.

The vocabularies of the users' features are counted on the training split. Those of the items'
features are counted on the source's own list where it has one, so that an item without any row
still has its own row of the embedding table.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from cascade.data.distinct import DistinctItems, ListedItems, Vocabularies
from cascade.data.parts import fixed_size_list, regrouped, row_groups, write_file, write_parts
from cascade.data.source import SPLITS, DataError, Source, Split, typed
from cascade.encoding import Encoder
from cascade.schema import Schema


def write(source: Source, schema: Schema, folder: Path) -> dict[str, Any]:
    """Write everything but source.json into an empty folder.

    Args:
        schema: the source's, or the same features with their categories encoded another way.

    Returns:
        what source.json has to say of it: rows by split, items, whether probabilities are known.

    Raises:
        DataError: a row cannot be read, or a split has none.
    """
    raw = folder / "raw"
    raw.mkdir()
    listed = source.catalogue()
    items = DistinctItems(schema, raw / "items") if listed is None else ListedItems(listed)
    of_rows = Vocabularies(schema, ("user", "item") if listed is None else ("user",))
    rows = _spill(source, schema, items, of_rows, raw)
    fitted = of_rows.fitted()
    if listed is not None:
        of_items = Vocabularies(schema, ("item",))
        of_items.add(listed)
        fitted |= of_items.fitted()
    encoder = Encoder.fit(schema, fitted)
    encoder.save(folder)
    with _progress("encode items", items.count, "items") as bar:
        encoded = (_encoded_items(encoder, t) for t in _told(bar, regrouped(items.tables())))
        if not write_file(folder / "catalogue.parquet", encoded):
            raise DataError("the item list is empty")
    for split in SPLITS:
        with _progress(f"encode {split}", rows[split]) as bar:
            groups = _told(bar, (group.to_table() for group in row_groups(raw / split)))
            keep_raw = split != "train"
            write_parts(folder / split, (_encoded_rows(encoder, t, keep_raw) for t in groups))
    probability = "probability" in row_groups(raw / "train")[0].physical_schema.names
    shutil.rmtree(raw)
    return {"rows": rows, "items": items.count, "probability": probability}


def _spill(
    source: Source,
    schema: Schema,
    items: DistinctItems | ListedItems,
    vocabularies: Vocabularies,
    folder: Path,
) -> dict[Split, int]:
    """The first pass: rows as they came, with a row of the catalogue in place of the item."""
    rows: dict[Split, int] = {}
    with _progress("read", getattr(source, "total_rows", None)) as bar:
        for split in SPLITS:
            counted = vocabularies if split == "train" else None
            chunks = _told(bar, source.chunks(split))
            tables = (_spilled(schema, chunk, items, counted) for chunk in chunks)
            found = write_parts(folder / split, tables)
            if not found:
                raise DataError(
                    f"the input is too small: no row is left for the {split} split "
                    f"({', '.join(f'{n} in {s}' for s, n in rows.items()) or 'none was read'})"
                )
            rows[split] = found
    return rows


def _spilled(
    schema: Schema,
    chunk: pa.Table,
    items: DistinctItems | ListedItems,
    vocabularies: Vocabularies | None,
) -> pa.Table:
    if vocabularies is not None:
        vocabularies.add(chunk)
    columns = {"label": chunk["label"].cast(pa.float32()), "item": pa.array(items.rows(chunk))}
    if "probability" in chunk.column_names:
        columns["probability"] = chunk["probability"].cast(pa.float32())
    users = typed(schema.side("user"), chunk)
    return pa.table({**columns, **{name: users[name] for name in users.column_names}})


def _encoded_rows(encoder: Encoder, table: pa.Table, keep_raw: bool) -> pa.Table:
    """Spilled rows -> the rows of a split."""
    raw = [feature.name for feature in encoder.schema.side("user")]
    dense, ids = encoder.encode_table("user", table)
    columns = {name: table[name] for name in table.column_names if name not in raw}
    columns["user_dense"] = fixed_size_list(dense)
    columns["user_ids"] = fixed_size_list(ids.astype(np.int32))
    return pa.table({**columns, **{name: table[name] for name in raw if keep_raw}})


def _encoded_items(encoder: Encoder, table: pa.Table) -> pa.Table:
    """Raw items with their `item_id` -> rows of catalogue.parquet."""
    features = typed(encoder.schema.side("item"), table)
    dense, ids = encoder.encode_table("item", features)
    columns = {"item_id": table["item_id"].cast(pa.int64())}
    if "title" in table.column_names:
        columns["title"] = table["title"].cast(pa.string())
    columns |= {name: features[name] for name in features.column_names}
    columns["dense"] = fixed_size_list(dense)
    columns["ids"] = fixed_size_list(ids.astype(np.int32))
    return pa.table(columns)


def _progress(what: str, total: int | None, unit: str = "rows") -> Any:
    return tqdm(desc=what, total=total, unit=f" {unit}", unit_scale=True, mininterval=0.5)


def _told(bar: Any, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same tables; their rows move the bar."""
    for table in tables:
        yield table
        bar.update(table.num_rows)
