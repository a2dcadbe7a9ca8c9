"""The training loop: when it stops, which weights it keeps, and how it goes on after a kill."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from tensorboardX.event_file_writer import EventsWriter
from torch import nn

from cascade.training.checkpoint import CheckpointError
from cascade.training.loop import Hyperparameters, Task, fit
from cascade.training.optimization.hyperparameters import CHOICES
from cascade.training.optimization.optimizers import make_optimizers
from cascade.training.tasks import RankTask
from tests.weights import assert_same_weights, fresh

pytestmark = pytest.mark.usefixtures("one_thread")


class Scripted(Task):
    """A task whose validations have a given outcome; remembers the weights of each."""

    def __init__(self, objectives, fail_at=None, seed=0):
        torch.manual_seed(seed)
        self.module = nn.Sequential(nn.Embedding(6, 3, sparse=True), nn.Linear(3, 1))
        self.objectives, self.fail_at = objectives, fail_at
        self.steps_per_epoch = 6
        self.seen, self.weights = [], {}

    def batches(self, epoch, skip):
        order = np.random.default_rng(epoch).permutation(6)
        yield from order[skip:].tolist()

    def loss(self, batch, step):
        if step == self.fail_at:
            raise KeyboardInterrupt
        self.seen.append(batch)
        self.step = step + 1
        return self.module(torch.tensor([batch])).square().sum()

    def validate(self):
        state = self.module.state_dict()
        self.weights[self.step] = {name: value.clone() for name, value in state.items()}
        return {"objective": self.objectives[self.step // 3 - 1]}


SCRIPT = Hyperparameters(
    epochs=4, validations=2, patience=2, lr=0.1, embedding_lr=0.1, save_every=2
)


def test_curves_that_the_disk_does_not_take_fail_no_training(tmp_path, monkeypatch, capfd):
    def full(self, event):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(EventsWriter, "write_event", full)
    unbroken = fit(Scripted([5, 4, 3, 2, 1, 0, 0, 0]), SCRIPT, tmp_path, "scripted")
    assert len(unbroken) == 8
    said = capfd.readouterr().err
    assert said.count("tensorboard: the curves from here on are lost: No space left") == 1


@pytest.mark.parametrize(
    ("objectives", "validations", "best"),
    [
        ([5, 3, 4, 6, 1, 0, 0, 0], 4, 2),  # stops before it gets better
        ([5, 3, 4, 2, 4, 2, 0, 0], 6, 4),  # an equal is no improvement
        ([8, 7, 6, 5, 4, 3, 2, 1], 8, 8),  # the epochs are over
        ([1, float("nan"), 2, 0, 0, 0, 0, 0], 3, 1),
    ],
)
def test_early_stopping_keeps_the_best_weights(tmp_path, objectives, validations, best):
    task = Scripted(objectives)
    history = fit(task, SCRIPT, tmp_path, "scripted")
    assert [record["step"] for record in history] == [3 * (n + 1) for n in range(validations)]
    assert len(task.seen) == 3 * validations
    assert_same_weights(task.module.state_dict(), task.weights[3 * best])
    assert not torch.equal(task.weights[3]["1.weight"], task.weights[6]["1.weight"])


def test_part_of_an_epoch(tmp_path):
    task = Scripted([2, 1, 0])
    history = fit(task, replace(SCRIPT, epochs=1.5, validations=2), tmp_path, "scripted")
    assert [record["step"] for record in history] == [3, 6, 9]
    assert len(task.seen) == 9


def test_rate_falls_to_a_fiftieth(tmp_path):
    class Watched(Scripted):
        rates = ()

        def loss(self, batch, step):
            self.rates = (*self.rates, self.optimizers[1].param_groups[0]["lr"])
            return super().loss(batch, step)

    task = Watched([8, 7, 6, 5, 4, 3, 2, 1])
    original = make_optimizers(task.module, SCRIPT)
    task.optimizers = original
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cascade.training.loop.make_optimizers", lambda *_: original)
        fit(task, SCRIPT, tmp_path, "scripted")
    expected = [0.1 * max(0.02, 1 - step / 24) for step in range(24)]
    assert task.rates == pytest.approx(expected)


@pytest.mark.parametrize("optimizer", CHOICES["optimizer"])
@pytest.mark.parametrize("fail_at", [1, 3, 8, 11, 14])
def test_going_on_equals_never_having_stopped(tmp_path, optimizer, fail_at):
    """The best weights come before the last saving or after it, and stay the best or do not."""
    objectives, hyper = [5, 3, 4, 2, 4, 3, 0, 0], replace(SCRIPT, optimizer=optimizer)
    unbroken = Scripted(objectives)
    expected = fit(unbroken, hyper, tmp_path / "unbroken", "scripted")
    with pytest.raises(KeyboardInterrupt):
        fit(Scripted(objectives, fail_at), hyper, tmp_path / "broken", "scripted")
    saved = fail_at // 2 * 2
    assert (tmp_path / "broken" / "resume.safetensors").exists() == (saved > 0)
    resumed = Scripted(objectives, seed=1 if saved else 0)  # all weights come from the file
    assert fit(resumed, hyper, tmp_path / "broken", "scripted") == expected
    assert resumed.seen == unbroken.seen[saved:]
    assert_same_weights(resumed.module.state_dict(), unbroken.module.state_dict())


class Dropping(Scripted):
    """Draws by torch for each batch."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.module.insert(1, nn.Dropout(0.5))


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": "constant"},
        {"schedule": "cosine", "cycle_epochs": 0.5, "cycle_growth": 2},
        {"warmup_steps": 9},
        {"accumulate": 3, "clip_norm": 0.1, "optimizer": "adamw", "weight_decay": 0.1},
        {"accumulate": 5, "schedule": "cosine"},
        {"precision": "bf16"},
    ],
    ids=str,
)
@pytest.mark.parametrize("fail_at", [8, 14])
def test_going_on_by_any_schedule_and_with_what_is_drawn(tmp_path, change, fail_at):
    objectives, hyper = [8, 7, 6, 5, 4, 3, 2, 1], replace(SCRIPT, **change)
    unbroken = Dropping(objectives)
    expected = fit(unbroken, hyper, tmp_path / "unbroken", "scripted")
    with pytest.raises(KeyboardInterrupt):
        fit(Dropping(objectives, fail_at), hyper, tmp_path / "broken", "scripted")
    resumed = Dropping(objectives, seed=1)
    assert fit(resumed, hyper, tmp_path / "broken", "scripted") == expected
    # It is saved between two changes of the weights.
    every = -(-hyper.save_every // hyper.accumulate) * hyper.accumulate
    assert resumed.seen == unbroken.seen[fail_at // every * every :]
    assert_same_weights(resumed.module.state_dict(), unbroken.module.state_dict())


def test_a_training_that_had_stopped_early_stays_so(tmp_path):
    first = Scripted([1, 2, 3, 0, 0, 0, 0, 0])
    expected = fit(first, replace(SCRIPT, save_every=3), tmp_path, "scripted")
    again = Scripted([1, 2, 3, 0, 0, 0, 0, 0], seed=1)
    assert fit(again, replace(SCRIPT, save_every=3), tmp_path, "scripted") == expected
    assert again.seen == []
    assert_same_weights(again.module.state_dict(), first.module.state_dict())


def test_another_recipe_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(Scripted([1] * 8, fail_at=5), SCRIPT, tmp_path, "scripted", {"schema_hash": "a"})
    task = Scripted([1] * 8)
    with pytest.raises(
        CheckpointError, match=r"resume\.safetensors.*: lr was 0\.1 and is now 0\.2"
    ):
        fit(task, replace(SCRIPT, lr=0.2), tmp_path, "scripted", {"schema_hash": "a"})
    with pytest.raises(CheckpointError, match="schema_hash was 'a' and is now 'b'"):
        fit(task, SCRIPT, tmp_path, "scripted", {"schema_hash": "b"})
    assert task.seen == []
    fit(task, replace(SCRIPT, save_every=7), tmp_path, "scripted", {"schema_hash": "a"})
    assert task.seen


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from cascade.data import Dataset
from cascade.models import build, preset
from cascade.training.loop import Hyperparameters, fit
from cascade.training.tasks import RankTask

class Killed(RankTask):
    def loss(self, batch, step):
        if step == 17:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(batch, step)

torch.manual_seed(0)
dataset = Dataset.open(sys.argv[1])
hyper = Hyperparameters(batch_size=50, epochs=2, save_every=5)
scorer = build("dlrm", preset("dlrm", "tiny"), dataset.schema)
fit(Killed(scorer, dataset, hyper, torch.device("cpu")), hyper, Path(sys.argv[2]), "killed")
"""


def test_going_on_after_kill_9(synthetic, child_environment, tmp_path):
    arguments = [synthetic.root, tmp_path / "killed"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], env=child_environment, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    hyper = Hyperparameters(batch_size=50, epochs=2, save_every=5)
    resumed, unbroken = (
        RankTask(fresh(synthetic.schema, seed=seed), synthetic, hyper, torch.device("cpu"))
        for seed in (1, 0)
    )
    expected = fit(unbroken, hyper, tmp_path / "unbroken", "unbroken")
    assert fit(resumed, hyper, tmp_path / "killed", "killed") == expected
    assert_same_weights(resumed.module.state_dict(), unbroken.module.state_dict())
