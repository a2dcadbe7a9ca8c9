"""Recipes: what is said of a wrong hyperparameter, and the files that come with the package."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import chain

import pytest
import tomllib
import torch

from cascade.models.registry import SHIPPED, ModelError, Recipe, shipped
from cascade.training.loop import Hyperparameters
from cascade.training.optimization.hyperparameters import CHOICES
from cascade.training.recipes import TRAININGS, check
from cascade.training.trainer import Trainer
from tests.docs import TEXTS


@pytest.mark.parametrize("name", shipped())
def test_a_recipe_of_the_package_is_right(name):
    path = SHIPPED / f"{name}.toml"
    text = path.read_text("utf-8")
    content = tomllib.loads(text)
    check(Recipe(hyperparameters=content["hyperparameters"]))
    models = {key: value for key, value in content.items() if key != "hyperparameters"}
    assert models
    for training in content["hyperparameters"]:
        assert TRAININGS[training].model in models
    assert text.startswith("# ")
    assert "github.com/" in text  # its source
    assert Recipe.read([name]) == Recipe.read([str(path)])


def test_the_docs_name_every_recipe_and_every_hyperparameter():
    named = [field.name for field in fields(Hyperparameters) if field.name != "save_every"]
    for name in (*shipped(), *named, *chain(*CHOICES.values())):
        assert f"`{name}`" in TEXTS["data.md"], name


def test_the_settings_of_the_dlrm_paper(synthetic, tmp_path):
    recipe = Recipe.read(["criteo-kaggle-dlrm"])
    trainer = Trainer(synthetic, tmp_path, torch.device("cpu"), recipe, {})
    expected = Hyperparameters(
        128, 1, "sgd", lr=0.1, embedding_lr=0.1, weight_decay=0.0, schedule="constant"
    )
    usual = trainer.hyperparameters("rank")
    ends = {"patience": usual.patience, "validations": usual.validations}
    assert usual == replace(expected, **ends)
    assert trainer.recipe.model("rank") == ("dlrm", "criteo")
    assert trainer.hyperparameters("retrieve_labels").optimizer == "adam"


def test_a_recipe_that_there_is_not_is_told_those_that_there_are():
    with pytest.raises(ModelError, match=r"nor one of criteo-kaggle-dlrm, .*mlperf-dlrm-v2"):
        Recipe.read(["criteo-dlrm"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("optimizer = 'lamb'", "optimizer: 'lamb' came; expected one of adam, adamw, adagrad, ro"),
        ("optimizer = 1", "optimizer: 1 came; expected one of adam, adamw, adagrad, rowwise_adag"),
        ("schedule = 'cos'", "schedule: 'cos' came; expected one of linear, constant, cosine"),
        ("precision = 'half'", "precision: 'half' came; expected one of float32, bf16, fp16"),
        ("warmup_steps = 1.5", r"warmup_steps: 1\.5 came; expected int"),
        ("accumulate = true", "accumulate: True came; expected int"),
        ("accumulate = 0", "accumulate: 0 came; expected at least 1"),
        ("clip_norm = 'a'", "clip_norm: 'a' came; expected float"),
        ("epochs = '1'", "epochs: '1' came; expected float"),
        ("shedule = 'cosine'", "unknown hyperparameter 'shedule': did you mean 'schedule'"),
    ],
)
def test_a_wrong_hyperparameter_is_named_with_what_was_expected(tmp_path, line, message):
    path = tmp_path / "recipe.toml"
    path.write_text(f"[hyperparameters.rank]\n{line}\n")
    with pytest.raises(ModelError, match=rf"recipe, hyperparameters\.rank[.:] ?{message}"):
        check(Recipe.read([str(path)]))


def test_numbers_may_be_whole(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("[hyperparameters.rank]\nlr = 1\nepochs = 0.5\nclip_norm = 2\n")
    check(Recipe.read([str(path)]))


def test_a_precision_of_another_device_is_refused_before_any_training(synthetic, tmp_path):
    recipe = Recipe(hyperparameters={"rank": {"precision": "fp16"}})
    with pytest.raises(ValueError, match="precision fp16 came for a training on cpu"):
        Trainer(synthetic, tmp_path, torch.device("cpu"), recipe, {})
