"""Learning rates over a training. A rate depends on the step alone, so a training that goes on
after a kill needs no state of its schedule."""

from __future__ import annotations

from math import cos, pi

from cascade.training.optimization.hyperparameters import Hyperparameters

LEAST = 0.02  # of a rate, where `linear` ends


def share(hyper: Hyperparameters, step: int, steps: int, per_epoch: float) -> float:
    """The part of its learning rate that a step has.

    Args:
        step: from 0.
        steps: of the whole training.
        per_epoch: steps of an epoch.
    """
    if step < hyper.warmup_steps:
        return (step + 1) / (hyper.warmup_steps + 1)
    step, steps = step - hyper.warmup_steps, steps - hyper.warmup_steps
    if hyper.schedule == "linear":
        return max(LEAST, 1 - step / steps)
    if hyper.schedule == "cosine":
        return _cosine(step, hyper.cycle_epochs * per_epoch or steps, hyper.cycle_growth)
    return 1.0


def _cosine(step: float, cycle: float, growth: int) -> float:
    """As `torch.optim.lr_scheduler.CosineAnnealingWarmRestarts` down to 0."""
    while step >= cycle:
        step, cycle = step - cycle, cycle * growth
    return (1 + cos(pi * step / cycle)) / 2
