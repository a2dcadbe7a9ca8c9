"""SASRec: causal self-attention over the items that a user met last.

Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cascade.models.embeddings import Embeddings
from cascade.models.fields import column, met
from cascade.models.layers import Attention
from cascade.models.scorer import Retriever
from cascade.schema import Schema


@dataclass(frozen=True)
class SASRecConfig:
    """The sizes of the network; how many items it reads is the sequence's length in the schema."""

    width: int = 64
    blocks: int = 1
    heads: int = 2
    dropout: float = 0.2
    features: bool = True  # whether it reads more than ids: the other features of items, and the
    # numbers of users
    mean: float = 20.0  # how much what a block reads counts beside the newest item, to begin with,
    # when it reads the mean of all; 0: it reads by weights that are drawn


PRESETS = {
    "default": SASRecConfig(),
    # Section IV-D: two blocks, one head, 50 numbers, dropout 0.2 on MovieLens-1M, ids alone.
    "paper": SASRecConfig(width=50, blocks=2, heads=1, features=False, mean=0.0),
    "tiny": SASRecConfig(width=4, blocks=1, heads=2, dropout=0.0),
}


class Block(nn.Module):
    """Self-attention and a point-wise network, each over a normalised input and added to it:
    queries [B, Q, D] among x [B, L, D] -> [B, Q, D]."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        width = config.width
        self.before_attention, self.before_network = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, config.heads)
        if config.mean:
            self.attention.begin_as_mean(config.mean)
        self.network = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(width, width)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, queries: Tensor, x: Tensor, allowed: Tensor) -> Tensor:
        normalised = self.before_attention(queries)
        found = normalised + self.dropout(self.attention(normalised, x, allowed))
        normalised = self.before_network(found)
        added: Tensor = normalised + self.dropout(self.network(normalised))
        return added


class SASRec(Retriever):
    """The state of a user is that of the last place, and the state of an item its vector, by the
    table that the sequence reads, too. It needs neither the user's id nor other features of the
    user. U = V = width; with `features` one more: the last number of an item's state is its bias,
    and a linear layer says, by the last place and the user's numbers, what the user's vector is and
    how much the bias counts. An item that no user met yet is then where its features are.

        >>> from cascade.models.example import SHOP, rows
        >>> model = SASRec(SHOP, PRESETS["paper"]).eval()
        >>> user_dense, user_ids, item_dense, item_ids = rows(2)
        >>> model.user(user_dense, user_ids).shape, model.item(item_dense, item_ids).shape
        (torch.Size([2, 50]), torch.Size([2, 50]))
    """

    needs = ("history",)

    def __init__(self, schema: Schema, config: SASRecConfig) -> None:
        super().__init__(schema)
        self.features = config.features
        self.user_width = self.item_width = config.width + self.features
        self.met = met(schema)
        of_item = schema.ids("item") if self.features else [self.met.item]
        self.items = Embeddings(of_item, config.width)
        self.first = self.items.first_row(self.met.item)
        nn.init.normal_(self.items.table.weight, std=config.width**-0.5)
        if self.features:
            self.bias = Embeddings([self.met.item], 1)
            nn.init.zeros_(self.bias.table.weight)
            self.numbers = nn.Linear(schema.dense_width("item"), config.width, bias=False)
            self.count = len(schema.dense("user"))
            self.head = nn.Linear(config.width + self.count, self.user_width)
            nn.init.ones_(self.head.bias[-1:])
        places = self.met.sequence.length
        self.places = nn.Parameter(torch.randn(places, config.width) * config.width**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.last = nn.LayerNorm(config.width)
        causal = torch.ones(places, places, dtype=torch.bool).tril()
        self.register_buffer("causal", causal, persistent=False)

    causal: Tensor

    def user_parts(self) -> tuple[str, ...]:
        return ("places", "blocks", "last", "causal", *(("head",) if self.features else ()))

    def item_parts(self) -> tuple[str, ...]:
        return ("bias", "numbers") if self.features else ()

    def user(self, dense: Tensor, ids: Tensor) -> Tensor:
        members = column(self.schema, self.met.sequence, ids)  # [B, L], the newest last
        there = members > 0
        x = self.items.table(members + self.first) * self.places.shape[1] ** 0.5 + self.places
        x = self.dropout(x) * there.unsqueeze(2)
        allowed = self.causal & there.unsqueeze(1)  # [B, L, L]
        for block in self.blocks[:-1]:
            x = block(x, x, allowed) * there.unsqueeze(2)
        # Of the last block, the last place alone is read.
        found: Tensor = self.blocks[-1](x[:, -1:], x, allowed[:, -1:])
        vector: Tensor = self.last(found * there[:, -1:].unsqueeze(2)).squeeze(1)
        if self.features:
            vector = self.head(torch.cat((vector, dense[:, : self.count]), dim=1))
        return vector

    def item(self, dense: Tensor, ids: Tensor) -> Tensor:
        own = column(self.schema, self.met.item, ids)
        vector: Tensor = self.items(ids if self.features else own).sum(1)
        if not self.features:
            return vector
        if self.schema.dense("item"):
            vector = vector + self.numbers(dense)
        return torch.cat((vector, self.bias(own).flatten(1)), dim=1)
