"""GRU4Rec: a recurrent network over the items that a user met last.

Hidasi, Karatzoglou, Baltrunas and Tikk, "Session-based Recommendations with Recurrent Neural
Networks", ICLR 2016; the items of the input and of the output have one table, as in Hidasi and
Karatzoglou, "Recurrent Neural Networks with Top-k Gains for Session-based Recommendations",
CIKM 2018 (constrained embedding).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cascade.models.embeddings import Embeddings
from cascade.models.fields import column, met
from cascade.models.scorer import Retriever
from cascade.schema import Schema


@dataclass(frozen=True)
class GRU4RecConfig:
    """The sizes of the network; how many items it reads is the sequence's length in the schema."""

    width: int = 64  # of the items' vectors and of the hidden state
    layers: int = 1
    dropout: float = 0.2  # of the items' vectors


PRESETS = {
    "default": GRU4RecConfig(),
    # CIKM 2018, section 4: one layer of 100 units.
    "paper": GRU4RecConfig(width=100, dropout=0.0),
    "tiny": GRU4RecConfig(width=4, dropout=0.0),
}


class GRU4Rec(Retriever):
    """The state of a user is the hidden state after the newest item. U = V = width + 1: the last
    number of an item's state is its bias, that of a user's is 1.

        >>> from cascade.models.example import SHOP, rows
        >>> model = GRU4Rec(SHOP, PRESETS["tiny"])
        >>> user_dense, user_ids, item_dense, item_ids = rows(2)
        >>> model.user(user_dense, user_ids).shape, model.item(item_dense, item_ids).shape
        (torch.Size([2, 5]), torch.Size([2, 5]))
    """

    needs = ("history",)

    def __init__(self, schema: Schema, config: GRU4RecConfig) -> None:
        super().__init__(schema)
        self.user_width = self.item_width = config.width + 1
        self.met = met(schema)
        self.items = Embeddings([self.met.item], config.width)
        nn.init.normal_(self.items.table.weight, std=config.width**-0.5)
        self.bias = Embeddings([self.met.item], 1)
        nn.init.zeros_(self.bias.table.weight)
        self.dropout = nn.Dropout(config.dropout)
        self.gru = nn.GRU(config.width, config.width, config.layers, batch_first=True)

    def user_parts(self) -> tuple[str, ...]:
        return ("gru",)

    def item_parts(self) -> tuple[str, ...]:
        return ("bias",)

    def user(self, dense: Tensor, ids: Tensor) -> Tensor:
        members = column(self.schema, self.met.sequence, ids)  # [B, L], the newest last
        length = members.shape[1]
        count = (members > 0).sum(1, keepdim=True)
        # The network starts at the first member: pads go behind the newest.
        places = torch.arange(length, device=ids.device) + length - count
        members = members.gather(1, places.clamp(max=length - 1))
        states, _ = self.gru(self.dropout(self.items.table(members)))  # [B, L, D]
        newest = (count - 1).clamp(min=0).unsqueeze(2).expand(-1, 1, states.shape[2])
        state = states.gather(1, newest).squeeze(1) * (count > 0)
        return torch.cat((state, torch.ones_like(state[:, :1])), dim=1)

    def item(self, dense: Tensor, ids: Tensor) -> Tensor:
        own = column(self.schema, self.met.item, ids)
        return torch.cat((self.items(own).flatten(1), self.bias(own).flatten(1)), dim=1)
