"""Click-through rates of releases: the interval holds what it promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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


def test_a_log_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ab_test.LogError, match="there is no file"):
        ab_test.read(tmp_path / "none.parquet")
    pq.write_table(pa.table({"release": [1]}), tmp_path / "narrow.parquet")
    with pytest.raises(ab_test.LogError, match=r"lacks the columns \['user', 'clicked'\]"):
        ab_test.read(tmp_path / "narrow.parquet")
    path = write(tmp_path / "log.parquet", np.array([1]), np.array([1]), np.array([2]))
    with pytest.raises(ab_test.LogError, match=r"clicked is \[2\]; expected 0 or 1"):
        ab_test.read(path)
    none = ab_test.rate(1, np.ones(3), np.zeros(3))
    with pytest.raises(ab_test.LogError, match="nothing of release 1 was clicked"):
        ab_test.lift(none, none, 0.95)


def test_the_command_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path / "log.parquet", *experiment(0, 2.0))
    picture = tmp_path / "picture.png"
    ab_test.main(["--log", str(log), "--plot", str(picture)])
    assert "release 2 over 1: +" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
