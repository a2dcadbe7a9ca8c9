"""The final score as a formula of a model's outputs: `ctr * (0.7 + 0.3 * engagement)`.

The formula is read by Python's parser and becomes nodes of the graph; nothing of it is executed.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from cascade.located import Node
from cascade.values import unknown_name

BINARY: dict[type[ast.operator], str] = {
    ast.Add: "Add",
    ast.Sub: "Sub",
    ast.Mult: "Mul",
    ast.Div: "Div",
    ast.Pow: "Pow",
}
FUNCTIONS = {"sigmoid": "Sigmoid", "log": "Log", "exp": "Exp", "sqrt": "Sqrt"}
SEVERAL = {"min": "Min", "max": "Max"}
Op = Callable[..., ir.Value]


def names(node: Node) -> list[str]:
    """The outputs that a formula reads. Raises LocatedError: it is no formula."""
    functions = {*FUNCTIONS, *SEVERAL}
    found = [n.id for n in ast.walk(_parsed(node)) if isinstance(n, ast.Name)]
    return [name for name in dict.fromkeys(found) if name not in functions]


def write(node: Node, outputs: dict[str, ir.Value], op: Op, constant: Op) -> ir.Value:
    """The nodes of a formula over outputs [n]; `op(kind, *inputs)` and `constant(value)` make them.
    Raises LocatedError: an unknown name, or what is no part of a formula."""

    def value(part: ast.expr) -> ir.Value:
        if isinstance(part, ast.Constant) and type(part.value) in (int, float):
            return constant(part.value, np.float32)
        if isinstance(part, ast.Name):
            if part.id not in outputs:
                raise node.error(unknown_name("output", part.id, outputs))
            return outputs[part.id]
        if isinstance(part, ast.BinOp) and type(part.op) in BINARY:
            return op(BINARY[type(part.op)], value(part.left), value(part.right))
        if isinstance(part, ast.UnaryOp) and isinstance(part.op, ast.USub):
            return op("Neg", value(part.operand))
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and not part.keywords:
            arguments = [value(argument) for argument in part.args]
            if part.func.id in FUNCTIONS and len(arguments) == 1:
                return op(FUNCTIONS[part.func.id], *arguments)
            if part.func.id in SEVERAL and len(arguments) > 1:
                return op(SEVERAL[part.func.id], *arguments)
        raise node.error(
            f"{ast.unparse(part)!r} is no part of a formula; it has outputs, numbers, + - * / **, "
            f"{', '.join(f'{name}(x)' for name in FUNCTIONS)}, min(x, y) and max(x, y)"
        )

    return value(_parsed(node))


def _parsed(node: Node) -> ast.expr:
    text: Any = node.value if isinstance(node.value, str) else node.text()
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        raise node.error(f"{text!r:.80} is no formula: {error.__class__.__name__}") from error
