"""The losses of training against cases worked out by hand."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.training.tasks import sampled_softmax
from cascade.training.teaching.distill import distillation

# Users and items in the plane: the dot products are read off.
USER = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
ITEM = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 3.0]])
DOTS = [[2.0, 0.0, 1.0], [0.0, 1.0, 3.0], [2.0, 1.0, 4.0]]
NO_CORRECTION = torch.zeros(3)


def softmax_loss(logits: list[float], target: int) -> float:
    return log(sum(exp(value) for value in logits)) - logits[target]


def test_sampled_softmax_by_hand():
    """Every row's item is a candidate for the two users who liked theirs."""
    positive = torch.tensor([True, False, True])
    loss = sampled_softmax(USER, ITEM, torch.tensor([10, 11, 12]), positive, NO_CORRECTION)
    expected = (softmax_loss(DOTS[0], 0) + softmax_loss(DOTS[2], 2)) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_sampled_softmax_takes_popularity_off_every_logit():
    share = [0.5, 0.2, 0.3]
    log_q = torch.tensor(share).log()
    positive = torch.tensor([False, True, False])
    loss = sampled_softmax(USER, ITEM, torch.tensor([10, 11, 12]), positive, log_q)
    logits = [dot - log(q) for dot, q in zip(DOTS[1], share, strict=True)]
    assert float(loss) == pytest.approx(softmax_loss(logits, 1), rel=1e-6)


def test_sampled_softmax_masks_the_same_item_in_another_row():
    """Rows 0 and 2 show item 10: for user 0, row 2 is no negative, and the other way round."""
    positive = torch.tensor([True, True, True])
    loss = sampled_softmax(USER, ITEM, torch.tensor([10, 11, 10]), positive, NO_CORRECTION)
    hits = [
        softmax_loss(DOTS[0][:2], 0),  # without row 2
        softmax_loss(DOTS[1], 1),
        softmax_loss(DOTS[2][1:], 1),  # without row 0
    ]
    assert float(loss) == pytest.approx(sum(hits) / 3, rel=1e-6)


def test_sampled_softmax_of_one_item_alone_teaches_nothing():
    """All rows show one item: nothing is left to tell it from."""
    user = USER.clone().requires_grad_()
    positive = torch.tensor([True, False, True])
    loss = sampled_softmax(user, ITEM, torch.tensor([10, 10, 10]), positive, NO_CORRECTION)
    loss.backward()
    assert float(loss.detach()) == 0
    assert user.grad.count_nonzero() == 0


# Logits in steps of a half: far enough apart for float64 to tell losses apart.
LOGITS = st.lists(st.integers(-8, 8).map(lambda x: x / 2), min_size=2, max_size=6)


def by_hand(student: list[float], teacher: list[float]) -> tuple[float, float]:
    """-> the listwise and the pointwise part of one user's loss."""
    weights = [exp(value) for value in teacher]
    losses = [softmax_loss(student, k) for k in range(len(student))]
    order = sum(weight / sum(weights) * loss for weight, loss in zip(weights, losses, strict=True))
    level = 0.0
    for s, t in zip(student, teacher, strict=True):
        chance, taught = 1 / (1 + exp(-s)), 1 / (1 + exp(-t))
        level -= taught * log(chance) + (1 - taught) * log(1 - chance)
    return order, level / len(student)


def test_distillation_by_hand():
    students, teachers = [[0.5, -1.0, 2.0], [0.0, 0.0, 1.0]], [[1.0, 0.0, 3.0], [-1.0, 2.0, 0.5]]
    loss = distillation(torch.tensor(students), torch.tensor(teachers))
    parts = [by_hand(s, t) for s, t in zip(students, teachers, strict=True)]
    assert float(loss) == pytest.approx(sum(a + b for a, b in parts) / 2, rel=1e-6)


def one_user(student: list[float], teacher: list[float]) -> float:
    made = (torch.tensor([values], dtype=torch.float64) for values in (student, teacher))
    return float(distillation(*made))


@settings(max_examples=50, deadline=None)
@given(teacher=LOGITS, data=st.data())
def test_distillation_is_least_where_the_student_is_the_teacher(teacher, data):
    change = data.draw(
        st.lists(st.integers(-4, 4), min_size=len(teacher), max_size=len(teacher)).filter(any)
    )
    student = [t + c / 4 for t, c in zip(teacher, change, strict=True)]
    assert one_user(student, teacher) > one_user(teacher, teacher)


def test_gradient_of_distillation_vanishes_at_the_teacher():
    teacher = torch.tensor([[0.3, -2.0, 1.0, 0.0]], dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    distillation(student, teacher).backward()
    torch.testing.assert_close(student.grad, torch.zeros_like(teacher), atol=1e-12, rtol=0)


def test_order_is_learnt_up_to_a_constant_and_level_without():
    student, teacher, shift = [0.5, -1.0, 2.0], [1.0, 0.0, 3.0], 2.5
    shifted = [value + shift for value in student]
    before, after = by_hand(student, teacher), by_hand(shifted, teacher)
    assert after[0] == pytest.approx(before[0], rel=1e-12)
    difference = one_user(shifted, teacher) - one_user(student, teacher)
    assert difference == pytest.approx(after[1] - before[1], rel=1e-9)
    assert one_user([t + shift for t in teacher], teacher) > one_user(teacher, teacher)
