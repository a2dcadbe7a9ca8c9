"""Co-visitation: which items users met around the ones that this user met last.

Linden et al., "Amazon.com recommendations: item-to-item collaborative filtering", IEEE Internet
Computing 2003. The matrix of items by items has too many directions for vectors of a few hundred
numbers, so a row of it keeps its largest entries as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cascade.models.scorer import Scorer
from cascade.schema import Schema, SchemaError

BASE = 256  # of an id's digits: float16 and bfloat16 hold integers up to here
DIGITS = 3
SLOTS = 32_768  # where a user's strengths are added up; ids of more items share some


@dataclass(frozen=True)
class CoVisitationConfig:
    """The names of a sequence of items that a user met and of the item's own id, how many of the
    `last` items count, and how many neighbours each has."""

    met: str
    item: str
    last: int = 10
    neighbours: int = 50


class CoVisitation(Scorer):
    """The sum, over the items that a user met last, of an item's strength among the neighbours of
    each, divided by the square root of its place from the newest.

    Nothing is learnt by gradients: `begin` takes the matrix. A state holds ids as digits, which
    stay exact in half precision: U = 4 `last` `neighbours`, V = 3. The strengths of a user are
    added up once, so that a candidate costs one lookup. Where there are more than `SLOTS` ids, two
    neighbours of one user that share a slot count as the one with the larger id.
    """

    neighbours: Tensor
    strengths: Tensor
    ages: Tensor
    blank: Tensor

    def __init__(self, schema: Schema, config: CoVisitationConfig) -> None:
        super().__init__(schema)
        named = {feature.name: feature for feature in schema.features}
        met, item = named[config.met], named[config.item]
        if met.kind != "sequence" or not met.pads_left or met.length < config.last:
            raise SchemaError(
                f"feature {met.name!r}: expected a sequence of at least {config.last} items with "
                "the newest at the right"
            )
        stop = schema.first_column(met) + met.length
        self.met, self.own = slice(stop - config.last, stop), schema.first_column(item)
        shape = met.cardinality, config.neighbours
        self.register_buffer("neighbours", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("strengths", torch.zeros(shape))
        places = torch.arange(config.last, 0, -1.0)
        self.register_buffer("ages", places[:, None] ** -0.5, persistent=False)
        self.slots = min(SLOTS, item.cardinality)
        self.shared = self.slots < item.cardinality
        self.register_buffer("blank", torch.zeros(self.slots, dtype=torch.int32), persistent=False)
        self.count = config.last * config.neighbours
        self.user_width, self.item_width = (DIGITS + 1) * self.count, DIGITS

    def begin(self, neighbours: Tensor, strengths: Tensor) -> None:
        """Take the ids of the neighbours [M, N], below `BASE` ** `DIGITS`, of each id of an item
        met, and their strengths [M, N]; 0 where there are fewer."""
        self.neighbours.copy_(neighbours)
        self.strengths.copy_(strengths)

    def user_parts(self) -> tuple[str, ...]:
        return ("neighbours", "strengths", "ages")

    def user(self, dense: Tensor, ids: Tensor) -> Tensor:
        met = ids[:, self.met]
        strengths = (self.strengths[met] * self.ages).flatten(1)
        return torch.cat((*_digits(self.neighbours[met].flatten(1), strengths), strengths), dim=1)

    def item(self, dense: Tensor, ids: Tensor) -> Tensor:
        return torch.stack(_digits(ids[:, self.own], dense), dim=1)

    def cross(self, user: Tensor, item: Tensor) -> Tensor:
        *digits, strengths = torch.split(user, self.count, dim=1)
        found, own = _number(digits), _number(item.unbind(2))
        to, place = found % self.slots, own % self.slots
        empty = strengths[:, :1] * self.blank.to(strengths.dtype)  # ONNX Runtime expands slowly
        total = empty.scatter_add(1, to, strengths).gather(1, place)
        if not self.shared:
            return total
        owner = (found[:, :1] * self.blank).scatter_reduce(1, to, found, "amax")
        return torch.where(owner.gather(1, place) == own, total, 0.0)


def _digits(ids: Tensor, like: Tensor) -> list[Tensor]:
    """Ids -> their digits, the lowest first, in the type of another tensor."""
    return [(ids // BASE**place % BASE).to(like.dtype) for place in range(DIGITS)]


def _number(digits: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """Digits, the lowest first -> int64."""
    low, middle, high = (digit.long() for digit in digits)
    return low + BASE * middle + BASE * BASE * high
