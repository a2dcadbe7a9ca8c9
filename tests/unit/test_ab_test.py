"""Click-through rates of releases: the interval holds what it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from cascade.evaluation import ab_test


def write(path: Path, release: np.ndarray, user: np.ndarray, clicked: np.ndarray) -> Path:
    pq.write_table(pa.table({"release": release, "user": user, "clicked": clicked}), path)
    return path


def experiment(seed: int, factor: float, users: int = 2000) -> tuple[np.ndarray, ...]:
    """Users see 1 to 40 items each; some click everything, some nothing: impressions are alike."""
    random = np.random.default_rng(seed)
    taste = random.beta(0.5, 4.5, users)  # 0.1 in the mean
    release = 1 + np.arange(users) % 2
    shown = random.integers(1, 40, users)
    user = np.repeat(np.arange(users), shown)
    chance = np.repeat(taste * np.where(release == 2, factor, 1), shown)
    clicked = (random.random(len(user)) < chance).astype(np.int64)
    return np.repeat(release, shown), user, clicked


def test_counts_are_those_of_the_log(tmp_path: Path) -> None:
    path = write(
        tmp_path / "log.parquet",
        np.array([3, 3, 3, 4, 4]),
        np.array(["a", "a", "b", "c", "c"]),
        np.array([1, 0, 0, 1, 1]),
    )
    one, two = ab_test.read(path)
    assert (one.release, one.users, one.impressions, one.clicks) == (3, 2, 3, 1)
    assert (two.release, two.users, two.impressions, two.clicks) == (4, 1, 2, 2)
    assert one.ctr == pytest.approx(1 / 3)


def test_the_interval_covers_what_is_true_as_often_as_it_says(tmp_path: Path) -> None:
    covered, naive = 0, 0
    for seed in range(200):
        one, two = ab_test.read(write(tmp_path / "log.parquet", *experiment(seed, 1.2)))
        found = ab_test.lift(one, two, 0.9)
        covered += found.low <= 0.2 <= found.high
        alike = [r.ctr * (1 - r.ctr) / r.impressions for r in (one, two)]
        half = 1.645 * (sum(alike) ** 0.5) / one.ctr
        naive += abs(found.lift - 0.2) <= half
    assert 168 <= covered <= 192  # 0.9 of 200, within three standard errors
    assert naive < 150  # impressions are not independent


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_both_sides_are_wrong_alike(factor: float) -> None:
    """Of 4,000 logs: the interval lies above what is true about as often as below, 2.5 % each."""
    logs, users, random = 4000, 200, np.random.default_rng(0)
    shown = random.integers(1, 40, (logs, 2, users))
    taste = random.beta(0.5, 4.5, shown.shape) * np.array([[[1], [factor]]]) / 2
    clicks = random.binomial(shown, taste)
    above = below = 0
    for impressions, clicked in zip(shown.astype(float), clicks.astype(float), strict=True):
        one, two = (ab_test.rate(i, impressions[i], clicked[i]) for i in (0, 1))
        found = ab_test.lift(one, two, 0.95)
        above += found.low > factor - 1
        below += found.high < factor - 1
    assert 0.019 < above / logs < 0.034  # 0.025 within three standard errors, and 0.001 more
    assert 0.019 < below / logs < 0.034


def test_swapped_releases_have_the_inverse_interval(tmp_path: Path) -> None:
    one, two = ab_test.read(write(tmp_path / "log.parquet", *experiment(0, 1.4)))
    over, under = ab_test.lift(one, two, 0.95), ab_test.lift(two, one, 0.95)
    assert 1 + over.lift == pytest.approx(1 / (1 + under.lift))
    assert 1 + over.low == pytest.approx(1 / (1 + under.high))
    assert 1 + over.high == pytest.approx(1 / (1 + under.low))
    assert over.low > -1


def test_one_user_tells_nothing() -> None:
    one = ab_test.rate(1, np.array([5.0]), np.array([2.0]))
    two = ab_test.rate(2, np.array([5.0, 4.0]), np.array([2.0, 1.0]))
    assert ab_test.lift(one, two, 0.95)[1:] == (-1, np.inf)
    assert "no difference can be told" in ab_test.report([one, two], 0.95)


def test_a_csv_log_is_the_same_log(tmp_path: Path) -> None:
    columns = experiment(0, 1.2)
    written = ab_test.read(write(tmp_path / "log.parquet", *columns))
    table = pa.table(dict(zip(ab_test.COLUMNS, columns, strict=True)))
    csv.write_csv(table, tmp_path / "log.csv")
    assert ab_test.read(tmp_path / "log.csv") == written


GOOD = {"release": [1, 2], "user": ["a", "b"], "clicked": [0, 1]}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"clicked": [0, 2]}, r"clicked is \[2\]; expected 0 or 1"),
        ({"clicked": ["yes", "no"]}, "clicked is string; expected 0 or 1"),
        ({"clicked": [0.5, 1.0]}, "clicked is double; expected 0 or 1"),
        ({"clicked": [0, None]}, "row 2: clicked is missing; expected 0 or 1"),
        ({"release": ["one", "two"]}, "release is string; expected the number of a release"),
        ({"release": [None, 1]}, "row 1: release is missing"),
        ({"user": [None, None]}, "row 1: user is missing; expected the id of a user"),
        ({"user": [[1], [2]]}, "user is list<.*expected an integer or a string"),
        ({"release": [], "user": [], "clicked": []}, "has no rows"),
    ],
)
def test_columns_that_tell_nothing_are_refused(
    columns: dict[str, list[object]], message: str, tmp_path: Path
) -> None:
    pq.write_table(pa.table({**GOOD, **columns}), tmp_path / "log.parquet")
    with pytest.raises(ab_test.LogError, match=message):
        ab_test.read(tmp_path / "log.parquet")


def test_files_that_are_no_log_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ab_test.LogError, match="there is no file"):
        ab_test.read(tmp_path / "none.parquet")
    with pytest.raises(ab_test.LogError, match="is not a file"):
        ab_test.read(tmp_path)
    pq.write_table(pa.table({"release": [1]}), tmp_path / "narrow.parquet")
    with pytest.raises(ab_test.LogError, match=r"lacks the columns \['user', 'clicked'\]"):
        ab_test.read(tmp_path / "narrow.parquet")
    for name, content in (("log.txt", b"hello\n"), ("empty.parquet", b""), ("b.csv", b"\xff,\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ab_test.LogError, match=name) as caught:
            ab_test.read(tmp_path / name)
        assert "\n" not in str(caught.value)
    none, some = (ab_test.rate(1, np.ones(3), np.full(3, float(clicks))) for clicks in (0, 1))
    for old, new in ((none, some), (some, none)):
        with pytest.raises(ab_test.LogError, match="nothing of release 1 was clicked"):
            ab_test.lift(old, new, 0.95)
    with pytest.raises(ab_test.LogError, match="--confidence 1 came"):
        ab_test.main(["--log", str(tmp_path), "--confidence", "1"])


def test_the_program_ends_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cascade.evaluation.ab_test", "--log", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"error: {tmp_path} is not a file; expected a log, Parquet or CSV\n"


def test_the_command_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path / "log.parquet", *experiment(0, 2.0))
    picture = tmp_path / "picture.png"
    ab_test.main(["--log", str(log), "--plot", str(picture)])
    assert "release 2 over 1: +" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
