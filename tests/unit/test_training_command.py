"""`python -m cascade.training`: what it writes, a kill in the middle, and what is done again."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from tensorboardX.proto.event_pb2 import Event

from cascade.models.contract import ContractError
from cascade.models.registry import ModelError, Recipe
from cascade.training import checkpoint, trainer
from tests.weights import assert_same_weights

NAMES = tuple(trainer.TRAININGS)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def start(synthetic, child_environment):
    """Starts python -m cascade.training, small in everything, for a folder of checkpoints."""
    made_from = synthetic.source["fingerprint"]
    spec = ",".join(f"{option}={made_from[option]}" for option in ("rows", "items", "seed"))
    options = ["--data", f"synthetic:{spec}", "--prepared", synthetic.root, "--device", "cpu"]
    options += ["--recipe", "retrieve=two_tower:tiny", "rank=dlrm:tiny", "--save-every", "10"]

    def started(out):
        return subprocess.Popen(
            [sys.executable, "-m", "cascade.training", *options, "--out", out],
            env=child_environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return started


def finished(process):
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def trained(start, tmp_path_factory):
    """-> the folder of checkpoints, and what the command printed."""
    out = tmp_path_factory.mktemp("trained") / "checkpoints"
    return out, finished(start(out))


def test_the_command_writes_every_model(trained, synthetic):
    out, output = trained
    assert "Warning" not in output
    for name in NAMES:
        found = checkpoint.describe(out / name)
        assert found["metrics"] in found["history"]
        assert found["schema_hash"] == synthetic.schema.hash
        assert len(load_file(out / name / "weights.safetensors")) > 0
        files = {path.name for path in (out / name).iterdir()}
        assert files == {"checkpoint.json", "weights.safetensors", "curves.png", "tensorboard"}
    towers = checkpoint.load(out / "retrieve", synthetic.schema)
    assert type(towers).__name__ == "TwoTower"
    verdict = json.loads((out / "verdict.json").read_text())
    assert all(pair["sentence"] in output for pair in verdict["verdict"])
    assert {f"recall_at_100_{name}" for name in ("retrieve", "popularity")} <= verdict.keys()
    assert "kept_by_prerank_labels" in verdict


def events(folder):
    """Read TensorBoard's files back: length, checksum, event, checksum."""
    scalars = {}
    for path in sorted(folder.glob("events.*")):
        data, start = path.read_bytes(), 0
        while start < len(data):
            length = int.from_bytes(data[start : start + 8], "little")
            event = Event.FromString(data[start + 12 : start + 12 + length])
            for value in event.summary.value:
                scalars.setdefault(value.tag, {})[event.step] = value.simple_value
            start += length + 16
    return scalars


def test_curves_are_drawn_and_logged(trained):
    for name in NAMES:
        folder = trained[0] / name
        history = checkpoint.describe(folder)["history"]
        scalars = events(folder / "tensorboard")
        assert set(scalars) == set(history[-1])
        for measure, values in scalars.items():
            expected = {r["step"]: r[measure] for r in history if measure in r}
            assert values == pytest.approx(expected, rel=1e-6)
        picture = (folder / "curves.png").read_bytes()
        assert picture.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = (int.from_bytes(picture[i : i + 4], "big") for i in (16, 20))
        assert (width, height) == (440 * (len(history[-1]) - 2), 330)
        assert len(picture) > 5000


def test_the_command_goes_on_after_kill_9(trained, start, tmp_path):
    """Killed while it trains the ranker, or what comes next, some steps after a saving."""
    process = start(tmp_path)
    while process.poll() is None:
        process.send_signal(signal.SIGSTOP)  # so that it does not get on while it is looked at
        if any((tmp_path / name / "resume.safetensors").exists() for name in NAMES[1:]):
            break
        process.send_signal(signal.SIGCONT)
        time.sleep(0.02)
    process.kill()
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    ready = [name for name in NAMES if (tmp_path / name / "checkpoint.json").exists()]
    assert NAMES[0] in ready
    assert [*tmp_path.glob("*/resume.safetensors")]
    output = finished(start(tmp_path))
    assert output.count("already trained") == len(ready) < len(NAMES)
    for name in NAMES:
        expected = load_file(trained[0] / name / "weights.safetensors")
        assert_same_weights(load_file(tmp_path / name / "weights.safetensors"), expected)
        histories = [checkpoint.describe(f / name)["history"] for f in (trained[0], tmp_path)]
        assert histories[0] == histories[1]


class Reached(Exception):
    """A training would begin."""


@pytest.fixture
def begins(monkeypatch):
    """Run the command on a folder -> the model that it begins to train, or None."""

    def refuse(_task, _recipe, _folder, name, _made_from):
        raise Reached(name)

    monkeypatch.setattr(trainer, "fit", refuse)

    def run(dataset, out, seed=0, ranker="tiny"):
        recipe = Recipe("two_tower:tiny", rank=f"dlrm:{ranker}")
        changes = {"seed": seed, "save_every": 99}
        try:
            trainer.Trainer(dataset, out, torch.device("cpu"), recipe, changes).run()
        except Reached as reached:
            return str(reached)
        return None

    return run


def modified(out):
    return {path: path.stat().st_mtime_ns for name in NAMES for path in (out / name).glob("**/*")}


def test_what_is_finished_is_not_trained_again(trained, synthetic, tmp_path, begins, capsys):
    out = shutil.copytree(trained[0], tmp_path / "copy")
    before = modified(out)
    assert begins(synthetic, out) is None
    assert capsys.readouterr().out.count("already trained") == len(NAMES)
    assert modified(out) == before
    assert begins(synthetic, out, seed=1) == NAMES[0]
    assert begins(synthetic, out, ranker="small") == "rank"
    (out / "baseline" / "checkpoint.json").unlink()
    assert begins(synthetic, out) == "baseline"


def test_a_student_of_another_teacher_is_trained_again(trained, synthetic, tmp_path, begins):
    out = shutil.copytree(trained[0], tmp_path / "copy")
    teacher = checkpoint.load(out / "rank", synthetic.schema)
    with torch.no_grad():
        next(teacher.parameters()).add_(1)
    checkpoint.save(out / "rank", teacher, checkpoint.describe(out / "rank"))
    assert begins(synthetic, out) == "prerank"


# --- recipes


def test_a_recipe_is_read_from_words_and_from_a_file(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text('rank = "dlrm:rmc2"\nbaseline = "tests.example_models:Textbook"\n')
    assert Recipe.read([]) == Recipe()
    found = Recipe.read(["retrieve=two_tower:tiny", str(file), "prerank=logistic"])
    assert found == Recipe(
        "two_tower:tiny", "logistic", "dlrm:rmc2", "tests.example_models:Textbook"
    )
    assert found.model("prerank") == ("logistic", "default")
    assert Recipe.read([str(file), "rank=dlrm:tiny"]).rank == "dlrm:tiny"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ranker=dlrm:small"], "unknown stage 'ranker': did you mean 'rank'"),
        (["rank=dln:small"], "recipe, rank: there is no model 'dln:small'"),
        (["rank=dlrm:huge"], "recipe, rank: model dlrm has no preset 'huge'"),
        (["dlrm:small"], "recipe dlrm:small is neither stage=model:preset nor a TOML file"),
        (["{folder}/bad.toml"], r"bad.toml is neither .*line 1"),
        (["{folder}/number.toml"], "recipe, rank: 3 came; expected text"),
    ],
)
def test_a_wrong_recipe_is_named(words, message, tmp_path):
    (tmp_path / "bad.toml").write_text("rank: dlrm\n")
    (tmp_path / "number.toml").write_text("rank = 3\n")
    with pytest.raises(ModelError, match=message):
        Recipe.read([word.format(folder=tmp_path) for word in words])


def test_a_model_of_a_users_own_is_trained(synthetic, tmp_path, monkeypatch):
    """By its class, without a registration; it teaches and is taught."""
    monkeypatch.setattr(trainer, "DISTILL_USERS", 200)
    recipe = Recipe(
        "two_tower:tiny",
        "tests.example_models:AnyNames",
        "tests.example_models:TwoTasks:wide",
    )
    changes = {"epochs": 0.1, "batch_size": 50}
    found = trainer.Trainer(synthetic, tmp_path, torch.device("cpu"), recipe, changes)
    found.run()
    description = checkpoint.describe(tmp_path / "rank")
    assert (description["model"], description["preset"]) == (
        "tests.example_models:TwoTasks",
        "wide",
    )
    loaded = checkpoint.load(tmp_path / "rank", synthetic.schema)
    assert_same_weights(loaded.state_dict(), found.models["rank"].state_dict())


def test_a_retriever_that_is_no_dot_product_is_refused_before_it_is_trained(synthetic, tmp_path):
    found = trainer.Trainer(synthetic, tmp_path, torch.device("cpu"), Recipe("dlrm:tiny"), {})
    with pytest.raises(ContractError, match="DLRM cannot retrieve"):
        found.run()
    assert not (tmp_path / "retrieve" / "tensorboard").exists()


@pytest.mark.parametrize(
    ("model", "rows", "made"),
    [
        ("dlrm:tiny", 100_000, "Blend"),
        ("dlrm:tiny", 100, "DLRM"),
        ("logistic", 100_000, "LogisticRegression"),
        ("tests.example_models:TwoTasks:wide", 100_000, "TwoTasks"),
    ],
)
def test_a_model_of_few_rows_learns_what_logistic_regression_lacks(
    synthetic, tmp_path, monkeypatch, model, rows, made
):
    """A DLRM of fewer than `rows` rows; other models stay as they are."""
    monkeypatch.setattr(trainer, "FEW_ROWS", rows)
    recipe = Recipe(rank=model)
    found = trainer.Trainer(synthetic, tmp_path, torch.device("cpu"), recipe, {})
    ranker = found.fresh("rank", found.hyperparameters("rank")).eval()
    assert type(ranker).__name__ == made
    if made == "Blend":
        batch, (dense, ids) = synthetic.sample("test", 20), synthetic.items()
        user = ranker.user(torch.tensor(batch.user_dense), torch.tensor(batch.user_ids))
        states = ranker.item(*map(torch.tensor, (dense, ids)))
        logits = ranker.score(user, states.expand(len(user), -1, -1))
        assert logits.abs().max() == 0
