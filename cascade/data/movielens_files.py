"""The rows of MovieLens files, whichever form they have."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cascade.data.movielens_layout import GENRES_100K, Files
from cascade.data.rows import RowFormat, is_integer, read_rows, shown
from cascade.data.source import BadRows, DataError

_RATING = ("userId", "movieId", "rating", "timestamp")
_NO_GENRE = ("unknown", "(no genres listed)")
_YEAR = re.compile(r"\((\d{4})(?:[-–]\d{0,4})?\)\s*$")
_NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def read_movies(files: Files, bad: BadRows) -> pa.Table:
    """-> item_id int64, title, movie_id, genres (joined by `|`) and year as strings."""
    path = files.folder / files.layout.movies
    header = files.layout.header[1] if files.layout.header else None
    rows: dict[int, tuple[str, str, str | None]] = {}
    for line, text in _text_lines(path, header):
        fields = _split(text, files.layout.delimiters[1])
        number = _identity(path, line, fields, files.layout.movie_fields, bad)
        if number is None:
            continue
        if number in rows:
            bad.add(path, line, f"movie {number} was listed before")
            continue
        year = _YEAR.search(fields[1])
        rows[number] = (fields[1].strip(), _genres(fields), year[1] if year else None)
    titles, genres, years = zip(*rows.values(), strict=True) if rows else ((), (), ())
    return pa.table(
        {
            "item_id": pa.array(rows, pa.int64()),
            "title": pa.array(titles, pa.string()),
            "movie_id": pa.array(map(str, rows), pa.string()),
            "genres": pa.array(genres, pa.string()),
            "year": pa.array(years, pa.string()),
        }
    )


def read_users(files: Files, bad: BadRows) -> dict[int, dict[str, str]]:
    """Demographics by user; empty where the data set has none."""
    path = files.users_path
    users: dict[int, dict[str, str]] = {}
    if path is None:
        return users
    names = files.layout.user_fields
    for line, text in _text_lines(path):
        fields = _split(text, files.layout.delimiters[2])
        number = _identity(path, line, fields, len(names), bad)
        if number is not None:
            users[number] = dict(zip(names, fields, strict=True))
    return users


def read_ratings(files: Files, movies: npt.NDArray[np.int64], bad: BadRows) -> Iterator[pa.Table]:
    """-> userId, movieId, timestamp int64, rating float64, in chunks, in file order.

    Args:
        movies: the ids that a rating may name.
        bad: takes the malformed rows.
    """
    path = files.folder / files.layout.ratings
    if files.layout.header:
        _check_header(path, files.layout.header[0])
    known = set(movies.tolist())

    def well_formed(table: pa.Table) -> bool:
        if any(column.null_count for column in table.columns):
            return False
        rating = table["rating"].to_numpy()
        in_range = (rating >= 0) & (rating <= 5)  # which not-a-number is not
        return bool(in_range.all() and np.isin(table["movieId"].to_numpy(), movies).all())

    layout = RowFormat(
        dict(zip(_RATING, (pa.int64(), pa.int64(), pa.float64(), pa.int64()), strict=True)),
        files.layout.delimiters[0].encode(),
        well_formed,
        lambda fields: _rating_fault(fields, known),
    )
    return read_rows(path, layout, bad, start=1 if files.layout.header else 0)


def _rating_fault(fields: list[bytes], movies: set[int]) -> str | None:
    """What is wrong with a rating, None if nothing is."""
    for name, field in zip(_RATING, fields, strict=True):
        if name == "rating":
            if not _NUMBER.fullmatch(field) or not 0 <= float(field) <= 5:
                return f"the rating is {shown(field)}, not a number from 0 to 5"
        elif not is_integer(field):
            return f"{name} is {shown(field)}, not an integer"
    if int(fields[1]) not in movies:
        return f"movie {int(fields[1])} is rated, but the list of movies does not have it"
    return None


def _check_header(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        line = file.readline(10_000)
    header = line.rstrip(b"\r\n").removeprefix(b"\xef\xbb\xbf")
    if line and header != expected.encode():  # an empty file has an error of its own
        raise DataError(f"{path}:1: the header is {shown(header)}; expected {expected!r}")


def _text_lines(path: Path, header: str | None = None) -> Iterator[tuple[int, str]]:
    """The lines of a small file, numbered from 1. The older sets are in latin-1."""
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if not content:
        raise DataError(f"{path} is empty")
    if header:
        _check_header(path, header)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    for line, row in enumerate(text.removesuffix("\n").split("\n"), 1):
        if line > 1 or not header:
            yield line, row.removesuffix("\r")


def _split(line: str, delimiter: str) -> list[str]:
    """Fields, none where a quote is left open; only the files with commas have quotes."""
    if delimiter != ",":
        return line.split(delimiter)
    try:
        return next(csv.reader([line], strict=True), [""])
    except csv.Error:
        return []


def _identity(path: Path, line: int, fields: list[str], expected: int, bad: BadRows) -> int | None:
    """The id that a row of movies or users starts with; None for a malformed row."""
    if len(fields) != expected:
        came = f"{len(fields)} fields came" if fields else "a quote is left open"
        bad.add(path, line, f"{came}, {expected} fields were expected")
        return None
    if not is_integer(fields[0].encode()):
        bad.add(path, line, f"the id is {fields[0][:40]!r}, not an integer")
        return None
    return int(fields[0])


def _genres(fields: list[str]) -> str:
    """Joined by `|`: as a list already, or as the flags of ml-100k."""
    if len(fields) == 3:
        names = fields[2].split("|")
    else:
        flags = zip(GENRES_100K, fields[5:], strict=True)
        names = [name for name, flag in flags if flag == "1"]
    return "|".join(name for name in names if name not in _NO_GENRE)
