"""A prepared data set: what training, evaluation, export and the clients read.

schema.json, vocabulary/NAME.txt     the fitted encoder
catalogue.parquet                    one row per item: item_id, [title], the raw item features,
                                     dense float32[], ids int32[]
train|validation|test/part-*.parquet label, item (a ROW of the catalogue), user_dense float32[],
                                     user_ids int32[], [probability], [@user int64], [@time
                                     float64], of further tasks @task.NAME float32, null = not
                                     known, and [@truth.NAME]; train has [item_past float32[]], the
                                     past of the item as it was before the row; validation and test
                                     have the raw user features, as a client would send them
source.json                          what it was made from, and how many rows there are
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cascade.data.batch import Batch, RawRows, batch_of
from cascade.data.parts import (
    Columns,
    Group,
    matrix,
    read_groups,
    read_rows,
    row_count,
    row_groups,
)
from cascade.data.past import ItemPast
from cascade.data.sample import draw
from cascade.data.source import TASK, TRUTH, DataError, Split
from cascade.encoding import Encoder, Floats, Ids
from cascade.schema import Schema
from cascade.values import unknown_name

__all__ = ["FORMAT", "Batch", "Dataset", "RawRows"]

FORMAT = 2
_COLUMNS = ("label", "item", "user_dense", "user_ids")


@dataclass(frozen=True)
class Dataset:
    """A prepared folder. Get one from `Dataset.open`, or from `cascade.data.prepare`."""

    root: Path
    source: dict[str, Any]  # what source.json says
    encoder: Encoder
    label: str = ""  # the further task whose labels `label` gives, as `with_label` says

    @classmethod
    def open(cls, root: Path | str) -> Dataset:
        """Read the description of a prepared folder; the rows are read when asked for."""
        root = Path(root)
        if not (root / "source.json").is_file():
            raise DataError(
                f"{root} is not a prepared data set (it has no source.json); make one with "
                f"python -m cascade.data --data SPEC --out {root}"
            )
        source = json.loads((root / "source.json").read_text())
        if source.get("format") != FORMAT:
            raise DataError(
                f"{root} has format {source.get('format')}, and this version reads {FORMAT}: "
                "prepare the data again"
            )
        return cls(root, source, Encoder.load(root))

    def with_label(self, name: str) -> Dataset:
        """The same rows with one task alone, whose label stands in place of the first one's, to
        train and judge a model of that task. It is NaN where a row does not know it, which
        `RankTask` leaves out."""
        tasks = {task.name: task for task in self.schema.tasks}
        if name not in tasks:
            raise DataError(f"{self.root}: {unknown_name('task', name, tasks)}")
        if len(tasks) == 1:
            return self
        encoder, source = copy.copy(self.encoder), dict(self.source)
        encoder.schema = replace(self.schema, tasks=(tasks[name],))
        told, first = source.pop("truth", False), name == self.schema.tasks[0].name
        if not first:
            source["probability"] = told
            source.pop("positives", None)
        return replace(self, source=source, encoder=encoder, label="" if first else name)

    @property
    def schema(self) -> Schema:
        return self.encoder.schema

    @property
    def item_count(self) -> int:
        return int(self.source["items"])

    @property
    def user_count(self) -> int:
        """Users of all splits together; 0 where the source does not say whose the rows are."""
        return int(self.source["users"])

    @property
    def has_users(self) -> bool:
        """Whether the source says whose the rows are."""
        return self.user_count > 0

    def items(self) -> tuple[Floats, Ids]:
        """The encoded catalogue: dense float32 [N, F_dense], ids int64 [N, sum of lengths]."""
        dense, ids = (matrix(column) for column in self._catalogue("dense", "ids").columns)
        return dense, ids.astype(np.int64)

    def item_ids(self) -> npt.NDArray[Any]:
        """What the world calls the item in each row of the catalogue: int64 [N], or object [N] of
        str where the schema says that ids are strings."""
        return np.asarray(self._catalogue("item_id")["item_id"])

    def titles(self) -> list[str] | None:
        """A title for each row of the catalogue, None where the source has no titles."""
        if "title" not in pq.read_schema(self.root / "catalogue.parquet").names:
            return None
        return [title or "" for title in self._catalogue("title")["title"].to_pylist()]

    def _catalogue(self, *names: str) -> pa.Table:
        return pq.read_table(self.root / "catalogue.parquet", columns=[*names])

    def rows(self, split: Split) -> int:
        return int(self.source["rows"][split])

    @cached_property
    def positives(self) -> int:
        """Training rows with the label 1, or with an amount above 0."""
        if "positives" in self.source:
            return int(self.source["positives"]["train"])
        return int((self.columns("train", ["label"])["label"] > 0).sum())

    @property
    def has_negatives(self) -> bool:
        """Whether a training row has the label 0; a log of what users chose has positives alone."""
        return self.positives < self.rows("train")

    @cached_property
    def item_past(self) -> ItemPast:
        """The past of any item at any time, where training rows have it."""
        asked = self.source["item_past"]
        rows = read_groups(self._groups("train"), ["item", "label", "@time"])
        return ItemPast(asked["features"], asked["day"], rows)

    def read(self, split: Split, limit: int | None = None) -> Batch:
        """A whole split, or its first `limit` rows, in memory."""
        return batch_of(self._first(split, self._columns(split), limit), slice(None))

    def columns(self, split: Split, names: list[str]) -> Columns:
        """Some columns of a whole split, as they are stored."""
        return self._first(split, names, None)

    def sample(self, split: Split, count: int, seed: int = 0) -> Batch:
        """Up to `count` rows drawn at random over the users of a split, as
        `cascade.data.sample.draw` says; in the order in which they were drawn."""
        groups = self._groups(split)
        rows = draw(groups, self.has_users, count, seed)
        return batch_of(self._rows(groups, self._columns(split), rows), slice(None))

    def raw_sample(
        self, split: Split, count: int, seed: int = 0, positives: bool = False
    ) -> RawRows:
        """As `sample`, with the users as a client would send them, which training keeps not; or of
        the rows of label 1 alone."""
        names, groups = self._raw_names(split), self._groups(split)
        by = self._stored("label") if positives else ""
        rows = draw(groups, self.has_users, count, seed, by)
        columns = self._rows(groups, [*names, *self._who_and_when()], rows)
        raw = self._raw(columns)
        return RawRows(*raw, columns.get("@user"), columns.get("@time"))

    def batches(
        self, split: Split, batch_size: int, seed: int | None = None, epoch: int = 0, skip: int = 0
    ) -> Iterator[Batch]:
        """All rows of a split once, in batches; the last may be short.

        Without a seed the rows come in file order. With one, row groups come in an order drawn
        from (seed, epoch), and the rows of two groups at a time are shuffled together, so that
        memory stays bounded. The same arguments give the same batches; `skip` leaves out the
        first ones, mostly without reading them, for a training run that resumes.
        """
        groups, names = self._groups(split), self._columns(split)
        width = 1 if seed is None else 2
        if seed is not None:
            drawn = np.random.default_rng((seed, epoch)).permutation(len(groups))
            groups = [groups[i] for i in drawn]
        left_out = skip * batch_size
        pending: Columns = {}
        for start in range(0, len(groups), width):
            window = groups[start : start + width]
            size = sum(map(row_count, window))
            if left_out >= size:
                left_out -= size
                continue
            columns = self._whole(window, names)
            if seed is not None:
                drawn = np.random.default_rng((seed, epoch, start)).permutation(size)
                columns = {name: values[drawn] for name, values in columns.items()}
            for name, values in columns.items():
                rest = values[left_out:]
                pending[name] = np.concatenate((pending[name], rest)) if name in pending else rest
            left_out = 0
            whole = len(pending["label"]) // batch_size * batch_size
            for row in range(0, whole, batch_size):
                yield batch_of(pending, slice(row, row + batch_size))
            pending = {name: values[whole:] for name, values in pending.items()}
        if pending and len(pending["label"]):
            yield batch_of(pending, slice(None))

    def raw_users(
        self, split: Split, limit: int
    ) -> tuple[Floats, npt.NDArray[np.object_], Ids, Floats]:
        """The users of the first rows as a client would send them; training keeps none.

        Returns:
            dense float32 [B, F_dense] with NaN = missing, categorical object [B, F_cat] of bytes
            with empty = missing, item int64 [B], label float32 [B].
        """
        return self._raw(self._first(split, self._raw_names(split), limit))

    def _raw_names(self, split: Split) -> list[str]:
        if split == "train":
            raise DataError("raw users are kept for validation and test only, not for train")
        return ["item", "label", *(feature.name for feature in self.schema.side("user"))]

    def _raw(self, columns: Columns) -> tuple[Floats, npt.NDArray[np.object_], Ids, Floats]:
        dense, ids = self.schema.dense("user"), self.schema.ids("user")
        size = len(columns["label"])
        numbers = np.zeros((size, self.schema.dense_width("user")), np.float32)
        for position, feature in enumerate(dense):
            numbers[:, position] = columns[feature.name]
        values = np.full((size, self.schema.wire_width("user")), b"", object)
        for position, feature in enumerate(ids):
            values[:, position] = columns[feature.name]
        return numbers, values, columns["item"], columns["label"]

    def _groups(self, split: Split) -> list[Group]:
        found = row_groups(self.root / split)
        rows = sum(map(row_count, found))
        if rows != self.rows(split):
            raise DataError(
                f"{self.root / split} has {rows} rows, and source.json says {self.rows(split)}: "
                "prepare the data again"
            )
        return found

    def _columns(self, split: Split) -> list[str]:
        probability = ["probability"] if self.source["probability"] else []
        past = ["item_past"] if split == "train" and self.source.get("item_past") else []
        further = [task.name for task in self.schema.tasks[1:]]
        tasks = [f"{TASK}{name}" for name in further]
        truth = [f"{TRUTH}{name}" for name in further if self.source.get("truth")]
        return [*_COLUMNS, *probability, *past, *self._who_and_when(), *tasks, *truth]

    def _who_and_when(self) -> list[str]:
        stored = {"users": "@user", "times": "@time"}
        return [column for key, column in stored.items() if self.source[key]]

    def _stored(self, name: str) -> str:
        """What a column is called on disk."""
        prefix = {"label": TASK, "probability": TRUTH}.get(name) if self.label else None
        return name if prefix is None else f"{prefix}{self.label}"

    def _whole(self, groups: list[Group], names: list[str]) -> Columns:
        found = read_groups(groups, [*map(self._stored, names)])
        return dict(zip(names, found.values(), strict=True))

    def _rows(self, groups: list[Group], names: list[str], rows: Ids) -> Columns:
        found = read_rows(groups, [*map(self._stored, names)], rows)
        return dict(zip(names, found.values(), strict=True))

    def _first(self, split: Split, names: list[str], limit: int | None) -> Columns:
        """Some columns of the first `limit` rows, or of all."""
        groups = self._groups(split)
        if limit is not None:
            starts = accumulate(map(row_count, groups), initial=0)
            groups = [g for g, start in zip(groups, starts, strict=False) if start < max(1, limit)]
        return {name: values[:limit] for name, values in self._whole(groups, names).items()}
