"""Whether a tensor of the items' graph says the same several times: an item beside each member of a
user's list, say. Pairs then read it once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from cascade.artifact import Array

ELEMENTWISE = (
    *("Abs", "Add", "And", "BitShift", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu"),
    *("Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid"),
    *("HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max"),
    *("Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal"),
    *("Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub"),
    *("Sum", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor"),
)


def repeats(
    nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Array], name: str, axis: int
) -> bool:
    """Whether all coordinates of a tensor along an axis, -1 for the last, are the same by what the
    nodes do; False where that is not known."""
    made = {out: node for node in nodes for out in node.output}

    def alike(name: str) -> bool:
        if name in constants:
            array = constants[name]
            if array.ndim < -axis:
                return True
            return bool((array == array.take([0], axis)).all()) if array.shape[axis] else False
        if name not in made:
            return False
        kind, inputs = made[name].op_type, [one for one in made[name].input if one]
        if kind in ELEMENTWISE:
            return all(map(alike, inputs))
        if kind == "Expand":
            return alike(inputs[0])
        if kind == "MatMul":
            layer = inputs[1] in constants and constants[inputs[1]].ndim == 2
            return axis < -1 and layer and alike(inputs[0])
        if kind == "Concat":
            along = next(one.i for one in made[name].attribute if one.name == "axis")
            return along < 0 and along != axis and all(map(alike, inputs))
        if kind == "Reshape" and inputs[1] in constants:
            shape = constants[inputs[1]].tolist()
            return len(shape) > -axis and shape[axis] == 1
        return False

    return alike(name)
