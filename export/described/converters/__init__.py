"""A state_dict of a well-known package as a module over `dense` [n, D] and `ids` [n, columns].

A converter reads every size from the weights. What the weights cannot tell stands in `config`. All
modules give the logit [n]; where the package's own code ends in a sigmoid, it is left off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from cascade.located import Node
from cascade.schema import Schema, Side
from export.described.converters import deepctr_dcn, facebook_dlrm, torchrec_dlrm
from export.described.converters.fields import Fields
from export.described.converters.weights import Weights

Converter = Callable[[Weights, Fields, Node], nn.Module]
CONVERTERS: dict[str, Converter] = {
    "facebook_dlrm": facebook_dlrm.convert,
    "torchrec_dlrm": torchrec_dlrm.convert,
    "deepctr_dcn": deepctr_dcn.convert,
}
INPUTS = {"dense": "float32", "ids": "int64"}  # the module's arguments in their order


def check(node: Node, sides: tuple[Side, ...]) -> None:
    """Refuse what an entry with `converter` cannot say. Raises LocatedError."""
    if len(sides) == 1:
        raise node.error("a converter makes a ranker; give a tower in another form")
    node.take("inputs", lambda n: n).only(*INPUTS)
    for key in ("outputs", "score"):
        if key in node.mapping():
            raise node.mapping()[key].error("a converter gives one logit; leave it out")
    meaning = node.take("output", lambda n: n, None)
    if meaning is not None and meaning.value != "logit":
        raise meaning.error(
            f"{meaning.value} came; a converter gives the logit, without the sigmoid of the "
            "package's code: leave `output` out"
        )


def converted(node: Node, features: Mapping[str, Sequence[str]], schema: Schema) -> nn.Module:
    """The module of an entry with `converter`, `weights` and perhaps `config`; `features` feed each
    of `INPUTS`. Raises LocatedError: the weights are not those of the converter's model, or do not
    fit the features."""
    name = node.take("converter", lambda n: n.choice("converter", CONVERTERS))
    fields = Fields.of(node.take("inputs", lambda n: n), features, schema)
    weights = Weights.read(node.take("weights", lambda n: n), name)
    config = node.take("config", lambda n: n, Node(node.file, node.line, node.path, {}, node.line))
    module = CONVERTERS[name](weights, fields, config)
    weights.end()
    return module.eval()
