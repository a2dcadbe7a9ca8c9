"""The short form of `make quality`: every step is the real command, on a small log."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from perf.quality.claims import BESIDE, CLAIMS
from perf.quality.figures import finite

ROOT = Path(__file__).parents[2]
USERS, MOVIES = 40, 150
LISTS = (
    *("popularity_ndcg", "retrieve_ndcg", "prerank_ndcg", "rank_ndcg"),
    *("rank_ndcg_over_retrieve", "retrieve_recall100_over_best_baseline"),
    *("stages_in_order", "rank_ndcg_over_best_baseline", "distilled", "undistilled"),
)


def write_movielens(folder: Path) -> None:
    """Users who rate half of the movies, and like those of their own kind."""
    folder.mkdir(parents=True)
    drawn = random.Random(0)
    movies = [
        (n, f"Movie {n} (19{n % 100:02d})", ("Drama", "Comedy")[n % 2]) for n in range(MOVIES)
    ]
    ratings = [
        (user, movie, 4.5 if (user + movie) % 2 == drawn.randrange(5) // 4 else 2.0, 0)
        for user in range(USERS)
        for movie in drawn.sample(range(MOVIES), MOVIES // 2)
    ]
    drawn.shuffle(ratings)
    timed = [(*rating[:3], 1_000_000_000 + 60 * at) for at, rating in enumerate(ratings)]
    for name, header, rows in (
        ("movies.csv", "movieId,title,genres", movies),
        ("ratings.csv", "userId,movieId,rating,timestamp", timed),
    ):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([header.split(","), *rows])


def test_every_figure_is_there(tmp_path: Path) -> None:
    write_movielens(tmp_path / "shared" / "ml-latest-small")
    sets = ("--data-sets", "movielens", "criteo", "--seeds", "1")
    words = ["-m", "perf.quality", "--quick", *sets, "--shared", "shared", "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    printed = f"{ended.stdout[-3000:]}{ended.stderr[-3000:]}"
    assert "criteo is left out: there is no shared/criteo-kaggle-10k/train.txt" in printed
    summary: dict[str, Any] = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert ended.returncode == (0 if summary["holds"] else 1), printed
    found = summary["movielens"]
    assert "criteo" not in summary
    assert not found["failed"], printed
    for key in (*LISTS, "rank_auc", "logistic_auc"):
        assert finite(found[key]), key
        assert found[f"{key}_seeds"] == [found[key]]
    beside = [other for _, _, other, _ in BESIDE["movielens"] if other in found]
    assert len(found["claims"]) == len(CLAIMS["movielens"]) + len(beside) + 1
    for claim in found["claims"]:
        assert claim["figure"] == found[claim["key"]]
        assert claim["holds"] == (claim["figure"] >= claim["target"])
    assert found["holds"] == all(claim["holds"] for claim in found["claims"])
    trained = tmp_path / "out" / "movielens" / "seed-0" / "checkpoints"
    assert (trained / "prerank_labels").exists()
    # A ranker of a log of choices is made from the baseline; nothing is made to compare with.
    assert [path.name for path in trained.glob("*baseline*")] == ["baseline"]
    table = (tmp_path / "out" / "quality.md").read_text()
    assert table in ended.stdout
    assert all(key in table for key in LISTS)
