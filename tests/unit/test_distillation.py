"""A preranker learns the order of its teacher, on what the retriever returns."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from cascade.training.loop import Hyperparameters, fit
from cascade.training.teaching.distill import Candidates, DistillTask
from tests.weights import assert_same_weights, fresh, opinionated

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def candidates(synthetic):
    """200 of the 300 items for each user, by towers that know nothing."""
    return Candidates(fresh(synthetic.schema, "two_tower"), synthetic, CPU, users=1200, k=200)


@pytest.fixture(scope="module")
def teacher(synthetic):
    return opinionated(synthetic.schema, seed=3)


def test_a_student_keeps_the_first_choices_of_its_teacher(synthetic, candidates, teacher, tmp_path):
    """It keeps 20 of 200 candidates: by chance, a tenth of the teacher's ten."""
    hyper = Hyperparameters(batch_size=64, epochs=2, lr=0.01, embedding_lr=0.03, patience=99)
    student = fresh(synthetic.schema, size="small", seed=4)
    task = DistillTask(student, teacher, candidates, hyper, keep=20)
    with torch.inference_mode():
        before = task.validate()["validation_kept"]
    history = fit(task, hyper, tmp_path, "student")
    assert before < 0.2
    assert max(record["validation_kept"] for record in history) > 0.4
    assert history[0] == {"step": 0, "objective": -before, "validation_kept": before}
    assert history[-1]["loss"] < history[1]["loss"]


def test_weights_that_were_trained_stay_where_a_teacher_makes_nothing_better(
    candidates, teacher, tmp_path
):
    """Almost the teacher itself, as the student of its own order turned round."""
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student.top[0].weight *= 1.3
    begun = copy.deepcopy(student.state_dict())
    task = DistillTask(student, teacher, candidates, Hyperparameters(batch_size=64), keep=10)
    task.loss = lambda batch, step: sum(p.square().sum() for p in student.top.parameters())
    history = fit(task, Hyperparameters(batch_size=64, lr=0.1), tmp_path, "student")
    assert 0.5 < history[0]["validation_kept"] < 1
    assert history[-1]["validation_kept"] < history[0]["validation_kept"]
    assert_same_weights(student.state_dict(), begun)


def test_distillation_ends_where_nothing_can_be_better(candidates, teacher, tmp_path):
    task = DistillTask(
        copy.deepcopy(teacher), teacher, candidates, Hyperparameters(batch_size=64), keep=10
    )
    assert len(fit(task, Hyperparameters(batch_size=64), tmp_path, "student")) == 1


def test_a_teacher_keeps_its_own_choices(candidates, teacher):
    task = DistillTask(teacher, teacher, candidates, Hyperparameters(batch_size=64), keep=10)
    with torch.inference_mode():
        assert task.validate() == {"objective": -1.0, "validation_kept": 1.0}


def test_each_user_learns_from_its_own_item_and_a_sample(candidates, synthetic, teacher):
    task = DistillTask(
        fresh(synthetic.schema), teacher, candidates, Hyperparameters(batch_size=64), 20, sample=16
    )
    rows, found = candidates.train
    chosen, items = next(task.batches(0, 0))
    assert items.shape == (64, 17)
    assert torch.equal(items[:, 0], rows[chosen][2])
    for row, line in zip(chosen, items, strict=True):
        assert set(line[1:].tolist()) <= set(found[row].tolist())
        assert len(set(line[1:].tolist())) == 16
    everyone = torch.cat([chosen for chosen, _ in task.batches(0, 0)])
    assert sorted(everyone.tolist()) == list(range(1200))
    for (one, first), (two, second) in zip(
        task.batches(1, 3), list(task.batches(1, 0))[3:], strict=True
    ):
        assert torch.equal(one, two)
        assert torch.equal(first, second)


def test_pads_teach_nothing(synthetic, candidates, teacher):
    """21 items and 30 pads: the list is that of the 21, and the level is a mean over 51 places of
    which 30 are as they should be."""
    student = fresh(synthetic.schema, size="small", seed=4)
    task = DistillTask(
        student, teacher, candidates, Hyperparameters(batch_size=64), 20, label_weight=0.0
    )
    rows, found = candidates.train
    chosen = torch.arange(8)
    items = torch.cat((rows[chosen][2].unsqueeze(1), found[chosen, :20]), dim=1)
    padded = torch.cat((items, torch.full((8, 30), -1)), dim=1)
    with torch.no_grad():
        scores, wanted = (
            model.cross(
                model.user(*rows[chosen][:2]),
                model.item(*task.items[:])[items],
            )
            for model in (student, teacher)
        )
        order = functional.cross_entropy(scores, wanted.softmax(1))
        level = functional.binary_cross_entropy_with_logits(scores, wanted.sigmoid())
        torch.testing.assert_close(task.loss((chosen, items), 0), order + level)
        torch.testing.assert_close(task.loss((chosen, padded), 0), order + level * 21 / 51)
    task.loss((chosen, padded), 0).backward()
    assert all(torch.isfinite(p.grad.to_dense()).all() for p in student.parameters())


def test_a_catalogue_smaller_than_the_list(synthetic, teacher, tmp_path):
    """The retriever is asked for 1000 of 300 items, and what it does not find is a pad."""
    small = Candidates(fresh(synthetic.schema, "two_tower"), synthetic, CPU, users=100, k=1000)
    rows, found = small.train
    assert found.shape == (len(rows), small.k) == (100, 300)
    for line in found.tolist():
        real = [item for item in line if item >= 0]
        assert len(set(real)) == len(real) > 10
    small.train = rows, torch.where(torch.arange(300) < 40, found, -1)
    users, lists = small.validation
    small.validation = users, torch.where(torch.arange(300) < 40, lists, -1)
    hyper = Hyperparameters(batch_size=50, epochs=3)
    task = DistillTask(fresh(synthetic.schema), teacher, small, hyper, keep=40)
    history = fit(task, hyper, tmp_path, "student")
    assert all(record["validation_kept"] == 1 for record in history)  # there is no more to keep
    assert all(np.isfinite(record["loss"]) for record in history[1:])
