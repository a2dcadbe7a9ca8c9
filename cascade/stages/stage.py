"""What a stage is: a tuple of arrays to a tuple of arrays; and a chain of stages, which is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from cascade.artifact import Array


class Stage(Protocol):
    """One step: a tuple of input arrays, batch first, to a tuple of output arrays.

    After its `inputs` come those that are `optional`, as far as there are any: None, or nothing at
    all, stands for one that no request of the batch has.
    """

    inputs: tuple[str, ...]
    optional: tuple[str, ...]
    outputs: tuple[str, ...]
    schema_hash: str

    def __call__(self, *inputs: Any) -> tuple[Array, ...]:
        """Run one batch.

        Raises:
            InvalidInput: a value of the request is at fault, not the stage.
        """


class Chain:
    """Neighbouring stages in one process: what one returns, the next ones find by name."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        made: set[str] = set()
        needed: list[str] = []
        for stage in stages:
            needed += [n for n in stage.inputs if n not in made and n not in needed]
            made |= set(stage.outputs)
        self.inputs, self.outputs = tuple(needed), stages[-1].outputs
        self.optional = tuple(name for stage in stages for name in stage.optional)
        self.schema_hash = stages[0].schema_hash
        self.stages = tuple(stages)

    def __call__(self, *inputs: Any) -> tuple[Array, ...]:
        values = dict(zip((*self.inputs, *self.optional), inputs, strict=False))
        for stage in self.stages:
            optional = (values.get(name) for name in stage.optional)
            made = stage(*(values[name] for name in stage.inputs), *optional)
            values.update(zip(stage.outputs, made, strict=True))
        return made
