"""The files of MovieLens, whichever form they have.

    ml-latest-small, ml-20m and later   ratings.csv, movies.csv
    ml-1m, ml-10m                       ratings.dat, movies.dat, users.dat (ml-1m)
    ml-100k                             u.data, u.item, u.user

https://grouplens.org/datasets/movielens/ has them, each with a README of its format.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cascade.data.rows import RowFormat, is_integer, read_rows, shown
from cascade.data.source import BadRows, DataError, found_in

DEMOGRAPHICS = ("gender", "age", "occupation", "zip")
GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_NO_GENRE = ("unknown", "(no genres listed)")
_YEAR = re.compile(r"\((\d{4})(?:[-–]\d{0,4})?\)\s*$")
_NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_RATING = ("userId", "movieId", "rating", "timestamp")
_RATING_TYPES = (pa.int64(), pa.int64(), pa.float64(), pa.int64())


@dataclass(frozen=True)
class Files:
    """The files of a folder and their form."""

    ratings: Path
    movies: Path
    users: Path | None  # None where the folder has no such file
    delimiters: tuple[str, str, str]  # between the fields of each of the three
    movie_fields: int = 3
    user_fields: tuple[str, ...] = DEMOGRAPHICS  # after the id
    headers: tuple[str, str] = ("", "")  # of ratings and movies, where those name the columns

    @classmethod
    def find(cls, folder: Path) -> Files:
        """Recognise the files of a folder, or refuse it."""
        if not folder.exists():
            raise DataError(f"{folder} does not exist")
        if not folder.is_dir():
            raise DataError(f"{folder} is a file; give the (unpacked) MovieLens folder")
        for form in FORMS:
            ratings, movies = folder / form.ratings, folder / form.movies
            if ratings.is_file() != movies.is_file():
                there, missing = sorted((ratings, movies), key=Path.is_file, reverse=True)
                raise DataError(
                    f"{folder} has {there.name} but not {missing.name}: both are needed"
                )
            if ratings.is_file():
                users = folder / form.users if form.users else None
                users = users if users and users.is_file() else None
                return replace(form, ratings=ratings, movies=movies, users=users)
        known = "; ".join(f"{form.ratings} with {form.movies}" for form in FORMS)
        raise DataError(
            f"{folder} holds no MovieLens data: expected {known}; found {found_in(folder)}"
        )

    @property
    def paths(self) -> list[Path]:
        return [path for path in (self.ratings, self.movies, self.users) if path]

    def read_movies(self, bad: BadRows) -> pa.Table:
        """-> item_id int64, title, movie_id, genres (joined by `|`) and year as strings."""
        rows: dict[int, tuple[str, str, str | None]] = {}
        delimiter, header = self.delimiters[1], self.headers[1]
        listed = _read_listed(self.movies, delimiter, self.movie_fields, bad, header)
        for line, number, fields in listed:
            if number in rows:
                bad.add(self.movies, line, f"movie {number} was listed before")
                continue
            year = _YEAR.search(fields[0])
            rows[number] = (fields[0].strip(), _genres(fields), year[1] if year else None)
        titles, genres, years = zip(*rows.values(), strict=True) if rows else ((), (), ())
        columns = {"title": titles, "movie_id": map(str, rows), "genres": genres, "year": years}
        strings = {name: pa.array(values, pa.string()) for name, values in columns.items()}
        return pa.table({"item_id": pa.array(rows, pa.int64()), **strings})

    def read_users(self, bad: BadRows) -> dict[int, dict[str, str]]:
        """Demographics by user; empty where the data set has none."""
        if self.users is None:
            return {}
        names = self.user_fields
        listed = _read_listed(self.users, self.delimiters[2], 1 + len(names), bad)
        return {number: dict(zip(names, fields, strict=True)) for _, number, fields in listed}

    def read_ratings(self, movies: npt.NDArray[np.int64], bad: BadRows) -> Iterator[pa.Table]:
        """-> userId, movieId int64, rating float64, timestamp int64, in chunks, in file order;
        `movies` are the ids that a rating may name."""
        known = set(movies.tolist())

        def well_formed(table: pa.Table) -> bool:
            if any(column.null_count for column in table.columns):
                return False
            rating = table["rating"].to_numpy()
            in_range = (rating >= 0) & (rating <= 5)  # which not-a-number is not
            return bool(in_range.all() and np.isin(table["movieId"].to_numpy(), movies).all())

        def fault(fields: list[bytes]) -> str | None:
            for name, field in zip(_RATING, fields, strict=True):
                if name == "rating":
                    if not _NUMBER.fullmatch(field) or not 0 <= float(field) <= 5:
                        return f"the rating is {shown(field)}, not a number from 0 to 5"
                elif not is_integer(field):
                    return f"{name} is {shown(field)}, not an integer"
            if int(fields[1]) not in known:
                return f"movie {int(fields[1])} is rated, but the list of movies does not have it"
            return None

        _check_header(self.ratings, self.headers[0])
        columns = dict(zip(_RATING, _RATING_TYPES, strict=True))
        layout = RowFormat(columns, self.delimiters[0].encode(), well_formed, fault)
        return read_rows(self.ratings, layout, bad, start=1 if self.headers[0] else 0)


FORMS = (
    Files(
        *(Path("ratings.csv"), Path("movies.csv"), None),
        delimiters=(",", ",", ""),
        headers=(",".join(_RATING), "movieId,title,genres"),
    ),
    Files(
        *(Path("ratings.dat"), Path("movies.dat"), Path("users.dat")),
        delimiters=("::", "::", "::"),
    ),
    Files(
        *(Path("u.data"), Path("u.item"), Path("u.user")),
        delimiters=("\t", "|", "|"),
        movie_fields=5 + len(GENRES_100K),
        user_fields=("age", "gender", "occupation", "zip"),
    ),
)


def _read_listed(
    path: Path, delimiter: str, width: int, bad: BadRows, header: str = ""
) -> Iterator[tuple[int, int, list[str]]]:
    """The well-formed rows of a small file: line, id and the fields after the id."""
    _check_header(path, header)
    content = path.read_bytes().removeprefix(_BYTE_ORDER_MARK)
    if not content:
        raise DataError(f"{path} is empty")
    try:
        text = content.decode()
    except UnicodeDecodeError:  # one of the older sets
        text = content.decode("latin-1")
    for line, row in enumerate(text.removesuffix("\n").split("\n"), 1):
        if header and line == 1:
            continue
        fields = _split(row.removesuffix("\r"), delimiter)
        if len(fields) != width:
            came = f"{len(fields)} fields came" if fields else "a quote is left open"
            bad.add(path, line, f"{came}, {width} fields were expected")
        elif not is_integer(fields[0].encode()):
            bad.add(path, line, f"the id is {fields[0][:40]!r}, not an integer")
        else:
            yield line, int(fields[0]), fields[1:]


def _check_header(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        line = file.readline(10_000)
    header = line.rstrip(b"\r\n").removeprefix(_BYTE_ORDER_MARK)
    if expected and line and header != expected.encode():  # an empty file has an error of its own
        raise DataError(f"{path}:1: the header is {shown(header)}; expected {expected!r}")


def _split(line: str, delimiter: str) -> list[str]:
    """Fields, none where a quote is left open; only the files with commas have quotes."""
    if delimiter != ",":
        return line.split(delimiter)
    try:
        return next(csv.reader([line], strict=True), [""])
    except csv.Error:
        return []


def _genres(fields: list[str]) -> str:
    """The genres of a movie, joined by `|`: as a list already, or as the flags of ml-100k."""
    if len(fields) == 2:
        names = fields[1].split("|")
    else:
        names = [name for name, flag in zip(GENRES_100K, fields[4:], strict=True) if flag == "1"]
    return "|".join(name for name in names if name not in _NO_GENRE)
