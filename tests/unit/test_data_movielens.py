"""MovieLens in its three forms: one answer, and no event that sees its own time or later."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cascade.data import DataError, prepare
from cascade.data.movielens import GENRES, HISTORY, MovieLens, schema
from cascade.data.movielens.files import GENRES_100K
from cascade.data.past import ITEM, ITEMS
from cascade.data.source import SPLITS, BadRows

REAL = Path(__file__).parents[3] / "shared" / "data" / "ml-latest-small"

# (id, title, genres, year)
MOVIES = [
    (10, "Toy Story (1995)", "Animation|Comedy", "1995"),
    (3, "Misérables, Les (1998) ", "Drama", "1998"),
    (7, "Babylon 5", "", None),
    (20, "12 Monkeys (Twelve) (1995)", "Sci-Fi", "1995"),
]
USERS = {1: ("F", "1", "10", "48067"), 2: ("M", "56", "16", "70072"), 5: ("M", "25", "15", "55117")}
# (user, movie, rating, timestamp), not in the order of time
RATINGS = [
    (1, 10, 4, 100),
    (1, 3, 5, 100),  # at one time with the one above
    (1, 7, 3, 150),  # not a positive
    (1, 20, 4, 200),
    (2, 20, 5, 90),
    (2, 10, 2, 120),
    (2, 3, 4, 130),
    (5, 7, 5, 140),
    (5, 3, 1, 160),
    (2, 7, 5, 210),
]


def write_csv(folder, ratings=RATINGS, movies=MOVIES, end="\n"):
    folder.mkdir(exist_ok=True)
    lines = ["userId,movieId,rating,timestamp", *(f"{u},{m},{r:.1f},{t}" for u, m, r, t in ratings)]
    (folder / "ratings.csv").write_text("".join(line + end for line in lines), newline="")
    quoted = [f'{i},"{title}",{genres or "(no genres listed)"}' for i, title, genres, _ in movies]
    lines = ["movieId,title,genres", *quoted]
    text = "".join(line + end for line in lines)
    (folder / "movies.csv").write_text(text, encoding="utf-8", newline="")
    return folder


def write_dat(folder, ratings=RATINGS, users=USERS):
    folder.mkdir(exist_ok=True)
    rows = {
        "ratings.dat": ["::".join(map(str, row)) for row in ratings],
        "movies.dat": [f"{i}::{title}::{genres}" for i, title, genres, _ in MOVIES],
        "users.dat": ["::".join(map(str, (user, *about))) for user, about in users.items()],
    }
    for name, lines in rows.items():
        (folder / name).write_text("".join(line + "\n" for line in lines), encoding="latin-1")
    return folder


def write_100k(folder, ratings=RATINGS):
    folder.mkdir(exist_ok=True)
    movies = []
    for number, title, genres, _ in MOVIES:
        names = genres.split("|") if genres else ["unknown"]
        flags = "|".join(str(int(name in names)) for name in GENRES_100K)
        movies.append(f"{number}|{title}|01-Jan-1995||http://a/b|{flags}")
    users = [f"{user}|{age}|{sex}|{job}|{zip}" for user, (sex, age, job, zip) in USERS.items()]
    rows = {
        "u.data": ["\t".join(map(str, row)) for row in ratings],
        "u.item": movies,
        "u.user": users,
    }
    for name, lines in rows.items():
        (folder / name).write_text("".join(line + "\n" for line in lines), encoding="latin-1")
    return folder


LAYOUTS = {"csv": write_csv, "dat": write_dat, "100k": write_100k}


def read(folder, bad=None):
    """All events in order, as dicts."""
    source = MovieLens(folder, bad or BadRows())
    rows = []
    for split in SPLITS:
        for table in source.chunks(split):
            rows += [{**row, "split": split} for row in table.to_pylist()]
    return rows


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hand_made_events(tmp_path, layout):
    rows = read(LAYOUTS[layout](tmp_path / "ml"))
    got = [
        (row["user_id"], row["item_id"], row["label"], row["history"] or "", row["positives"])
        for row in rows
    ]
    assert got == [
        ("2", 20, 1, "", 0),  # 90
        ("1", 10, 1, "", 0),  # 100
        ("1", 3, 1, "", 0),  # 100: does not see the one above
        ("2", 10, 0, "20", 1),  # 120
        ("2", 3, 1, "20", 1),  # 130: the rating of 2 is not in the history
        ("5", 7, 1, "", 0),  # 140
        ("1", 7, 0, "10|3", 2),  # 150
        ("5", 3, 0, "7", 1),  # 160
        ("1", 20, 1, "10|3", 2),  # 200
        ("2", 7, 1, "20|3", 2),  # 210: the newest last
    ]
    assert [row["split"] for row in rows] == ["train"] * 8 + ["validation", "test"]
    assert [str(row["@user"]) for row in rows] == [row["user_id"] for row in rows]
    assert [row["@time"] for row in rows] == [90, 100, 100, 120, 130, 140, 150, 160, 200, 210]
    if layout == "csv":
        assert "gender" not in rows[0]
    else:
        assert [rows[0][n] for n in ("gender", "age", "occupation", "zip")] == [*USERS[2]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_catalogue_lists_every_movie(tmp_path, layout):
    movies = MovieLens(LAYOUTS[layout](tmp_path / "ml"), BadRows()).catalogue().to_pylist()
    assert [
        (movie["item_id"], movie["title"], movie["genres"], movie["year"]) for movie in movies
    ] == [(number, title.strip(), genres, year) for number, title, genres, year in MOVIES]
    assert [movie["movie_id"] for movie in movies] == ["10", "3", "7", "20"]


def test_ties_at_a_boundary_stay_in_the_earlier_split(tmp_path):
    times = [1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 9, 9, 10, 11, 12, 13, 14, 14, 15, 15]
    ratings = [(1, 10, 4, time) for time in times]
    rows = read(write_csv(tmp_path / "ml", ratings))
    counts = {split: sum(row["split"] == split for row in rows) for split in SPLITS}
    assert counts == {"train": 16, "validation": 2, "test": 2}  # 16 and 18 of 20: no ties cut
    times[15:17] = [13, 13]
    rows = read(write_csv(tmp_path / "ml", [(1, 10, 4, time) for time in sorted(times)]))
    counts = {split: sum(row["split"] == split for row in rows) for split in SPLITS}
    assert counts == {"train": 17, "validation": 1, "test": 2}


def test_history_equals_a_plain_loop_in_any_chunks(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    movies = [(i, f"Film {i} (2000)", "Drama", "2000") for i in range(1, 40)]
    ratings = [
        tuple(int(v) for v in row)
        for row in np.stack(
            [
                random.integers(1, 5, 900),
                random.integers(1, 40, 900),
                random.integers(1, 6, 900),
                random.integers(0, 300, 900),
            ],
            axis=1,
        )
    ]
    monkeypatch.setattr("cascade.data.movielens.source.ROW_GROUP", 100)
    monkeypatch.setattr("cascade.data.rows.BLOCK_BYTES", 200)
    rows = read(write_csv(tmp_path / "ml", ratings, movies))
    rated = defaultdict(list)
    expected = []
    for user, movie, rating, time in sorted(ratings, key=lambda row: row[3]):
        before = [(m, r) for m, r, t in rated[user] if t < time]
        liked = [str(m) for m, r in before if r > 3]
        met = [str(m) for m, _ in before][-ITEMS.length :]
        lists = "|".join(liked[-HISTORY:]), "|".join(met)
        expected.append((str(user), movie, *lists, len(liked)))
        rated[user].append((movie, rating, time))
    names = ("user_id", "item_id", "history", "past_items", "positives")
    assert [tuple(row[name] for name in names) for row in rows] == expected
    assert max(count for *_, count in expected) > HISTORY


def test_prepared_data_encodes_lists(tmp_path):
    dataset = prepare(f"movielens:{write_dat(tmp_path / 'ml')}", tmp_path / "out")
    assert dataset.schema.layout_hash == schema(demographics=True).layout_hash
    assert dataset.titles() == [movie[1].strip() for movie in MOVIES]
    assert dataset.item_ids().tolist() == [10, 3, 7, 20]
    vocabularies = tmp_path / "out" / "vocabulary"
    assert (vocabularies / "movie_id.txt").read_text().split("\n") == ["10", "20", "3", "7"]
    assert not (vocabularies / "history.txt").exists()  # it has the ids of the movies
    test = dataset.read("test")
    assert test.item.tolist() == [2]  # movie 7 is row 2
    assert (test.user, test.time) == ([0], [210])  # the user whose row came first
    # 2 positives of 3 events with a mean of 11 / 3; 6 positives of all 9, with a mean of 33 / 9
    past = [np.log1p(3), (2 / 3 - 0.5) / 0.25, np.log1p(80 / 86_400), 11 / 3 - 3.5]
    np.testing.assert_allclose(test.user_dense, [[np.log1p(2), *past]], rtol=1e-5)
    history, met = np.split(test.user_ids[0, -HISTORY - ITEMS.length :], [HISTORY])
    assert history.tolist() == [0] * (HISTORY - 2) + [3, 4]  # 20 and 3
    assert met.tolist() == [0] * (ITEMS.length - 3) + [3, 2, 4]  # 20, 10, not liked, and 3
    _, ids = dataset.items()
    assert ids.shape == (4, 1 + GENRES + 1)
    assert ids[:, 0].tolist() == [2, 4, 5, 3]
    assert (ids[2, 1:] == 0).all()  # Babylon 5: neither genres nor a year
    dense, wire, item, label = dataset.raw_users("test", 10)
    assert wire.tolist() == [[b"2", b"M", b"56", b"16", b"70072", b"20|3", b"20|10|3"]]
    np.testing.assert_allclose(dense, [[2, 3, 2 / 3, 80 / 86_400, 11 / 3]], rtol=1e-6)
    assert (item.tolist(), label.tolist()) == ([2], [1])


def test_prepared_data_has_the_past_of_movies(tmp_path):
    dataset = prepare(f"movielens:{write_dat(tmp_path / 'ml')}", tmp_path / "out")
    listed = pq.read_table(dataset.root / "catalogue.parquet")
    # By movie the events, positives and seconds of its age after the 8 training rows, of which 5
    # are positives; the last of them is at 160.
    told = [(2, 1, 60), (3, 2, 60), (2, 1, 20), (1, 1, 70)]
    expected = [(n, (k + 25 / 8) / (n + 5), age / 86_400) for n, k, age in told]
    columns = [listed[feature.name].to_numpy() for feature in ITEM]
    np.testing.assert_allclose(np.stack(columns, axis=1), expected, rtol=1e-4)
    # The first rating of a movie sees nothing; the second one of movie 3 sees 3 positives of 4.
    past = dataset.read("train").item_past
    missing = [-3 / 2, 0, -5 / 2]
    np.testing.assert_allclose(past[[0, 1, 2, 5]], [missing] * 4)
    of_movie_3 = [(np.log1p(1) - 3) / 2, (4.75 / 6 - 0.5) / 0.25, (np.log1p(30 / 86_400) - 5) / 2]
    np.testing.assert_allclose(past[4], of_movie_3, rtol=1e-5)
    assert dataset.read("test").item_past is None


def test_user_without_a_row_of_its_own_is_missing(tmp_path):
    rows = read(write_dat(tmp_path / "ml", users={1: USERS[1]}))
    assert {row["gender"] for row in rows if row["user_id"] == "2"} == {None}
    assert {row["gender"] for row in rows if row["user_id"] == "1"} == {"F"}


def test_carriage_returns_and_a_byte_order_mark(tmp_path):
    plain = read(write_csv(tmp_path / "plain"))
    folder = write_csv(tmp_path / "dos", end="\r\n")
    for name in ("ratings.csv", "movies.csv"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    assert read(folder) == plain


@pytest.mark.parametrize(
    ("name", "line", "row", "message"),
    [
        ("ratings.csv", 4, "1,10,4.0", "3 columns came, 4 separated by commas were expected"),
        ("ratings.csv", 4, "1,10,good,7", "the rating is 'good', not a number from 0 to 5"),
        ("ratings.csv", 4, "1,10,nan,7", "the rating is 'nan', not a number from 0 to 5"),
        ("ratings.csv", 4, "1,10,5.5,7", "the rating is '5.5', not a number from 0 to 5"),
        ("ratings.csv", 2, "x,10,4.0,7", "userId is 'x', not an integer"),
        ("ratings.csv", 11, "1,10,4.0,", "timestamp is '', not an integer"),
        ("ratings.csv", 4, "1,99,4.0,7", "movie 99 is rated, but the list of movies"),
        ("movies.csv", 3, '8,"Open (1990),Drama', "a quote is left open"),
        ("movies.csv", 3, "8,Title", "2 fields came, 3 fields were expected"),
        ("movies.csv", 3, "x,Title,Drama", "the id is 'x', not an integer"),
        ("movies.csv", 3, "10,Again (1995),Drama", "movie 10 was listed before"),
        ("ratings.dat", 3, "1::10::4", "3 columns came, 4 separated by '::'"),
        ("ratings.dat", 3, "1\t10\t4\t5", "1 column came, 4 separated by '::'"),
        ("movies.dat", 3, "8::Title", "2 fields came, 3 fields were expected"),
        ("users.dat", 2, "2::M", "2 fields came, 5 fields were expected"),
        ("u.data", 3, "1\t10\t4", "3 columns came, 4 separated by tabs"),
        ("u.item", 3, "8|Title", "2 fields came, 24 fields were expected"),
        ("u.user", 2, "2|56", "2 fields came, 5 fields were expected"),
    ],
)
def test_malformed_row_is_found_by_its_line(tmp_path, name, line, row, message):
    layout = {"csv": "csv", "dat": "dat"}.get(name.split(".")[1], "100k")
    folder = LAYOUTS[layout](tmp_path / "ml")
    lines = (folder / name).read_text("latin-1").split("\n")
    lines.insert(line - 1, row)
    (folder / name).write_text("\n".join(lines), "latin-1")
    with pytest.raises(DataError) as caught:
        prepare(f"movielens:{folder}", tmp_path / "out")
    assert f"{folder / name}:{line}: " in str(caught.value)
    assert message in str(caught.value)
    dataset = prepare(f"movielens:{folder}", tmp_path / "out", "skip")
    assert sum(dataset.rows(split) for split in SPLITS) == len(RATINGS)
    assert dataset.source["bad_row_count"] == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: None, "does not exist"),
        (lambda folder: folder.write_text("x"), "is a file; give the (unpacked) MovieLens folder"),
        (lambda folder: folder.mkdir(), "holds no MovieLens data: expected ratings.csv with"),
        (
            lambda folder: (write_csv(folder) / "movies.csv").unlink(),
            "has ratings.csv but not movies.csv",
        ),
        (
            lambda folder: (write_csv(folder) / "ratings.csv").write_text(""),
            "ratings.csv is empty",
        ),
        (lambda folder: (write_csv(folder) / "movies.csv").write_text(""), "movies.csv is empty"),
        (lambda folder: (write_dat(folder) / "users.dat").write_text(""), "users.dat is empty"),
        (
            lambda folder: (write_csv(folder) / "ratings.csv").write_text("1,10,4.0,5\n"),
            "ratings.csv:1: the header is '1,10,4.0,5'; expected 'userId,movieId,rating,timestamp'",
        ),
        (
            lambda folder: (write_csv(folder) / "movies.csv").write_text("1,A (1990),Drama\n"),
            "movies.csv:1: the header is",
        ),
        (
            lambda folder: write_csv(folder, RATINGS[:1]),
            "too small: no row is left for the train split",
        ),
        (lambda folder: write_csv(folder, []), "no row is left for the train split"),
    ],
)
def test_folder_that_is_no_movielens(tmp_path, spoil, message):
    folder = tmp_path / "ml"
    spoil(folder)
    with pytest.raises(DataError) as caught:
        prepare(f"movielens:{folder}", tmp_path / "out")
    assert message in str(caught.value)


@pytest.mark.skipif(not REAL.exists(), reason="the real ratings are not here")
def test_real_ratings(tmp_path):
    dataset = prepare(f"movielens:{REAL}", tmp_path / "out")
    assert sum(dataset.rows(split) for split in SPLITS) == 100_004
    assert dataset.rows("train") >= 80_003
    assert dataset.item_count == 9125
    labels = np.concatenate([dataset.read(split).label for split in SPLITS])
    ratings = np.loadtxt(REAL / "ratings.csv", delimiter=",", skiprows=1, usecols=2)
    assert labels.sum() == (ratings > 3).sum()
    titles = dataset.titles()
    assert titles is not None
    assert titles[0] == "Toy Story (1995)"
    years = pq.read_table(dataset.root / "catalogue.parquet")["year"].to_pylist()
    assert sum(year is None for year in years) < 20
    assert all(1890 < int(year) < 2020 for year in years if year)
