"""The users of a fixture as a client would send them: of real Criteo rows, or made up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cascade.data.criteo import CATEGORIES, SCHEMA, Criteo
from cascade.data.source import SPLITS, BadRows
from perf.fixture_tables import name, skewed

ROWS_READ = 100_000  # of a file of real rows: more add nothing but time
MISSING_SHARE = 0.05


@dataclass(frozen=True)
class Users:
    """Raw, each another one: dense float32 [B, 13], NaN = missing; categorical object [B, 6] of
    bytes, empty = missing."""

    dense: npt.NDArray[np.float32]
    categorical: npt.NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.dense)

    def seen(self) -> dict[str, list[str]]:
        """The values of every feature, the most frequent first."""
        found = {}
        for column, feature in enumerate(SCHEMA.ids("user")):
            counts = Counter(value.decode() for value in self.categorical[:, column] if value)
            found[feature.name] = [value for value, _ in counts.most_common()]
        return found


def read(path: Path) -> Users:
    """The users of a file in Criteo's format, in its order.

    Raises:
        DataError: not such a file, or a malformed row.
    """
    source, tables, rows = Criteo(path, BadRows()), [], 0
    for split in SPLITS:
        for table in source.chunks(split):
            tables.append(table)
            rows += table.num_rows
            if rows >= ROWS_READ:
                return _distinct(pa.concat_tables(tables).slice(0, ROWS_READ))
    return _distinct(pa.concat_tables(tables))


def _distinct(table: pa.Table) -> Users:
    numbers = [table[f.name].to_numpy() for f in SCHEMA.dense("user")]
    dense = np.stack(numbers, axis=1).astype(np.float32)
    texts = [pc.fill_null(table[f.name], "") for f in SCHEMA.ids("user")]
    columns = [np.asarray(text.cast(pa.binary()).to_numpy(), object) for text in texts]
    return _unique(dense, np.stack(columns, axis=1))


def draw(random: np.random.Generator, count: int, sizes: Mapping[str, int]) -> Users:
    """Made-up users whose values are as skewed as those of Criteo's rows.

    Args:
        sizes: values of every categorical feature.
    """
    dense = np.floor(np.exp(random.normal(2.0, 1.0, (count, len(SCHEMA.dense("user"))))))
    dense[random.random(dense.shape) < MISSING_SHARE] = np.nan
    columns = []
    for feature in SCHEMA.ids("user"):
        number = CATEGORIES.index(feature.name)
        codes = skewed(random, sizes[feature.name], count)
        columns.append([name(number, code).encode() for code in codes.tolist()])
    categorical = np.array(columns, object).T.copy()
    categorical[random.random(categorical.shape) < MISSING_SHARE] = b""
    return _unique(dense.astype(np.float32), categorical)


def _unique(dense: npt.NDArray[np.float32], categorical: npt.NDArray[np.object_]) -> Users:
    """The first of every set of equal rows."""
    first: dict[tuple[object, ...], int] = {}
    for row, values in enumerate(categorical.tolist()):
        first.setdefault((dense[row].tobytes(), *values), row)
    rows = np.fromiter(first.values(), np.int64)
    return Users(dense[rows], categorical[rows])
