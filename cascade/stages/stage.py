"""The interface of a stage, and a chain of stages, which is itself a stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from cascade.artifact import Array
from cascade.spec import from_outside


class Stage(Protocol):
    """One step: a tuple of input arrays, batch first, to a tuple of output arrays.

    After its `inputs` come those that are `optional`. None, or a missing argument, stands for an
    optional input that no request of the batch has.
    """

    inputs: tuple[str, ...]
    optional: tuple[str, ...]
    outputs: tuple[str, ...]
    schema_hash: str

    def __call__(self, *inputs: Any) -> tuple[Array, ...]:
        """Run one batch.

        Raises:
            InvalidInput: a value of the request is wrong.
        """


class Chain:
    """Consecutive stages in one process: each finds its inputs by name among the outputs of those
    before it and the inputs of the chain.

    Args:
        outputs: of the chain; None = those of the last stage.
    """

    def __init__(self, stages: Sequence[Stage], outputs: tuple[str, ...] | None = None) -> None:
        self.inputs = from_outside((stage.inputs, stage.outputs) for stage in stages)
        self.optional = tuple(name for stage in stages for name in stage.optional)
        self.outputs = outputs or stages[-1].outputs
        self.schema_hash = stages[-1].schema_hash
        self.stages = tuple(stages)

    def __call__(self, *inputs: Any) -> tuple[Array, ...]:
        values = dict(zip((*self.inputs, *self.optional), inputs, strict=False))
        for stage in self.stages:
            optional = (values.get(name) for name in stage.optional)
            made = stage(*(values[name] for name in stage.inputs), *optional)
            values.update(zip(stage.outputs, made, strict=True))
        return tuple(values[name] for name in self.outputs)
