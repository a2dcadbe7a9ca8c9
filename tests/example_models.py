"""Models of a user's own, as `tests.example_models:Class` names them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cascade.models.embeddings import Embeddings
from cascade.models.scorer import Scorer
from cascade.schema import Schema, Task


@dataclass(frozen=True)
class Config:
    """Width of the embeddings and of the hidden layer."""

    width: int = 4
    hidden: int = 8


PRESETS = {"default": Config(), "wide": Config(width=8)}


class Textbook(Scorer):
    """An MLP over everything that is known of a row: `forward` alone."""

    def __init__(self, schema: Schema, config: Config) -> None:
        super().__init__(schema)
        self.person = Embeddings(schema.ids("user"), config.width)
        self.thing = Embeddings(schema.ids("item"), config.width)
        vectors = len(schema.ids("user")) + len(schema.ids("item"))
        numbers = schema.dense_width("user") + schema.dense_width("item")
        self.first = nn.Linear(vectors * config.width + numbers, config.hidden)
        self.last = nn.Linear(config.hidden, len(self.tasks))

    def forward(
        self, user_dense: Tensor, user_ids: Tensor, item_dense: Tensor, item_ids: Tensor
    ) -> Tensor:
        vectors = self.person(user_ids).flatten(1), self.thing(item_ids).flatten(1)
        x = torch.cat((user_dense, item_dense, *vectors), dim=1)
        logits: Tensor = self.last(torch.relu(self.first(x)))
        return logits if len(self.tasks) > 1 else logits.squeeze(1)


class TwoTasks(Textbook):
    """The same with a logit more: [B, 2]."""

    tasks = ("click", "buy")


class ThreeTasks(Textbook):
    """The same with the logits of `THREE_TASKS`: [B, 3]."""

    tasks = ("ctr", "engagement", "revenue")


THREE_TASKS = (Task("ctr"), Task("engagement"), Task("revenue", "amount", 0.3))


class Deep(Textbook):
    """The same with a layer more."""

    def __init__(self, schema: Schema, config: Config) -> None:
        super().__init__(schema, config)
        self.last = nn.Sequential(
            nn.Linear(config.hidden, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 1)
        )


class UserOnly(Textbook):
    """A model that gives all items one score."""

    def forward(
        self, user_dense: Tensor, user_ids: Tensor, item_dense: Tensor, item_ids: Tensor
    ) -> Tensor:
        vectors = self.person(user_ids).flatten(1)
        width = self.first.in_features - vectors.shape[1]
        rest = vectors.new_zeros(vectors.shape[0], width)
        logits: Tensor = self.last(torch.relu(self.first(torch.cat((vectors, rest), 1))))
        return logits.squeeze(1)


class AnyNames(Scorer):
    """A model whose parts do not say by their names which side they belong to."""

    def __init__(self, schema: Schema, config: Config) -> None:
        super().__init__(schema)
        self.user_width = self.item_width = config.hidden
        self.tables = nn.ModuleDict(
            {
                "person": Embeddings(schema.ids("user"), config.width),
                "movie_table": Embeddings(schema.ids("item"), config.width),
            }
        )
        self.person = nn.Linear(len(schema.ids("user")) * config.width, config.hidden)
        self.movie = nn.Linear(len(schema.ids("item")) * config.width, config.hidden)
        self.both = nn.Linear(config.hidden, config.hidden)
        self.last = nn.Linear(config.hidden, 1)

    def user_parts(self) -> tuple[str, ...]:
        return "tables.person", "person"

    def item_parts(self) -> tuple[str, ...]:
        return "tables.movie_table", "movie"

    def user(self, dense: Tensor, ids: Tensor) -> Tensor:
        vectors: Tensor = self.person(self.tables["person"](ids).flatten(1))
        return vectors

    def item(self, dense: Tensor, ids: Tensor) -> Tensor:
        vectors: Tensor = self.movie(self.tables["movie_table"](ids).flatten(1))
        return vectors

    def cross(self, user: Tensor, item: Tensor) -> Tensor:
        rows = (user.unsqueeze(1) + item.to(user.dtype)).flatten(0, 1)  # [B * K, H]
        return self.last(torch.relu(self.both(rows))).reshape(item.shape[:2])


class ThreeByParts(AnyNames):
    """A model of three parts and three tasks."""

    tasks = ThreeTasks.tasks

    def __init__(self, schema: Schema, config: Config) -> None:
        super().__init__(schema, config)
        self.last = nn.Linear(config.hidden, len(self.tasks))

    def cross(self, user: Tensor, item: Tensor) -> Tensor:
        rows = (user.unsqueeze(1) + item.to(user.dtype)).flatten(0, 1)  # [B * K, H]
        return self.last(torch.relu(self.both(rows))).reshape(*item.shape[:2], -1)


# Of a cascade whose preranker and ranker have `forward` alone.
TEXTBOOK = {
    "retrieve": ("two_tower", "tiny"),
    "prerank": ("tests.example_models:Textbook", "default"),
    "rank": ("tests.example_models:Deep", "wide"),
}
