"""The final score as a formula of what a model says of an item: `ctr * (0.6 + 0.4 * engagement)`.

A formula has the names of a model's outputs, numbers, + - * / **, brackets, and the functions
`sigmoid`, `log`, `exp`, `sqrt`, `min` and `max`. Python's parser reads it; nothing of it is
executed. It is computed in float32.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade.errors import CascadeError
from cascade.values import unknown_name

Values = npt.NDArray[np.float32]

LONGEST = 2000  # characters
DEEPEST = 60  # operations inside of each other; of a sum of n terms, n - 1
LARGEST = float(np.finfo(np.float32).max)


class FormulaError(CascadeError, ValueError):
    """A text that is no formula, or not one of the outputs that there are."""


def _sigmoid(x: Values) -> Values:
    found: Values = (1 + np.tanh(x / 2)) / 2  # of this form it cannot overflow
    return found


BINARY: Mapping[type[ast.operator], Callable[..., Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.power,
}
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "sigmoid": _sigmoid,
    "log": np.log,
    "exp": np.exp,
    "sqrt": np.sqrt,
}
SEVERAL: Mapping[str, Callable[..., Any]] = {"min": np.minimum, "max": np.maximum}
GRAMMAR = (
    "it has outputs, numbers, + - * / **, "
    f"{', '.join(f'{name}(x)' for name in FUNCTIONS)}, min(x, y) and max(x, y)"
)


@dataclass(frozen=True)
class Formula:
    """A formula that was read.

    Args:
        names: the outputs that it reads, in the order in which they come first.
    """

    text: str
    names: tuple[str, ...]
    _tree: ast.expr

    @classmethod
    def read(cls, text: str) -> Formula:
        """Raises FormulaError: it is none, is too long or too deep, or reads no output."""
        text = text.strip()
        if len(text) > LONGEST:
            raise FormulaError(f"a formula has {LONGEST} characters at most; {len(text)} came")
        try:
            tree = ast.parse(text, mode="eval").body
        except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
            raise FormulaError(f"{text!r:.80} is no formula: {type(error).__name__}") from error
        names: dict[str, None] = {}
        _check(text, tree, names, 0)
        if not names:
            raise FormulaError(f"{text!r:.80} reads no output, so that all items have one score")
        return cls(text, tuple(names), tree)

    @classmethod
    def of(cls, text: str, outputs: Sequence[str]) -> Formula:
        """`read`. Raises FormulaError, too, where it reads an output that is not among these, which
        the message names in any case."""
        known = f"the outputs are {', '.join(outputs)}"
        try:
            formula = cls.read(text)
        except FormulaError as error:
            raise FormulaError(f"{error}; {known}") from error
        for name in formula.names:
            if name not in outputs:
                message = unknown_name("output", name, outputs)
                more = "" if "known are" in message else f"; {known}"
                raise FormulaError(f"formula {formula.text!r:.80}: {message}{more}")
        return formula

    def __call__(self, outputs: Mapping[str, Values]) -> Values:
        """The score of every element, of outputs of one shape, float32; NaN or infinite where there
        is no number, without a word."""
        with np.errstate(all="ignore"):
            return np.asarray(_value(self._tree, outputs), np.float32)


def _check(text: str, part: ast.expr, names: dict[str, None], depth: int) -> None:
    """Refuse what is no part of a formula; add what it reads to `names`."""
    if depth > DEEPEST:
        raise FormulaError(f"{text!r:.80} has more than {DEEPEST} operations inside of each other")
    if isinstance(part, ast.Name):
        names[part.id] = None
        return
    if isinstance(part, ast.Constant) and type(part.value) in (int, float):
        if not abs(part.value) <= LARGEST:  # type: ignore[arg-type]
            raise FormulaError(f"{text!r:.80} has a number beyond {LARGEST:.3g}")
        return
    inner = _operands(part)
    if inner is None:
        words = ast.get_source_segment(text, part)
        raise FormulaError(f"{words!r:.80} is no part of a formula; {GRAMMAR}")
    for one in inner:
        _check(text, one, names, depth + 1)


def _operands(part: ast.expr) -> Sequence[ast.expr] | None:
    """What an operation works on; None for what is no operation of a formula."""
    if isinstance(part, ast.BinOp) and type(part.op) in BINARY:
        return part.left, part.right
    if isinstance(part, ast.UnaryOp) and isinstance(part.op, ast.USub):
        return (part.operand,)
    if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and not part.keywords:
        one = part.func.id in FUNCTIONS and len(part.args) == 1
        if one or (part.func.id in SEVERAL and len(part.args) > 1):
            return part.args
    return None


def _value(part: ast.expr, outputs: Mapping[str, Values]) -> Any:
    if isinstance(part, ast.Name):
        return outputs[part.id]
    if isinstance(part, ast.Constant):
        return np.float32(part.value)  # type: ignore[arg-type]
    operands = [_value(one, outputs) for one in _operands(part) or ()]
    if isinstance(part, ast.BinOp):
        return BINARY[type(part.op)](*operands)
    if isinstance(part, ast.UnaryOp):
        return np.negative(operands[0])
    assert isinstance(part, ast.Call)
    assert isinstance(part.func, ast.Name)
    if part.func.id in FUNCTIONS:
        return FUNCTIONS[part.func.id](*operands)
    return reduce(SEVERAL[part.func.id], operands)
