"""A few batch sizes, for whatever is recorded, tuned or allocated once per size.

A CUDA graph, a TensorRT profile and a reused buffer each belong to one shape. A batch is padded to
the next of these sizes, so there are seven of each instead of sixty-four.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cascade.artifact import Array

BUCKETS = (1, 2, 4, 8, 16, 32, 64)


def bucket(users: int) -> int:
    """The least of `BUCKETS` that holds `users`.

    Raises ValueError: there are no users, or more than the largest holds.
    """
    if not 0 < users <= BUCKETS[-1]:
        raise ValueError(f"{users} users came in one run; expected 1 to {BUCKETS[-1]}")
    return next(size for size in BUCKETS if size >= users)


def in_buckets(run: Callable[[list[Array]], list[Array]], inputs: Sequence[Array]) -> list[Array]:
    """`run` a batch of any size, batch first, in parts that fit into a bucket, each padded to it;
    the answers of the pads are dropped."""
    answers = []
    for start in range(0, len(inputs[0]), BUCKETS[-1]):
        part = [values[start : start + BUCKETS[-1]] for values in inputs]
        users = len(part[0])
        outputs = run([padded(values, bucket(users)) for values in part])
        answers.append([output[:users] for output in outputs])
    if len(answers) == 1:
        return answers[0]
    return [np.concatenate(parts) for parts in zip(*answers, strict=True)]


def padded(values: Array, size: int) -> Array:
    """[B, ...] -> [size, ...]: repeats the first user, which is a valid one."""
    missing = size - len(values)
    if not missing:
        return np.ascontiguousarray(values)
    return np.concatenate((values, np.repeat(values[:1], missing, axis=0)))
