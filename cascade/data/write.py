"""Raw rows of a source -> the files of a prepared folder, in two passes.

The source is read once. On the way the values of the training rows are counted, items are
numbered, and what remains of a row goes to a temporary Parquet file. Then the vocabularies are
known, and a second pass over that file encodes.

Vocabularies are counted on the training split; those of the items on the source's own list where
it has one, so that an item which nobody has met yet still has its own row of the embedding table.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from cascade.data.items import DistinctItems, ListedItems
from cascade.data.parts import ROW_GROUP, PartWriter, fixed_size_list, read_tables
from cascade.data.source import SPLITS, DataError, Source, Split
from cascade.data.vocabulary import Vocabularies
from cascade.encoding import Encoder
from cascade.schema import Feature, Schema, Side


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
    listed = source.catalogue()
    counted: tuple[Side, ...] = ("user", "item") if listed is None else ("user",)
    vocabularies = Vocabularies(schema, counted)
    with PartWriter(raw / "items") as writer:
        items = DistinctItems(schema, writer) if listed is None else ListedItems(listed)
        rows, probability = _spill(source, schema, raw, vocabularies, items)
    fitted = vocabularies.fitted()
    if listed is not None:
        of_items = Vocabularies(schema, ("item",))
        of_items.add(_typed(schema.side("item"), listed))
        fitted |= of_items.fitted()
    encoder = Encoder.fit(schema, fitted)
    encoder.save(folder)
    tables = _numbered(read_tables(raw / "items")) if listed is None else _slices(listed)
    _write_catalogue(encoder, tables, items.count, folder / "catalogue.parquet")
    for split in SPLITS:
        with PartWriter(folder / split) as part, _progress(f"encode {split}", rows[split]) as bar:
            for table in read_tables(raw / split):
                part.add(_encoded(encoder, table, keep_raw=split != "train"))
                bar.update(table.num_rows)
    shutil.rmtree(raw)
    return {"rows": rows, "items": items.count, "probability": probability}


def _spill(
    source: Source,
    schema: Schema,
    folder: Path,
    vocabularies: Vocabularies,
    items: DistinctItems | ListedItems,
) -> tuple[dict[Split, int], bool]:
    """The first pass: rows as they came, with a row of the catalogue in place of the item."""
    rows: dict[Split, int] = {}
    probability = False
    with _progress("read", getattr(source, "total_rows", None)) as bar:
        for split in SPLITS:
            with PartWriter(folder / split) as writer:
                for chunk in source.chunks(split):
                    probability = "probability" in chunk.column_names
                    table, shown = _spilled(schema, chunk, items)
                    if split == "train":
                        vocabularies.add(shown)
                    writer.add(table)
                    bar.update(chunk.num_rows)
            if not writer.rows:
                raise DataError(
                    f"the input is too small: no row is left for the {split} split "
                    f"({', '.join(f'{n} in {s}' for s, n in rows.items()) or 'none was read'})"
                )
            rows[split] = writer.rows
    return rows, probability


def _spilled(
    schema: Schema, chunk: pa.Table, items: DistinctItems | ListedItems
) -> tuple[pa.Table, pa.Table]:
    """-> the rows to keep, and all their raw features as far as they are counted."""
    if isinstance(items, ListedItems):
        shown = _typed(schema.side("user"), chunk)
        rows = items.rows(chunk)
    else:
        shown = _typed(schema.features, chunk)
        rows = items.rows(shown)
    columns = {"label": chunk["label"].cast(pa.float32()), "item": pa.array(rows)}
    if "probability" in chunk.column_names:
        columns["probability"] = chunk["probability"].cast(pa.float32())
    columns |= {feature.name: shown[feature.name] for feature in schema.side("user")}
    return pa.table(columns), shown


def _typed(features: Iterable[Feature], table: pa.Table) -> pa.Table:
    """The raw columns of some features: float32 for dense, string for the others."""
    missing = [feature.name for feature in features if feature.name not in table.column_names]
    if missing:
        raise DataError(
            f"the source gives no column for the features {missing}; it gives {table.column_names}"
        )
    columns = {}
    for feature in features:
        column = table[feature.name]
        columns[feature.name] = column.cast(
            pa.float32() if feature.kind == "dense" else pa.string()
        )
    return pa.table(columns)


def _encoded(encoder: Encoder, table: pa.Table, keep_raw: bool) -> pa.Table:
    """Spilled rows -> the rows of a split."""
    dense, ids = encoder.encode_table("user", table)
    names = [name for name in ("label", "item", "probability") if name in table.column_names]
    raw = [feature.name for feature in encoder.schema.side("user")] if keep_raw else []
    columns = {name: table[name] for name in names}
    columns["user_dense"] = fixed_size_list(dense)
    columns["user_ids"] = fixed_size_list(ids.astype(np.int32))
    return pa.table({**columns, **{name: table[name] for name in raw}})


def _write_catalogue(encoder: Encoder, tables: Iterable[pa.Table], count: int, path: Path) -> None:
    """Items in chunks, raw and with `item_id` -> catalogue.parquet."""
    writer: pq.ParquetWriter | None = None
    with _progress("encode items", count, "items") as bar:
        for table in tables:
            features = _typed(encoder.schema.side("item"), table)
            dense, ids = encoder.encode_table("item", features)
            columns = {"item_id": table["item_id"].cast(pa.int64())}
            if "title" in table.column_names:
                columns["title"] = table["title"].cast(pa.string())
            columns |= {name: features[name] for name in features.column_names}
            columns["dense"] = fixed_size_list(dense)
            columns["ids"] = fixed_size_list(ids.astype(np.int32))
            encoded = pa.table(columns)
            if writer is None:
                writer = pq.ParquetWriter(path, encoded.schema, compression="zstd")
            writer.write_table(encoded)
            bar.update(table.num_rows)
    if writer is None:
        raise DataError("the item list is empty")
    writer.close()


def _numbered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Items without a name of their own are named by their row."""
    start = 0
    for table in tables:
        names = pa.array(np.arange(start, start + table.num_rows))
        yield table.append_column("item_id", names)
        start += table.num_rows


def _slices(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, ROW_GROUP):
        yield table.slice(start, ROW_GROUP)


def _progress(what: str, total: int | None, unit: str = "rows") -> Any:
    return tqdm(desc=what, total=total, unit=f" {unit}", unit_scale=True, mininterval=0.5)
