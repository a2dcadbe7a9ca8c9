"""What the three models are trained to do."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def sampled_softmax(
    user: Tensor, item: Tensor, item_rows: Tensor, positive: Tensor, log_q: Tensor
) -> Tensor:
    """In-batch sampled softmax with the popularity correction.

    Every row's item is a candidate for every positive row's user. An item comes into a batch as
    often as it is shown, so log Q is taken off its logit (Yi et al., RecSys 2019); the same item
    met again in another row is no negative and is masked.

    Args:
        user, item: [B, D], already divided by the temperature on one side.
        item_rows: [B] catalogue rows.
        positive: [B] positions of the positives as a bool mask.
        log_q: [B] log of each item's share of the training rows.
    """
    rows = positive.nonzero().squeeze(1)  # [P]
    logits = user[rows] @ item.t() - log_q  # [P, B]
    same = item_rows[rows].unsqueeze(1) == item_rows.unsqueeze(0)
    same[torch.arange(len(rows), device=rows.device), rows] = False
    return functional.cross_entropy(logits.masked_fill(same, -torch.inf), rows)


def distillation(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Learn the teacher's order and level over one user's candidates.

    The listwise part (Hinton et al., 2015, over candidates instead of classes) weighs the top of
    the teacher's list; the pointwise part keeps the student a click probability.

    Args:
        student, teacher: logits [B, K].
        temperature: below 1 the listwise part looks more at the teacher's first choices.
    """
    order = functional.cross_entropy(
        student / temperature, functional.softmax(teacher / temperature, dim=1)
    )
    level = functional.binary_cross_entropy_with_logits(student, torch.sigmoid(teacher))
    return order + level
