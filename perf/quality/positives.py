"""A log of positives only, made from MovieLens: what users liked, as tables with a YAML file."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from cascade.data.movielens import MovieLens
from cascade.data.source import SPLITS, BadRows
from cascade.files import replace_text


def write(movielens: Path, folder: Path) -> Path:
    """Write the ratings above 3 of an unpacked MovieLens folder as likes.parquet, without a label,
    the movies as items.parquet, and the schema.yaml that describes both; -> the last.

    A like has the user, the time in seconds, and up to 50 movies that the user liked before it, the
    newest last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = MovieLens(movielens, BadRows())
    rows = pa.concat_tables(chunk for split in SPLITS for chunk in source.chunks(split))
    liked = rows.filter(pc.greater(rows["label"], 0.5))
    likes = liked.select(["item_id", "user_id", "history", "@time"])
    pq.write_table(
        likes.rename_columns(["item_id", "user_id", "history", "at"]), folder / "likes.parquet"
    )
    pq.write_table(source.catalogue(), folder / "items.parquet")
    features = [
        {"name": "user_id", "side": "user", "kind": "categorical"},
        {"name": "history", "side": "user", "kind": "sequence", "length": 50},
        {"name": "movie_id", "side": "item", "kind": "categorical"},
        {"name": "genres", "side": "item", "kind": "bag", "length": 8},
        {"name": "year", "side": "item", "kind": "categorical"},
    ]
    content = {
        "interactions": "likes.parquet",
        "items": "items.parquet",
        "item": "item_id",
        "user": "user_id",
        "time": "at",
        "title": "title",
        "features": features,
    }
    path = folder / "schema.yaml"
    replace_text(path, yaml.safe_dump(content, sort_keys=False))
    return path
