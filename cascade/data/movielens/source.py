"""MovieLens as impressions in the order of time, each with what its user had liked before it.

https://grouplens.org/datasets/movielens/. A rating above 3 is a positive. `MovieLens` sorts the
ratings by time; the first 80 % train, the next 10 % validate, the last 10 % test, and ratings of
one timestamp stay together. An event sees only what is strictly earlier: users rate whole pages of
movies within one second, and those would otherwise tell each other's labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cascade.data import past
from cascade.data.movielens.files import DEMOGRAPHICS, Files
from cascade.data.parts import ROW_GROUP
from cascade.data.source import BadRows, Log, Source, Split, file_identity
from cascade.schema import Feature, Schema

HISTORY = 50
GENRES = 8  # a few movies have more; most have two or three
DAY = 86_400  # timestamps are seconds
RATING = Feature("past_rating", "user", "dense", "identity", fill=3.5, mean=3.5)
PAST = (past.EVENTS, past.POSITIVES, past.DAYS, RATING)

Codes = npt.NDArray[np.int64]


def schema(demographics: bool) -> Schema:
    """The features, with or without those that only ml-1m and ml-100k know."""
    about_user = ("user_id", *(DEMOGRAPHICS if demographics else ()))
    return Schema(
        "movielens",
        (
            Feature("positives", "user", "dense", "log1p"),
            *PAST,
            *(Feature(name, "user", "categorical", "vocabulary") for name in about_user),
            Feature("history", "user", "sequence", "vocabulary", HISTORY, shares="movie_id"),
            replace(past.ITEMS, shares="movie_id"),
            Feature("movie_id", "item", "categorical", "vocabulary"),
            Feature("genres", "item", "bag", "vocabulary", length=GENRES),
            Feature("year", "item", "categorical", "vocabulary"),
            *past.ITEM,
        ),
    )


@dataclass(frozen=True)
class Events:
    """All ratings, sorted by time; 25 bytes each."""

    user: Codes  # [R], places in `user_ids`
    movie: npt.NDArray[np.int32]  # [R], rows of the catalogue
    label: npt.NDArray[np.bool_]  # [R], whether the rating is a positive
    rating: npt.NDArray[np.float32]  # [R], of 5
    time: Codes  # [R], rank of the timestamp among the distinct ones
    user_ids: Codes  # [U], sorted
    times: Codes  # [T], the distinct timestamps in seconds, sorted


class MovieLens(Source):
    """An unpacked MovieLens folder."""

    log: Log = "choices"  # users look for what they rate
    item_past = past.OfItems(past.ITEM, DAY)

    def __init__(self, path: Path, bad: BadRows) -> None:
        self._files, self._bad = Files.find(path), bad

    @property
    def schema(self) -> Schema:
        return schema(demographics=self._files.users is not None)

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"source": "movielens", "files": [*map(file_identity, self._files.paths)]}

    @property
    def total_rows(self) -> int:
        return len(self._events.label)

    def catalogue(self) -> pa.Table:
        """Every listed movie, rated or not."""
        return self._movies

    def chunks(self, split: Split) -> Iterator[pa.Table]:
        """Ratings in the order of time, with `item_id` in place of the movie's features."""
        start, stop = self._bounds()[split]
        events, item_ids = self._events, self._movies["item_id"].to_numpy()
        for first in range(start, stop, ROW_GROUP):
            rows = np.arange(first, min(first + ROW_GROUP, stop))
            users = pa.array(events.user[rows])
            at = events.user[rows], events.times[events.time[rows]]
            met, liked = (log.before(*at) for log in self._logs)
            yield pa.table(
                {
                    "label": events.label[rows].astype(np.float32),
                    "item_id": item_ids[events.movie[rows]],
                    "@user": events.user_ids[events.user[rows]],
                    "@time": at[1],
                    "positives": np.nan_to_num(liked.events()),
                    **{name: values.take(pa.array(rows)) for name, values in self._past.items()},
                    **{name: about.take(users) for name, about in self._about_users.items()},
                    "history": liked.latest(HISTORY),
                    past.ITEMS.name: met.latest(past.ITEMS.length),
                }
            )

    @cached_property
    def _movies(self) -> pa.Table:
        return self._files.read_movies(self._bad)

    @cached_property
    def _events(self) -> Events:
        listed = self._movies["item_id"].combine_chunks()
        parts: list[list[npt.NDArray[Any]]] = [
            [np.empty(0, kind)] for kind in (np.int64, np.int32, np.bool_, np.float32, np.int64)
        ]
        for table in self._files.read_ratings(listed.to_numpy(), self._bad):
            movie = pc.index_in(table["movieId"], value_set=listed)  # int32
            rating = table["rating"].cast(pa.float32())
            columns = (table["userId"], movie, pc.greater(rating, 3), rating, table["timestamp"])
            for part, column in zip(parts, columns, strict=True):
                part.append(column.to_numpy())
        user, movie, label, rating, at = map(np.concatenate, parts)
        order = np.argsort(at, kind="stable")
        user_ids, user = np.unique(user, return_inverse=True)
        times, time = np.unique(at, return_inverse=True)
        return Events(
            *(user[order], movie[order], label[order], rating[order], time[order]), user_ids, times
        )

    @cached_property
    def _logs(self) -> tuple[past.Log, past.Log]:
        """All events, and the positives."""
        events, names = self._events, self._movies["movie_id"].combine_chunks()

        def log(rows: Codes | slice, **told: npt.NDArray[Any]) -> past.Log:
            movies = pa.DictionaryArray.from_arrays(events.movie[rows], names)
            return past.Log(events.user[rows], events.times[events.time[rows]], movies, **told)

        told = {"label": events.label, "rating": events.rating}
        return log(slice(None), **told), log(np.flatnonzero(events.label))

    @cached_property
    def _past(self) -> dict[str, pa.Array]:
        """What each event's user had done before it, by feature."""
        found = self._logs[0].before()
        values = (
            *(found.events(), found.mean("label")),
            *(found.since_last(DAY), found.mean("rating")),
        )
        return {
            feature.name: pa.array(column, from_pandas=True)
            for feature, column in zip(PAST, values, strict=True)
        }

    @cached_property
    def _about_users(self) -> dict[str, pa.Array]:
        """The categorical features of each user in `user_ids`, missing where a file lacks them."""
        ids, users = self._events.user_ids.tolist(), self._files.read_users(self._bad)
        columns: dict[str, list[str | None]] = {"user_id": [*map(str, ids)]}
        for name in DEMOGRAPHICS if self._files.users is not None else ():
            columns[name] = [users.get(user, {}).get(name) for user in ids]
        return {name: pa.array(values, pa.string()) for name, values in columns.items()}

    def _bounds(self) -> dict[Split, tuple[int, int]]:
        """First row and last row + 1 of each split."""
        time, rows = self._events.time, len(self._events.time)
        cuts = [0]
        for share in (8, 9):
            wanted = rows * share // 10
            same_time = time[wanted - 1] if wanted else -1
            cuts.append(int(np.searchsorted(time, same_time, side="right")))
        return {"train": (0, cuts[1]), "validation": (cuts[1], cuts[2]), "test": (cuts[2], rows)}
