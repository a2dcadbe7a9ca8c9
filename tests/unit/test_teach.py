"""A retriever learns which items its teacher puts first in the whole catalogue."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from cascade.models import build
from cascade.models.retrieval.two_tower import TwoTowerConfig
from cascade.models.scorer import Scorer
from cascade.training import tasks
from cascade.training.loop import Hyperparameters, fit
from cascade.training.teaching import teach
from cascade.training.teaching.teach import TeachTask
from tests.weights import assert_same_weights, fresh, opinionated

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
HYPER = Hyperparameters(batch_size=64, epochs=4, lr=0.01, embedding_lr=0.03, patience=99)


@pytest.fixture(scope="module")
def teacher(synthetic):
    return opinionated(synthetic.schema, seed=3)


def task_of(synthetic, teacher, hyper=HYPER, users=600, keep=30, quick=None):
    student, trained = (fresh(synthetic.schema, "two_tower", seed=seed) for seed in (4, 5))
    others = (trained, teacher, quick or teacher)
    return TeachTask(student, *others, synthetic, hyper, CPU, users, keep)


def everything(scorer, rows, items):
    """Logits [B, N] of all items."""
    states = scorer.item(*items[:])
    return scorer.score(scorer.user(*rows[:2]), states.expand(len(rows[0]), -1, -1))


def test_a_student_finds_what_its_teacher_puts_first(synthetic, teacher, tmp_path):
    """30 of 300 items: by chance, a tenth of the teacher's ten."""
    task = task_of(synthetic, teacher)
    history = fit(task, HYPER, tmp_path, "student")
    assert history[0]["validation_kept"] < 0.35
    assert history[-1]["validation_kept"] > history[0]["validation_kept"] + 0.3


def test_the_best_are_those_of_all_items(synthetic, teacher, monkeypatch):
    monkeypatch.setattr(tasks, "PAIRS", 70)  # a part of the catalogue at once
    task = task_of(synthetic, teacher)
    rows = task.validation[:]
    with torch.inference_mode():
        logits = everything(teacher, rows, task.items)
    best = logits.topk(10, dim=1).values
    torch.testing.assert_close(logits.gather(1, task.wanted), best)


def test_the_best_are_those_of_a_shortlist_of_the_quick_model(synthetic, teacher, monkeypatch):
    monkeypatch.setattr(teach, "SHORTLIST", 40)
    quick = opinionated(synthetic.schema, seed=8)
    task = task_of(synthetic, teacher, quick=quick)
    rows = task.validation[:]
    with torch.inference_mode():
        first = everything(quick, rows, task.items).topk(40, dim=1).indices
        logits = everything(teacher, rows, task.items)
    best = logits.gather(1, first).topk(10, dim=1).values
    torch.testing.assert_close(logits.gather(1, task.wanted), best)


def test_a_batch_that_asks_for_everything_compares_whole_distributions(
    synthetic, teacher, monkeypatch
):
    monkeypatch.setattr(teach, "NEAR", 200)
    monkeypatch.setattr(teach, "SHARED", 100)  # together all 300 items
    task = task_of(synthetic, teacher, users=20)
    chosen, drawn = torch.arange(20), torch.randperm(300)
    with torch.no_grad():
        rows = task.train[chosen]
        wanted = (everything(teacher, rows, task.items) / teach.TEMPERATURE).softmax(1)
        scores = everything(task.student, rows, task.items) * task.scale
        expected = functional.cross_entropy(scores, wanted)
        torch.testing.assert_close(task.loss((chosen, drawn), 0), expected, atol=1e-4, rtol=1e-4)


def test_a_user_is_asked_about_no_item_twice(synthetic, teacher, monkeypatch):
    monkeypatch.setattr(teach, "SHARED", 40)
    task = task_of(synthetic, teacher, users=20)
    with torch.no_grad():
        user, items = task.student.user(*task.train[:][:2]), task.student.item(*task.items[:])
        asked = task._asked(user, items)
        scores = (user @ items.t())[:, 40:]
    assert all(len(set(places)) == 40 + teach.NEAR for places in asked.tolist())
    near = (user @ items.t()).gather(1, asked[:, : teach.NEAR])
    torch.testing.assert_close(near, scores.topk(teach.NEAR, dim=1).values)
    assert (asked[:, teach.NEAR :] == torch.arange(40)).all()


@pytest.mark.parametrize("width", [2, 8, 12])
def test_a_student_begins_with_the_embeddings_of_its_teacher(synthetic, teacher, width):
    """Narrower than the teacher's 8 numbers, with the directions that say most; wider, with all."""
    config = TwoTowerConfig(width=width, layers=(16, 8))
    student, trained = (build("two_tower", asdict(config), synthetic.schema) for _ in range(2))
    task = TeachTask(student, trained, teacher, teacher, synthetic, HYPER, CPU, 20, 30)
    assert_same_weights(student.state_dict(), trained.state_dict())  # they are validated first
    task.begin()
    found, wanted = (
        embeddings.table.weight.detach()
        for embeddings in (student.item_tower.embeddings, teacher.item_ids)
    )
    if width >= 8:
        assert torch.equal(found[:, :8], wanted)
    else:
        spread = torch.linalg.svdvals(wanted)
        torch.testing.assert_close(torch.linalg.svdvals(found), spread[:width])


class Numbers(Scorer):
    """A model without embeddings."""

    def __init__(self, schema):
        super().__init__(schema)
        self.all = nn.Linear(schema.dense_width("user") + schema.dense_width("item"), 1)

    def forward(self, user_dense, user_ids, item_dense, item_ids):
        return self.all(torch.cat((user_dense, item_dense), dim=1)).squeeze(1)


def test_a_teacher_without_such_embeddings_teaches_the_trained_weights(synthetic):
    teacher = Numbers(synthetic.schema).eval()
    task = task_of(synthetic, teacher)
    before = copy.deepcopy(task.student.state_dict())
    task.begin()
    assert_same_weights(task.student.state_dict(), before)


def test_weights_that_find_all_stay(synthetic, tmp_path):
    """The teacher is the student as it came: nothing can become better."""
    teacher = fresh(synthetic.schema, "two_tower", seed=5).eval()
    task = task_of(synthetic, teacher, replace(HYPER, epochs=1), keep=60)
    before = copy.deepcopy(task.student.state_dict())
    history = fit(task, replace(HYPER, epochs=1), tmp_path, "student")
    assert history[0]["objective"] == -1.0
    for name, weight in task.student.state_dict().items():
        assert torch.equal(weight, before[name])


def test_batches_depend_on_the_epoch_and_the_step_alone(synthetic, teacher):
    task = task_of(synthetic, teacher)
    for one, other in zip(task.batches(1, 3), list(task.batches(1, 0))[3:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    everyone = torch.cat([chosen for chosen, _ in task.batches(0, 0)])
    assert sorted(everyone.tolist()) == list(range(600))
