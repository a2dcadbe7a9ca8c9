"""The forms that the files of MovieLens have had, and which of them a folder holds.

    ml-latest-small, ml-20m and later   ratings.csv, movies.csv
    ml-1m, ml-10m                       ratings.dat, movies.dat, users.dat (ml-1m)
    ml-100k                             u.data, u.item, u.user

https://grouplens.org/datasets/movielens/ has them, each with a README of its format.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cascade.data.source import DataError

GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


@dataclass(frozen=True)
class Layout:
    """One form of the files.

    Args:
        ratings, movies, users: the names of the files.
        header: their first lines, where the first line names the columns.
        delimiters: between the fields of each of the three.
        movie_fields: how many fields a movie has.
        user_fields: the names of a user's fields.
    """

    ratings: str
    movies: str
    users: str | None
    header: tuple[str, str] | None
    delimiters: tuple[str, str, str]
    movie_fields: int
    user_fields: tuple[str, ...] = ()


LAYOUTS = (
    Layout(
        *("ratings.csv", "movies.csv", None),
        header=("userId,movieId,rating,timestamp", "movieId,title,genres"),
        delimiters=(",", ",", ""),
        movie_fields=3,
    ),
    Layout(
        *("ratings.dat", "movies.dat", "users.dat"),
        header=None,
        delimiters=("::", "::", "::"),
        movie_fields=3,
        user_fields=("userId", "gender", "age", "occupation", "zip"),
    ),
    Layout(
        *("u.data", "u.item", "u.user"),
        header=None,
        delimiters=("\t", "|", "|"),
        movie_fields=5 + len(GENRES_100K),
        user_fields=("userId", "age", "gender", "occupation", "zip"),
    ),
)


@dataclass(frozen=True)
class Files:
    """A folder and the form of its files."""

    folder: Path
    layout: Layout

    @classmethod
    def find(cls, folder: Path) -> Files:
        """Recognise the files of a folder.

        Raises:
            DataError: they are of no known form, or one of them is missing.
        """
        if not folder.exists():
            raise DataError(f"{folder} does not exist")
        if not folder.is_dir():
            raise DataError(f"{folder} is a file; give the (unpacked) MovieLens folder")
        for layout in LAYOUTS:
            names = (layout.ratings, layout.movies)
            missing = [name for name in names if not (folder / name).is_file()]
            if not missing:
                return cls(folder, layout)
            if len(missing) == 1:
                there = next(name for name in names if name not in missing)
                raise DataError(f"{folder} has {there} but not {missing[0]}: both are needed")
        known = "; ".join(f"{layout.ratings} with {layout.movies}" for layout in LAYOUTS)
        found = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
        raise DataError(f"{folder} holds no MovieLens data: expected {known}; found {found}")

    @property
    def users_path(self) -> Path | None:
        """The file of demographics, where there is one."""
        name = self.layout.users
        return self.folder / name if name and (self.folder / name).is_file() else None

    @property
    def paths(self) -> list[Path]:
        """All files that are read."""
        users = [self.users_path] if self.users_path else []
        return [self.folder / self.layout.ratings, self.folder / self.layout.movies, *users]
