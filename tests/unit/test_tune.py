"""The search of hyperparameters, and the recipe that it writes."""

from __future__ import annotations

import optuna
import pytest
import tomllib

from cascade.models.registry import ModelError, Recipe
from cascade.training import tune
from cascade.training.__main__ import main
from cascade.training.loop import Hyperparameters
from cascade.training.recipes import check
from cascade.training.tune import SEARCHED, TuneError, space
from tests.programs import last_error, status

pytestmark = pytest.mark.usefixtures("one_thread")
DATA = "synthetic:rows=1400,items=300,seed=1"
TINY = ["retrieve=two_tower:tiny", "prerank=dlrm:tiny", "rank=dlrm:tiny"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    out = tmp_path_factory.mktemp("tune")
    words = ["tune", "--data", DATA, "--out", str(out), "--recipe", *TINY, "--device", "cpu"]
    main([*words, "--trials", "2"])
    return out, words


def test_a_search_goes_on_and_writes_a_recipe(searched, capsys):
    out, words = searched
    capsys.readouterr()
    main([*words, "--trials", "3"])
    said = capsys.readouterr().out
    assert "trial 2: " in said
    assert "trial 1: " not in said
    folder = out / "tune" / "rank"
    assert (folder / "trials.png").read_bytes().startswith(b"\x89PNG")
    table = (folder / "trials.txt").read_text()
    assert table in said
    found = Recipe.read([str(folder / "recipe.toml")])
    check(found)
    assert set(found.hyperparameters["rank"]) == set(SEARCHED)


def test_the_first_trial_is_the_usual_training(searched):
    out, _ = searched
    table = (out / "tune" / "rank" / "trials.txt").read_text()
    (first,) = (line.split() for line in table.splitlines() if line.split()[0] == "0")
    assert first[1] == "complete"
    assert [float(value) for value in first[3:6]] == pytest.approx([3e-4, 1e-3, 1.0])


def test_a_training_takes_the_recipe(searched, tmp_path, capsys):
    out, words = searched
    recipe = out / "tune" / "rank" / "recipe.toml"
    wanted = tomllib.loads(recipe.read_text())["hyperparameters"]["rank"]
    trained = tmp_path / "out"
    main([*words[1:3], "--out", str(trained), "--recipe", *TINY, str(recipe), "--no-baseline"])
    from cascade.training import checkpoint

    found = checkpoint.describe(trained / "rank")["recipe"]
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


def test_rates_are_drawn_around_the_usual_ones():
    study = optuna.create_study()
    usual = Hyperparameters(batch_size=512, lr=1e-3, embedding_lr=1e-2, epochs=2)
    for _ in range(20):
        found = space(study.ask(), usual)
        assert set(found) == set(SEARCHED)
        assert 1e-3 / 30 <= found["lr"] <= 3e-2
        assert found["batch_size"] in (128, 512, 2048)
        assert 0.5 <= found["epochs"] <= 4


def test_no_finished_trial_is_an_error(tmp_path):
    with pytest.raises(TuneError, match="no trial of rank came to its end"):
        tune.write(optuna.create_study(), "rank", tmp_path)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--trials", "0"], "--trials 0 came; expected more than 0"),
        (["--minutes", "-1"], "--minutes -1 came; expected more than 0"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, more, message):
    words = ["tune", "--data", DATA, "--out", str(tmp_path), *more]
    assert status(main, words) == 1
    assert message in last_error(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[hyperparameters.ranker]\nlr = 1.0", "unknown training 'ranker': did you mean 'rank'"),
        ("[hyperparameters.rank]\nlearn = 1.0", r"hyperparameters.rank: unknown hyperparameter"),
        ("[hyperparameters.rank]\nlr = 'a'", r"hyperparameters.rank.lr: 'a' came; expected float"),
        ("[hyperparameters]\nrank = 1", "expected a table for each training"),
    ],
)
def test_wrong_hyperparameters_are_named(tmp_path, text, message):
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(ModelError, match=message):
        check(Recipe.read([str(tmp_path / "recipe.toml")]))
