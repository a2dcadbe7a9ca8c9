"""The outputs of a model of the file: the only one, or those of which a formula makes the score,
each a column of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from cascade.artifact import Array
from cascade.formula import Formula, FormulaError
from cascade.spec import TASKS
from export.described.forms import Form
from export.foreign.inputs import Meaning


def give_one(
    form: Form, names: list[str], run: Callable[[], list[Array]], path: Path
) -> tuple[str, Meaning, tuple[str, ...]]:
    """Give the graph at `path` the one output that is served -> its name and meaning, and the names
    of its columns where a formula makes the score of them. Raises LocatedError.

    Args:
        names: of all its outputs, which `run` gives of some rows.
    """
    if len(form.sides) == 1:  # a tower
        return _vector(form, names), "value", ()
    node = form.node
    if not form.outputs:
        raise node.error(
            "say what the output means: `output: logit`, `probability` or `value`, or `outputs:` "
            f"by name; {form.name} has {', '.join(names)}"
        )
    (first, meaning), *more = form.outputs.items()
    if not more and form.score is None:
        if first and first not in names:
            raise node.mapping()["outputs"].error(f"{form.name} has the outputs {', '.join(names)}")
        if not first and len(names) > 1:
            raise node.error(
                f"{form.name} has the outputs {', '.join(names)}; name them in `outputs:`"
            )
        return first or names[0], meaning, ()  # type: ignore[return-value]
    tasks = tuple(name for name in form.outputs if name.isidentifier())  # a formula knows no other
    formula_of(form, tasks)
    shapes = [found.shape for found in run()]
    _write_tasks(form, names, shapes, path, tasks)
    return TASKS, "value", tasks


def _vector(form: Form, names: list[str]) -> str:
    if len(names) != 1:
        raise form.node.error(f"{form.name} has the outputs {', '.join(names)}; a tower has one")
    return names[0]


def _write_tasks(
    form: Form, names: list[str], shapes: list[Any], path: Path, tasks: tuple[str, ...]
) -> None:
    """Give the graph the output `TASKS` [n, T], probabilities in place of logits."""
    model = ir.load(path)
    ir.external_data.load_to_model(model)
    graph, tape = model.graph, ir.tape.Tape()

    def constant(value: Any, dtype: type = np.int64) -> ir.Value:
        name = f"cascade_constant_{len(graph.initializers)}"
        made = ir.val(name, const_value=ir.tensor(np.array(value, dtype), name=name))
        graph.register_initializer(made)
        return made

    def op(kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return tape.op(kind, inputs, attributes)

    by_name = {str(value.name): value for value in graph.outputs}
    columns = _columns(form, names, shapes)
    values = []
    for name in tasks:
        output, column = columns[name]
        value = by_name[output]
        if column is not None:
            value = op("Gather", value, constant(column), axis=1)
        value = op("Cast", op("Reshape", value, constant([-1, 1])), to=int(ir.DataType.FLOAT))
        values.append(op("Sigmoid", value) if form.outputs[name] == "logit" else value)
    whole = op("Concat", *values, axis=1)
    for value in by_name.values():
        if value.name == TASKS:
            value.name = f"{TASKS}/of the file"
    whole.name, whole.dtype = TASKS, ir.DataType.FLOAT
    whole.shape = ir.Shape(["rows", len(tasks)])
    graph.extend(tape.nodes)
    graph.outputs.clear()
    graph.outputs.append(whole)
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1 << 20)


def _columns(form: Form, names: list[str], shapes: list[Any]) -> dict[str, tuple[str, int | None]]:
    """The output, and the column of it, of every name in `outputs`: by the names of the graph, in
    its order, or as the columns of its single output."""
    wanted, node = [*form.outputs], form.node.mapping()["outputs"]
    if len(names) == 1 and len(shapes[0]) == 2 and shapes[0][1] == len(wanted) > 1:
        return {name: (names[0], column) for column, name in enumerate(wanted)}
    if {*wanted} <= {*names}:
        found = {name: (name, shapes[names.index(name)]) for name in wanted}
    elif len(wanted) == len(names) and form.kind != "onnx":
        found = {n: (o, s) for n, o, s in zip(wanted, names, shapes, strict=True)}
    else:
        raise node.error(f"{form.name} has the outputs {names} of {[s[1:] for s in shapes]}")
    for name, (_, shape) in found.items():
        if int(np.prod(shape[1:])) != 1:
            raise node.mapping()[name].error(
                f"{name} is {[*shape[1:]]} per row; expected one number"
            )
    return {name: (output, None) for name, (output, _) in found.items()}


def formula_of(form: Form, tasks: tuple[str, ...]) -> Formula:
    """The formula in `score`. Raises LocatedError: it is none, or not one of the tasks."""
    assert form.score is not None
    text = form.score.value if isinstance(form.score.value, str) else form.score.text()
    try:
        return Formula.of(text, tasks)
    except FormulaError as error:
        raise form.score.error(str(error)) from error
