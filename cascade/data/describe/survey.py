"""One pass over a source: what is in it, and the warnings."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cascade.data.describe.columns import COMPACT_AT, Column, Distinct, spread
from cascade.data.describe.leaks import leak
from cascade.data.past import told
from cascade.data.source import (
    SPLITS,
    TASK,
    BadRows,
    Source,
    Split,
    is_label,
    label_column,
    task_columns,
    time_column,
    user_column,
)

SAMPLED = 200_000  # training rows that are looked at for leaks
LARGE = 1000  # an amount that the softplus of a logit is slow to reach
_VALUE = re.compile(r"'[^']*'|\"[^\"]*\"|\b\S*\d\S*")


@dataclass
class Collected(BadRows):
    """Malformed rows by what is wrong with them: how many, and the first."""

    kinds: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, path: Path, line: int | str, what: str) -> None:
        self.policy, self.first = "skip", ""
        super().add(path, line, what)
        count, first = self.kinds.get(_VALUE.sub("…", what), (0, self.first))
        self.kinds[_VALUE.sub("…", what)] = (count + 1, first)


class Survey:
    """What is in a source.

    Args:
        bad: to whom the source gives its malformed rows.
    """

    def __init__(self, source: Source, bad: Collected) -> None:
        self.source, self.bad = source, bad
        self.warnings: list[str] = []
        self._rows: dict[str, int] = dict.fromkeys(SPLITS, 0)
        self._positives: dict[str, int] = dict.fromkeys(SPLITS, 0)
        # Of each further task: rows that know its label, those above 0, and the sum.
        self._tasks = {task.name: np.zeros(3) for task in source.schema.tasks[1:]}
        self._schema = told(source, source.schema)
        self._columns = {f.name: Column(f) for f in self._schema.features}
        self._users, self._met = Distinct(), Distinct()
        self._events: list[pa.Table] = []  # how many rows a user has, by chunk
        self._times: list[Any] = []
        self._sample: list[pa.Table] = []
        self._unlisted = 0

    def run(self) -> dict[str, Any]:
        """Read everything -> what was found, as JSON."""
        items = self._catalogue()
        for split in SPLITS:
            start = 0
            for chunk in self.source.chunks(split):
                self._add(split, self._labelled(chunk, split, start), items)
                start += len(chunk)
        self._warn()
        return {
            "rows": self._rows,
            "positives": self._positives,
            **({"labels": self._labels()} if self._tasks else {}),
            "split": getattr(self.source, "split", "by the source"),
            "log": getattr(self.source, "log", None),
            "items": None if items is None else len(items),
            "items_met": self._met.count if items is not None else None,
            "users": self._users.count or None,
            "events_per_user": self._per_user(),
            "time": self._range(),
            "features": [column.found() for column in self._columns.values()],
            "warnings": self.warnings,
        }

    def _catalogue(self) -> pa.Table | None:
        """The items, each id once; None where the source has no list of them."""
        listed = self.source.catalogue()
        if listed is None:
            return None
        ids = listed["item_id"].to_numpy()
        _, first = np.unique(ids, return_index=True)
        if len(first) < len(ids):
            twice = np.delete(ids, first)
            self.warnings.append(
                f"{len(twice):,} rows of the item list have an id that came before, as {twice[0]}"
            )
        items = listed.take(pa.array(np.sort(first)))
        for feature in self._schema.side("item"):
            self._columns[feature.name].add(items)
        return items

    def _labelled(self, chunk: pa.Table, split: Split, start: int) -> pa.Table:
        """The rows whose label is 0 or 1, as float32, with `@time` as a number."""
        label = label_column(chunk)
        good = is_label(label)
        for row in np.flatnonzero(~good.to_numpy()):
            what = f"the label is {str(chunk['label'][int(row)])!r}; expected 0 or 1"
            self.bad.add(Path("the source"), f"row {start + row + 1} of {split}", what)
        columns = {"label": label, **task_columns(self.source.schema, chunk, split, start)}
        if "@time" in chunk.column_names:
            columns["@time"] = time_column(chunk, split, start)
        for name, column in columns.items():
            chunk = chunk.set_column(chunk.column_names.index(name), name, column)
        return chunk.filter(good)

    def _add(self, split: Split, chunk: pa.Table, items: pa.Table | None) -> None:
        self._rows[split] += len(chunk)
        self._positives[split] += int(pc.sum(chunk["label"]).as_py() or 0)
        for task, counts in self._tasks.items():
            known = chunk[f"{TASK}{task}"].drop_null().to_numpy().astype(np.float64)
            counts += len(known), (known > 0).sum(), known.sum()
        for feature in self._schema.side("user"):
            self._columns[feature.name].add(chunk)
        if items is None:
            for feature in self._schema.side("item"):
                self._columns[feature.name].add(chunk)
        else:
            where = pc.index_in(chunk["item_id"], value_set=items["item_id"].combine_chunks())
            self._unlisted += where.null_count
            self._met.add(chunk["item_id"].filter(pc.is_valid(where)))
        if "@user" in chunk.column_names:
            self._users.add(user_column(chunk))
            counted = pc.value_counts(chunk["@user"].combine_chunks())
            self._events.append(pa.table(counted.flatten(), ["user", "count"]))
            if sum(map(len, self._events[1:])) > max(COMPACT_AT, len(self._events[0])):
                self._events[:] = [self._by_user()]
        if "@time" in chunk.column_names and len(chunk):
            bounds = pc.min_max(chunk["@time"])
            self._times += [end.as_py() for end in bounds.values() if end.is_valid]
        if split == "train" and sum(map(len, self._sample)) < SAMPLED:
            self._sample.append(chunk if items is None else _joined(chunk, items, where))

    def _labels(self) -> dict[str, dict[str, float]]:
        """By further task: the rows that know its label, those above 0, and the mean."""
        return {
            task: {"known": int(known), "above_0": int(above), "mean": total / max(1, known)}
            for task, (known, above, total) in self._tasks.items()
        }

    def _per_user(self) -> dict[str, int] | None:
        if not self._events:
            return None
        counts = self._by_user()
        known = counts.filter(pc.is_valid(counts["user"]))
        return spread(np.bincount(known["count"].to_numpy())) if len(known) else None

    def _by_user(self) -> pa.Table:
        """How many rows a user has, each user once."""
        added = pa.concat_tables(self._events).group_by("user").aggregate([("count", "sum")])
        return added.rename_columns(["user", "count"])

    def _range(self) -> list[Any] | None:
        return [min(self._times), max(self._times)] if self._times else None

    # --- warnings

    def _warn(self) -> None:
        warn = self.warnings.append
        for task, label in self._labels().items():
            if not label["above_0"]:
                warn(f"no row has a label {task} above 0, so there is nothing to learn of it")
            elif (usual := label["mean"] * label["known"] / label["above_0"]) > LARGE:
                warn(
                    f"the label {task} is {usual:.4g} on average where it is not 0: count it in a "
                    f"larger unit, for a logit that has to reach {LARGE:,} learns slowly"
                )
        for count, first in self.bad.kinds.values():
            warn(f"{count:,} rows cannot be used; the first: {first}")
        self.warnings += getattr(self.source, "notes", [])
        rows, positives = self._rows["train"], self._positives["train"]
        for split in SPLITS:
            if not self._rows[split]:
                warn(f"no row is left for the {split} split")
        if rows and positives == rows:
            warn(
                "every training row is a positive: rankers are trained beside sampled negatives, "
                "and the log is taken for one of choices"
            )
        elif rows and not positives:
            warn("no training row is a positive, so there is nothing to learn")
        else:
            for split in SPLITS[1:]:
                if self._rows[split] and self._positives[split] in (0, self._rows[split]):
                    warn(f"all rows of the {split} split have one label")
        if self._unlisted:
            warn(f"{self._unlisted:,} rows show an item that the item list does not have")
        unlisted = getattr(self.source, "unlisted_users", 0)
        if unlisted:
            warn(f"{unlisted:,} rows are of users that the users do not list: nothing is known")
        for column in self._columns.values():
            self._warn_of(column)
        if self._sample:
            sample = pa.concat_tables(self._sample)
            for name, column in self._columns.items():
                how = leak(column.feature, sample[name], sample["label"].to_numpy())
                if how:
                    warn(f"feature {name} {how}: is it known before the label is?")

    def _warn_of(self, column: Column) -> None:
        feature, warn = column.feature, self.warnings.append
        if column.rows and column.missing == column.rows:
            warn(f"feature {feature.name} is missing everywhere")
        elif column.distinct.count == 1 and not column.missing:
            warn(f"feature {feature.name} has one value everywhere")
        if feature.encoding == "log1p" and column.least < 0:
            warn(
                f"feature {feature.name} has values below 0, down to {column.least:g}, which the "
                "encoding log1p takes for 0"
            )


def _joined(chunk: pa.Table, items: pa.Table, where: Any) -> pa.Table:
    """Rows with the raw features of their items beside those of their users."""
    there = set(chunk.column_names)
    for name in items.column_names:
        if name not in there:
            chunk = chunk.append_column(name, items[name].take(where))
    return chunk
